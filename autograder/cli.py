"""The command `autograder`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NoReturn

# One thread each: this process forks judges, and a thread pool does not survive a fork. Set before torch is imported.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# jsonschema imports it with nbformat, for a format that no notebook uses; it then compiles a grammar for most of a second.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import platformdirs
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autograder import language
from autograder.language import N_, _, said
from autograder.runs.progress import Steps
from autograder.students.command import StudentCommand

__all__ = ["main"]

# torch makes this folder when it is imported: by default in /tmp, where it would stay
_cache = platformdirs.user_cache_path("inference-autograder", appauthor=False)
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache / "torchinductor"))

app = typer.Typer(
    help="Build, check and grade assignments on efficient LLM inference.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
models_app = typer.Typer(help="Models that lie on this machine.", no_args_is_help=True)
app.add_typer(models_app, name="models")
keys_app = typer.Typer(help="Keys that results are signed with.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
console = Console()
STOPPED = N_("Stopped. What was finished is kept; the same command goes on from there.")

Course = Annotated[Path, typer.Option("--course", help="The nbgrader course's folder, or one inside it.")]
Lang = Annotated[
    str | None,
    typer.Option("--lang", help=N_("en or zh_TW; the environment's by default (LANGUAGE, LC_ALL, LC_MESSAGES, LANG).")),
]
Plain = Annotated[bool, typer.Option("--plain", help="Lines instead of a progress bar, for logs.")]


def _stop(text: object, code: int = 1) -> NoReturn:
    """End with a sentence instead of a traceback."""
    Console(stderr=True).print(f"[red]autograder:[/red] {escape(str(text))}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def _sentences() -> Iterator[None]:
    """Turn the errors that users can cause or mend, and Ctrl-C, into sentences."""
    try:
        from autograder.errors import AutograderError
        from autograder.sandboxing.sandbox import SandboxUnavailable
        from gpu_env.models import FetchFailed, ModelCorrupt, ModelMissing

        yield
    except KeyboardInterrupt:  # typer would end without a word
        _stop(_(STOPPED), 130)
    except (AutograderError, SandboxUnavailable, FetchFailed, ModelCorrupt, ModelMissing) as error:
        _stop(said(str(error)))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        again = _("{problem}. Mend that, then run the same command again.").format(problem=f"{error.strerror}{where}")
        _stop(again if error.strerror else said(str(error)))


@contextlib.contextmanager
def _speaking(lang: str | None, path: Path) -> Iterator[None]:
    """The language of a student who asked for `lang`, with the texts of the release in which `path` lies."""
    with _sentences():
        spoken = language.load(language.chosen(lang), path if path.is_dir() else path.parent)
    with language.use(spoken), _sentences():
        yield


@app.command(cls=StudentCommand, help=N_("Run the public checks on your own work. Gives no marks."))
def check(
    path: Annotated[
        Path, typer.Argument(help=N_("The notebook, its .py file, or the folder of the assignment."))
    ] = Path("."),
    task: Annotated[str | None, typer.Option("--task", help=N_("Only this task."))] = None,
    inline: Annotated[bool, typer.Option("--inline", help=N_("In this process, for a debugger."))] = False,
    lang: Lang = None,
) -> None:
    """Run the public checks on your own work. Gives no marks."""
    from autograder.pages import feedback
    from autograder.students import selfcheck

    with _speaking(lang, path):
        found = selfcheck.run(path, task, inline=inline)
        console.print(escape(_("Read {what}.").format(what=found.read)), highlight=False)
        for remark in (*found.remarks, *found.withheld):
            console.print(escape(_("Note: {remark}").format(remark=said(remark))), style="yellow", highlight=False)
        for each in found.tasks:
            title = f"{each.task}: {feedback.points_of(each.points, each.max_points)}"
            rows = feedback.rows(found.assignment, found.findings, each.task)
            if all(row.untried for row in rows) and task is None:
                console.print(_("{title}, not implemented yet").format(title=title), highlight=False)
            else:
                console.print(feedback.table(title, rows))
        points, most = sum(each.points for each in found.tasks), sum(each.max_points for each in found.tasks)
        text = _("{points} of {most} points that public checks can show. Hidden checks are added when grading.")
        console.print(text.format(points=feedback.points_text(points), most=most), highlight=False)
    raise typer.Exit(0 if points == most else 1)


@app.command(cls=StudentCommand, help=N_("Make notebook and .py file agree, after both were changed."))
def sync(
    path: Annotated[Path, typer.Argument(help=N_("The file that counts; the other one is overwritten."))],
    lang: Lang = None,
) -> None:
    """Make notebook and .py file agree, after both were changed."""
    from autograder.students import pair, selfcheck

    with _speaking(lang, path):
        manifest = selfcheck.locate(path)[1]
        if path.is_dir():
            _stop(_("Give the file that counts, not the folder."))
        other = pair.take(path, manifest)
        text = _("{other} now holds what {file} holds.")
        console.print(text.format(other=other.name, file=path.name), highlight=False)


@app.command()
def build(
    names: Annotated[list[str] | None, typer.Argument(help="Assignments; all if none is named.")] = None,
    only_check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if assignments/ is not up to date.")
    ] = False,
) -> None:
    """Make assignments/ from solutions/."""
    from autograder import suite
    from autograder.authoring import build as builder

    with _sentences():
        stale = False
        for name in names or suite.names():
            if only_check:
                different = builder.differences(name)
                stale |= bool(different)
                state = (
                    f"differs in {', '.join(different)}; run `autograder build {name}`"
                    if different
                    else "is up to date"
                )
                console.print(f"assignments/{name} {state}", highlight=False)
            else:
                console.print(f"wrote {builder.build(name, suite.repository() / 'assignments')}", highlight=False)
    raise typer.Exit(1 if stale else 0)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the course; made if need be.")],
    names: Annotated[list[str] | None, typer.Argument(help="Assignments; all if none is named.")] = None,
    course_id: Annotated[str, typer.Option("--course-id", help="nbgrader's name of the course.")] = "inference",
    exchange: Annotated[Path | None, typer.Option("--exchange", help="nbgrader's exchange folder.")] = None,
) -> None:
    """Make an nbgrader course that grades with this repository's suites."""
    from autograder import suite
    from autograder.courses import course

    with _sentences():
        chosen = names or suite.names()
        for name in chosen:
            suite.load_assignment(name)
        course.init(folder, chosen, course_id=course_id, exchange=exchange)
    console.print(
        f"{folder} is a course with {', '.join(chosen)}. Next: nbgrader release_assignment {chosen[0]}", highlight=False
    )


@app.command()
def grade(
    name: Annotated[str, typer.Argument(help="The assignment.")],
    course: Course = Path("."),
    student: Annotated[list[str] | None, typer.Option("--student", help="Only this student; may be repeated.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Judge again what is graded already.")] = False,
    isolation: Annotated[
        str | None, typer.Option("--isolation", help="Lowest level accepted; the course's by default.")
    ] = None,
    import_: Annotated[
        bool, typer.Option("--import/--no-import", help="Enter the results into nbgrader's gradebook.")
    ] = True,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Submissions at once; 0 for one per core.")] = 0,
    sign: Annotated[
        Path | None, typer.Option("--sign", help="Sign the results with this key; `autograder keys new` makes one.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (schemas/grades.schema.json); all else to stderr.")
    ] = False,
    executor: Annotated[Literal["local", "ray"], typer.Option("--executor", help="This machine, or a Ray cluster.")] = (
        "local"
    ),
    address: Annotated[
        str | None, typer.Option("--address", help="The Ray cluster, HOST:PORT; this machine's by default.")
    ] = None,
    plain: Plain = False,
) -> None:
    """Grade everything under submitted/ and enter it into the gradebook. Does what is missing, nothing twice."""
    said = Console(stderr=True, width=console.width) if as_json else console
    with _sentences():
        from autograder.runs import run

        outcome = run.grade_course(
            name, course, students=student or [], force=force, isolation=isolation, enter=import_, workers=workers,
            sign=sign, steps=Steps(said, plain=plain), executor=executor, address=address,
        )  # fmt: skip
    run.print_grades(outcome, said)
    if as_json:
        from autograder import schema

        print(schema.dump(schema.grades(outcome)))
    raise typer.Exit(outcome.code)


@app.command(hidden=True)
def node() -> None:
    """Judge for a command on another machine, which talks to this one in lines of JSON."""
    from autograder.runs import node as nodes

    nodes.main()


@app.command()
def regrade(
    name: Annotated[str, typer.Argument(help="The assignment.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Judge and show, but leave the gradebook as it is.")
    ] = False,
    course: Course = Path("."),
    student: Annotated[list[str] | None, typer.Option("--student", help="Only this student; may be repeated.")] = None,
    isolation: Annotated[
        str | None, typer.Option("--isolation", help="Lowest level accepted; the course's by default.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Submissions at once; 0 for one per core.")] = 0,
    sign: Annotated[
        Path | None, typer.Option("--sign", help="Sign the results with this key; `autograder keys new` makes one.")
    ] = None,
    plain: Plain = False,
) -> None:
    """Grade again after the suite was changed: who gets what instead, and why; what people decided stays."""
    from autograder.runs import regrade as regrading

    with _sentences():
        outcome = regrading.regrade(
            name, course, console, dry_run=dry_run, students=student or [], isolation=isolation, workers=workers, sign=sign,
            steps=Steps(console, plain=plain),
        )  # fmt: skip
    raise typer.Exit(outcome.code)


@app.command()
def explain(
    target: Annotated[str, typer.Argument(metavar="RESULT|STUDENT", help="A stored result, or a student's name.")],
    name: Annotated[str | None, typer.Argument(help="The assignment, after a student's name.")] = None,
    course: Course = Path("."),
) -> None:
    """How a grade came about: check by check, with the rule that gave the points, to the gradebook's total."""
    from autograder.reports import explain as explaining

    with _sentences():
        found = explaining.explain_student(target, name, course) if name else explaining.explain_file(Path(target))
    explaining.print_explanation(found, console)


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="The assignment.")],
    format_: Annotated[str, typer.Option("--format", help="Grades: csv, canvas or moodle. Findings: junit.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="The CSV file that Canvas or Moodle exported, to be filled in.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is different; write nothing.")] = False,
    column: Annotated[str | None, typer.Option("--column", help="Title of the grade column.")] = None,
    identifier: Annotated[
        str | None, typer.Option("--identifier", help="Title of the column that names students.")
    ] = None,
    course: Course = Path("."),
) -> None:
    """Give grades out, or findings to other tools. Exit status 1 if a grade found no row in the sheet."""
    from autograder.reports import export as exports

    with _sentences():
        code = exports.export(
            name, course, format_, output, console, sheet=sheet, dry_run=dry_run, column=column, identifier=identifier
        )
    raise typer.Exit(code)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="The assignment.")],
    course: Course = Path("."),
    lang: Annotated[
        str | None, typer.Option("--lang", help="Of students' pages, en or zh_TW; the course's by default.")
    ] = None,
    plain: Plain = False,
) -> None:
    """Write the class page, its figures as CSV, and every student's page: reports/NAME/."""
    with _sentences():
        from autograder.reports import report as reports

        written = reports.write(name, course, Steps(console, plain=plain), lang)
    console.print(f"{written.page}", highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{written.submissions} submissions, {written.graded} graded, {written.open} open. "
        "It names students and shows what hidden checks met: keep it to yourself.",
        highlight=False,
    )


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="The assignment.")],
    course: Course = Path("."),
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="The key's .pub file; the course's public_key by default.")
    ] = None,
) -> None:
    """Check that every stored result is, byte for byte, what was written, and signed if the course has a key."""
    from autograder import results, suite
    from autograder.courses import course as courses

    with _sentences():
        suite.load_assignment(name)
        folder = courses.find(course)
        if public_key:
            from autograder.signing import PublicKey

            signer: PublicKey | None = PublicKey.read(public_key)
        else:
            signer = courses.public_key(folder)
        found = list(results.verify(folder / "results", name, signer))
    demanded = f"must be signed by {signer}" if signer else "no key: damage is seen, forgery is not"
    table = Table(title=f"{name}, {demanded}", title_justify="left")
    for column in ("student", "result", "state"):
        table.add_column(column, overflow="fold")
    for each in found:
        table.add_row(escape(each.file.parent.name), each.file.name, each.state)
    console.print(table)
    for each in found:
        if each.problem:
            console.print(f"[red]✗[/red] {escape(each.problem)}", highlight=False, soft_wrap=True)
    bad = sum(each.state != "fine" for each in found)
    remedy = f". `autograder grade {name} --force` judges again what counts under the present suite" if bad else ""
    console.print(f"{len(found)} results, {bad} not fine{remedy}.", highlight=False)
    raise typer.Exit(1 if bad or not found else 0)


@app.command()
def replay(
    files: Annotated[list[Path], typer.Argument(help="Stored results: results/NAME/STUDENT/....json")],
    course: Annotated[
        Path | None, typer.Option("--course", help="The course that has the submissions; the results' own by default.")
    ] = None,
    isolation: Annotated[
        str, typer.Option("--isolation", help="Lowest level accepted: sandbox, landlock or process.")
    ] = "sandbox",
    plain: Plain = False,
) -> None:
    """Judge stored results again with their seeds, and say what comes out differently, and what differs around it."""
    from autograder.runs import replay as replays

    with _sentences():
        found = replays.replay(files, course, isolation, Steps(console, plain=plain))
    replays.print_replay(found, console)
    raise typer.Exit(0 if all(each.reproduced for each in found) else 1)


@keys_app.command("new")
def new_key(path: Annotated[Path, typer.Argument(help="Where to write it, outside of every course.")]) -> None:
    """Make a key to sign results with."""
    from autograder import signing

    with _sentences():
        public = signing.new(path)
    console.print(f"{path} is the key: keep it to yourself. {path}.pub is its public half.", highlight=False)
    console.print(
        f"To make results count only if they are signed, put the public half into the course's nbgrader_config.py:\n"
        f'  configure(c, ..., public_key="{public}")\n'
        f"and grade with: autograder grade NAME --sign {path}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


@app.command()
def corpus(
    name: Annotated[str, typer.Argument(help="The assignment.")],
    isolation: Annotated[
        str, typer.Option("--isolation", help="Lowest level accepted: sandbox, landlock or process.")
    ] = "sandbox",
    only: Annotated[list[str] | None, typer.Option("--only", help="Only these, as in 'hostile-*'.")] = None,
    order: Annotated[int | None, typer.Option("--order", help="The order of an earlier run, by its number.")] = None,
    mutants: Annotated[
        int | None,
        typer.Option(
            "--mutants", min=0, help="Judge so many mutants of the reference too, drawn at random; 0 for all."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as one JSON object in the last line.")] = False,
    plain: Plain = False,
) -> None:
    """Grade right, honest, wrong and hostile submissions: all as they must be, nothing read, nothing left behind."""
    from autograder.runs import run

    with _sentences():
        found = run.grade_corpus(
            name, isolation=isolation, steps=Steps(console, plain=plain), order=order, only=only or (), mutants=mutants
        )
    said = [each for complaints in found.complaints.values() for each in complaints]
    said += [f"no wrong submission fails {check}" for check in found.unkilled]
    said += [f"a submission got hold of a secret: {place}" for place in found.canaries]
    said += [f"left behind: {what}" for what in found.left]
    if found.mutation:
        said += [f"no check notices the mutant {mutant}" for mutant in found.mutation.survivors]
        said += [f"no verdict on the mutant {mutant}" for mutant in found.mutation.ungraded]
    for each in said:
        console.print(f"[red]✗[/red] {escape(each)}", highlight=False, soft_wrap=True)
    figures = found.figures
    table = Table(title=f"{name}, order {found.order}", title_justify="left")
    for column in ("", "tried", "amiss"):
        table.add_column(column, justify="right" if column else "left")
    for what, count, bad in (
        ("attacks tried, and that changed a grade", "attacks_tried", "attacks_effective"),
        ("secrets planted, and read", "canaries_planted", "canaries_read"),
        ("processes, files, sockets, shared memory left behind", "", "left_behind"),
        ("honest twins of attacks, and punished", "honest_tried", "honest_punished"),
        ("right submissions, and below full marks", "right_tried", "right_below_full"),
        ("wrong submissions, and not as their head says", "wrong_tried", "wrong_uncaught"),
        ("checks that no wrong submission fails", "", "unkilled_checks"),
        ("speeds that this machine was too busy to measure", "", "unmeasured"),
    ):
        table.add_row(what, str(figures[count]) if count else "", str(figures[bad]))
    if found.mutation:
        table.add_row(
            f"mutants of the reference ({found.mutation.equivalent} known to be equivalent), and that live",
            str(found.mutation.tried),
            str(len(found.mutation.survivors)),
        )
    console.print(table)
    if not figures["attacks_tried"] and not only:
        console.print(
            "No attack was tried: that needs a sandbox. `autograder doctor` says how to get one.", highlight=False
        )
    console.print(
        f"{'All is as it must be' if found.fine else f'{len(said)} things are not as they must be'}; "
        f"{found.seconds:.1f} s; isolation {found.isolation}",
        highlight=False,
    )
    if as_json:
        print(json.dumps(figures))
    raise typer.Exit(0 if found.fine else 1)


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where to make the course; a temporary folder by default.")
    ] = None,
    isolation: Annotated[
        str, typer.Option("--isolation", help="Lowest level accepted: sandbox, landlock or process.")
    ] = "sandbox",
    plain: Plain = False,
) -> None:
    """The whole way on your machine: release, submit, collect, grade, gradebook, feedback, for a class of eight."""
    from autograder import demo as show

    with _sentences():
        raise typer.Exit(show.run_demo(folder, isolation, Steps(console, plain=plain), console))


@app.command()
def doctor() -> None:
    """What is here, what is missing, and what that disables."""
    from autograder import doctor as examine

    table = Table(show_lines=False, box=None, pad_edge=False)
    for column in ("", "what", "found", "means"):
        table.add_column(column, overflow="fold")
    with _sentences():
        for line in examine.examine():
            mark = "[green]✓[/green]" if line.fine else "[yellow]![/yellow]"
            table.add_row(mark, escape(line.what), escape(line.found), escape(line.means))
    console.print(table)


@models_app.command("fetch")
def fetch_models(
    names: Annotated[
        list[str] | None, typer.Argument(help="Models; all that the course uses if none is named.")
    ] = None,
) -> None:
    """Get the course's models, once, and verify them."""
    from gpu_env import models

    with _sentences():
        for name in names or list(models.CATALOGUE):
            with contextlib.suppress(models.ModelMissing, models.ModelCorrupt):
                models.verify(name)
                console.print(f"{name} is here: {models.find(name)}", highlight=False)
                continue
            started = time.monotonic()
            last = [""]

            def report(what: str, fraction: float, last: list[str] = last) -> None:
                if what != last[0]:
                    last[0] = what
                    console.print(f"  {what} ...", highlight=False)

            path = models.fetch(name, report)
            console.print(f"{name}: {path} ({time.monotonic() - started:.0f} s)", highlight=False)


@models_app.command("list")
def list_models() -> None:
    """The models that the course uses, and whether they are here and whole."""
    from gpu_env import models

    for name in models.CATALOGUE:
        try:
            models.verify(name)
            state = str(models.find(name))
        except (models.ModelMissing, models.ModelCorrupt) as error:
            state = str(error)
        console.print(f"{name}: {state}", highlight=False)


def main() -> None:
    """Entry point. A terminal narrower than usual, or none, must not cut what is said."""
    if not sys.stdout.isatty():
        console.width = max(shutil.get_terminal_size((120, 24)).columns, 120)
    try:
        app()
    except KeyboardInterrupt:
        print(f"autograder: {STOPPED}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
