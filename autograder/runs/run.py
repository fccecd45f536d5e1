"""A whole grading run, as the commands `grade` and `corpus` make it: find, judge, store, enter, show."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autograder import results, suite, temporary
from autograder.authoring import corpus
from autograder.grade import Graded
from autograder.judging import oracle
from autograder.manifest import HELPERS
from autograder.pages.feedback import points_text
from autograder.runs import twins
from autograder.runs.grading import Executor, Grader, Job, discover, first_interrupt, result_file, stored
from autograder.runs.progress import Steps
from autograder.sandboxing import selftest
from autograder.sandboxing.isolation import LEVELS
from autograder.sandboxing.sandbox import Sandbox, SandboxUnavailable, best_sandbox, gpu_devices
from gpu_env import device, models

if TYPE_CHECKING:
    from autograder.authoring.mutation import MutationRun
    from autograder.courses.gradebook import Entered, Recorded
    from autograder.signing import PublicKey, SigningKey

__all__ = ["CorpusRun", "CourseRun", "cores", "grade_corpus", "grade_course", "level_of", "print_grades", "sandbox_for"]


ENTERING = 4
"""How many processes at most enter grades: SQLite lets one of them write at a time."""


@dataclass(frozen=True)
class CourseRun:
    """What a grading run came to."""

    name: str
    tasks: tuple[str, ...]
    max_points: int
    graded: tuple[Graded, ...]
    entered: dict[str, Entered]
    book: dict[str, Recorded]
    isolation: str
    seconds: float
    stopped: bool
    waiting: int
    """Submissions that Ctrl-C left to be graded."""
    unentered: int
    """Grades that Ctrl-C left to be entered."""
    refused: dict[str, str]
    """Students whose stored result did not count, so that they were judged again: what was wrong, and where it is now."""

    @property
    def code(self) -> int:
        """Exit status: 130 after Ctrl-C, 1 if a grade is withheld or could not be entered, else 0."""
        if self.stopped:
            return 130
        problem = any(each.problem or each.status == "withheld" for each in self.graded)
        return int(problem or any(each.problem for each in self.entered.values()))


def grade_course(
    name: str,
    start: Path,
    *,
    students: Sequence[str],
    force: bool,
    isolation: str | None,
    enter: bool,
    workers: int,
    steps: Steps,
    sign: Path | None = None,
    executor: str = "local",
    address: str | None = None,
    agree: Callable[[Sequence[Graded]], bool] | None = None,
) -> CourseRun:
    """Grade the submissions for `name` in the course around `start`, and sign the results with the key in the file `sign`.

    With the `executor` "ray" on the cluster at `address`, else on this machine. `agree` is shown what was found and says
    whether to enter it, for regrading: then nbgrader's marks for review stay too. Raises what its parts raise.
    """
    from autograder.courses import course, gradebook

    began = time.monotonic()
    loaded = suite.load(name)
    folder = course.find(start)
    jobs = discover(folder / "submitted", name, loaded.manifest, students)
    if absent := set(students) - {job.student for job in jobs}:
        raise course.CourseError(
            f"No submission of {', '.join(sorted(absent))} for {name} in {folder / 'submitted'}. "
            "--student takes the name of a folder there."
        )
    if not jobs:
        raise course.CourseError(
            f"{folder / 'submitted'} holds no submission for {name}. Collect first: `nbgrader collect {name}`, "
            f"or put notebooks at submitted/STUDENT/{name}/{name}.ipynb."
        )
    word = isolation or course.isolation(folder)
    minimum, tier = level_of(word), _tier_on(executor, address, loaded)
    course.require_ours(folder)
    signing_key, signer = _keys(folder, sign)
    graded: dict[str, Graded] = {}
    refused: dict[str, str] = {}
    entered: dict[str, Entered] = {}
    stopped = False
    with _lock(folder / "results"):
        results.sweep(folder / "results")
        temporary.sweep(selftest.FOLDER)  # of a run that was killed as it began; this one may need no sandbox
        for job in jobs:
            try:
                found = stored(loaded, folder / "results", job, minimum, tier, signer)
                if found and (job.submission is None or not force):
                    graded[job.student] = found
            except results.Refused as error:
                refused[job.student] = str(error)
        todo = [job for job in jobs if job.student not in graded]
        if signer and not signing_key:
            remedy = f"Only signed results count in this course: autograder grade {name} --sign KEYFILE"
            for job in todo:
                problem = f"{refused.pop(job.student, 'No result is stored.')} {remedy}"
                graded[job.student] = Graded(job.student, None, None, problem, fresh=False)
            todo = []
        for job in todo:
            if job.student in refused:
                aside = results.set_aside(result_file(loaded, folder / "results", job, tier))
                refused[job.student] += f" It is judged again; what was there is kept as {aside.name}."
        used = ""
        if todo:
            how = _How(minimum, workers, tier, signing_key)
            with _executor(executor, address, loaded, folder / "results", how, steps) as grader:
                grader.warm_up()
                with steps.step(f"grading {name}", len(todo)) as progress:
                    progress.activities = grader.activities
                    grader.watch(progress.tick)

                    def done(each: Graded) -> None:
                        graded[each.student] = each
                        progress.advance(_line(each), each.result.findings if each.result else (), each.student)

                    twins.grade_once(grader, loaded, folder / "results", todo, done, signing_key)
                stopped, used = grader.stopping, grader.isolation
        finished = [graded[job.student] for job in jobs if job.student in graded]
        due = [each for each in finished if each.status == "graded"]
        if enter and not stopped and (agree is None or agree(finished)):

            def stop() -> None:
                nonlocal stopped
                stopped = True

            with steps.step("entering into nbgrader's gradebook", len(due)) as progress, first_interrupt(stop):

                def entered_one(each: Entered) -> bool:
                    if each.problem and suite.load(name).hash != loaded.hash:
                        raise course.CourseError(
                            f"The checks of {name}, or the autograder, were changed while this run judged with what stood "
                            "there before. Its results are kept. Run the same command again: it judges with what stands "
                            "there now."
                        )
                    entered[each.student] = each
                    progress.advance(f"{each.student}: {each.problem or ('entered' if each.fresh else 'as it was')}")
                    return not stopped

                gradebook.enter(
                    folder, name, due, word, entered_one, signer=signer, force=force, keep_reviews=agree is not None,
                    processes=min(workers or cores(), ENTERING),
                )  # fmt: skip
    return CourseRun(
        name=name,
        tasks=tuple(task.name for task in loaded.assignment),
        max_points=loaded.assignment.points,
        graded=tuple(finished),
        entered=entered,
        book=gradebook.recorded(folder, name) if enter else {},
        isolation=used or _used_before(finished),
        seconds=time.monotonic() - began,
        stopped=stopped,
        waiting=len(jobs) - len(finished),
        unentered=len(due) - len(entered) if enter else 0,
        refused=refused,
    )


@dataclass(frozen=True)
class _How:
    """What an executor needs to know beside the work."""

    minimum_level: int
    workers: int
    tier: str
    signing_key: SigningKey | None


@contextlib.contextmanager
def _executor(
    name: str, address: str | None, loaded: suite.Suite, folder: Path, how: _How, steps: Steps
) -> Iterator[Executor]:
    """Whoever grades. Raises `SandboxUnavailable`, `ClusterError`."""
    if name == "ray":
        from autograder.runs import cluster

        with cluster.connected(address) as ray:
            grader = cluster.RayGrader(
                ray, loaded, folder, how.minimum_level, steps.say, how.workers, how.tier, how.signing_key
            )
            with contextlib.closing(grader):
                yield grader
        return
    with sandbox_for(loaded, how.minimum_level) as sandbox:
        if how.signing_key and not sandbox.isolation.level:
            raise SandboxUnavailable("Without walls student code could read the key, so nothing is signed.")
        yield Grader(loaded, sandbox, folder, how.workers or cores(), how.tier, how.signing_key)


def _tier_on(executor: str, address: str | None, loaded: suite.Suite) -> str:
    """What the suite's speed is measured on where `executor` works. Raises `ClusterError`."""
    if executor != "ray" or not _measures_gpus(loaded):
        return tier_of(loaded)
    from autograder.runs import cluster

    with cluster.connected(address) as ray:
        return "gpu" if cluster.has_gpus(ray) else "cpu"


def _keys(folder: Path, sign: Path | None) -> tuple[SigningKey | None, PublicKey | None]:
    """The key to sign with, and the one that signatures must be of: what was given counts more than the course's own."""
    from autograder.courses import course

    signer = course.public_key(folder)
    if sign is None:
        return None, signer
    from autograder.signing import KeyFileError, SigningKey

    signing_key = SigningKey(sign)
    if signer and str(signer) != str(signing_key.public):
        raise KeyFileError(
            f"{sign} is not the private key of the public_key in {folder / course.CONFIG}. Nothing was graded. "
            "Give the right key, or put the new one's line there; results of another key are then judged again."
        )
    return signing_key, signing_key.public


def print_grades(outcome: CourseRun, console: Console) -> None:
    """The table of grades and what there is to know about the run."""
    table = Table(title=outcome.name, title_justify="left")
    for column in (
        "student",
        *(f"{number}" for number, _ in enumerate(outcome.tasks, 1)),
        "total",
        "gradebook",
        "status",
    ):
        table.add_column(column, justify="left" if column in ("student", "status") else "right", overflow="fold")
    for each in outcome.graded:
        tasks = {task.task: task for task in each.score.tasks} if each.score and not each.score.withheld else {}
        cells = [
            f"{points_text(tasks[name].points)}/{tasks[name].max_points}" if tasks else "–" for name in outcome.tasks
        ]
        total = f"{points_text(each.score.points)}/{each.score.max_points}" if each.score and tasks else "–"
        book = outcome.book.get(each.student)
        notes = "" if book is None else (" late" if book.late_penalty else "") + (" manual" if book.manual else "")
        entered = outcome.entered.get(each.student)
        status = each.status if not (entered and entered.problem) else "not entered"
        table.add_row(
            escape(each.student), *cells, total, "–" if book is None else points_text(book.total) + notes, status
        )
    console.print(table)
    console.print("  ".join(f"{number} {name}" for number, name in enumerate(outcome.tasks, 1)), highlight=False)
    for each in outcome.graded:
        reasons = [each.problem] if each.problem else list(each.score.withheld[:5]) if each.score else []
        if each.student in outcome.refused:
            reasons.insert(0, outcome.refused[each.student])
        if (entered := outcome.entered.get(each.student)) and entered.problem:
            reasons.append(entered.problem)
        book = outcome.book.get(each.student)
        if each.status == "withheld" and book is not None:
            reasons.append(f"The gradebook keeps what was entered before: {points_text(book.total)} points.")
        for reason in reasons:
            console.print(f"[yellow]{escape(each.student)}:[/yellow] {escape(reason)}", highlight=False, soft_wrap=True)
    fresh = [each for each in outcome.graded if each.fresh]
    unread = sum(each.result is None and not each.fresh for each in outcome.graded)
    if not fresh and not any(each.fresh for each in outcome.entered.values()) and not outcome.stopped:
        withheld = sum(each.status == "withheld" for each in outcome.graded)
        rest = f" except {withheld} withheld (see above)" if withheld else ""
        console.print(f"Nothing to do: every submission is graded{rest}. --force grades again.", highlight=False)
    console.print(
        f"{len(fresh)} graded now, {len(outcome.graded) - len(fresh) - unread} before, "
        + (f"{unread} cannot be graded, " if unread else "")
        + (f"{len(outcome.refused)} stored before but refused (see above), " if outcome.refused else "")
        + f"in {outcome.seconds:.1f} s; "
        f"isolation in force: {outcome.isolation}",
        highlight=False,
    )
    if outcome.stopped:
        console.print(
            f"Stopped; {outcome.waiting} submissions wait to be graded, {outcome.unentered} grades to be entered. "
            "What is graded is stored: the same command goes on from here.",
            highlight=False,
            soft_wrap=True,
        )


NEIGHBOURS = 3
"""Ordinary submissions with a secret in their source that are graded among the others of the corpus."""


@dataclass(frozen=True)
class CorpusRun:
    """How the corpus was graded. `complaints` maps submissions to what is not as their head says."""

    counts: dict[str, int]
    """Submissions by kind."""
    complaints: dict[str, tuple[str, ...]]
    unkilled: tuple[str, ...]
    """Checks that no wrong submission fails."""
    canaries: tuple[str, ...]
    """Places of secrets that some submission got hold of."""
    planted: int
    left: tuple[str, ...]
    """What is on the machine that was not there before."""
    order: int
    """Seed of the order in which they were graded."""
    isolation: str
    seconds: float
    mutation: MutationRun | None = None
    unmeasured: int = 0
    """Checks of speed that were inconclusive, over all submissions: measure again on a quiet machine."""

    @property
    def fine(self) -> bool:
        missed = self.mutation and (self.mutation.survivors or self.mutation.ungraded)
        return not (self.complaints or self.unkilled or self.canaries or self.left or missed)

    @property
    def figures(self) -> dict[str, int | float | str]:
        """All that is counted, for programs."""
        bad = [name.partition("-")[0] for name in self.complaints]
        return {
            "attacks_tried": self.counts["hostile"],
            "attacks_effective": bad.count("hostile"),
            "canaries_planted": self.planted,
            "canaries_read": len(self.canaries),
            "left_behind": len(self.left),
            "honest_tried": self.counts["honest"],
            "honest_punished": bad.count("honest"),
            "right_tried": self.counts["right"],
            "right_below_full": bad.count("right"),
            "wrong_tried": self.counts["wrong"],
            "wrong_uncaught": bad.count("wrong"),
            "unkilled_checks": len(self.unkilled),
            "unmeasured": self.unmeasured,
            "mutants": self.mutation.tried if self.mutation else 0,
            "mutants_killed": self.mutation.killed if self.mutation else 0,
            "mutants_equivalent": self.mutation.equivalent if self.mutation else 0,
            "order": self.order,
            "isolation": self.isolation,
            "seconds": round(self.seconds, 1),
        }


def grade_corpus(
    name: str,
    *,
    isolation: str,
    steps: Steps,
    order: int | None = None,
    only: Sequence[str] = (),
    mutants: int | None = None,
) -> CorpusRun:
    """Grade the corpus of `name` in random order, among ordinary submissions, and compare with the heads of its files.

    Beside that: look for secrets in all that submissions say, and for what they leave behind on the machine. Attacks are
    tried in a sandbox only. `order` is the seed of an earlier run; `only` are patterns of names, as in "hostile-*";
    `mutants` of the reference are judged too (0: all there are).
    """
    began = time.monotonic()
    order = secrets.randbits(32) if order is None else order
    loaded = suite.load(name)
    complaints: dict[str, tuple[str, ...]] = {}
    unmeasured: list[str] = []
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(corpus.private_world())
        left = corpus.Leftovers(name, world)
        canaries = stack.enter_context(corpus.Canaries(name, world))
        with sandbox_for(loaded, level_of(isolation)) as sandbox:
            entries = _corpus_entries(name, only, canaries, attacks=sandbox.isolation.level >= LEVELS["sandbox"])
            grader = Grader(loaded, corpus.overhear(sandbox, world / "heard"), world / "results", workers=cores())
            grader.warm_up()
            jobs = [Job(each.key, each.submission(loaded.manifest)) for each in entries.values()]
            random.Random(order).shuffle(jobs)
            with steps.step(f"grading the corpus of {name}", len(entries)) as progress:
                progress.activities = grader.activities
                grader.watch(progress.tick)

                def done(each: Graded) -> None:
                    if found := corpus.complaints(entries[each.student], each):
                        complaints[each.student] = tuple(found)
                    unmeasured.extend(corpus.unmeasured(each))
                    progress.advance(_line(each), each.result.findings if each.result else (), each.student)

                grader.grade(jobs, done)
            used = grader.isolation
        read = canaries.read([world / "results" / name, world / "heard"])
        canaries.close()
        left_behind = left.found()
    mutation = None
    if mutants is not None:
        from autograder.authoring.mutation import run_mutants

        with sandbox_for(loaded, level_of(isolation)) as sandbox:
            mutation = run_mutants(name, sandbox, steps, workers=cores(), most=mutants or None, seed=order)
    kinds = [entry.kind for entry in entries.values()]
    return CorpusRun(
        counts={kind: kinds.count(kind) for kind in corpus.KINDS},
        complaints=dict(sorted(complaints.items())),
        unkilled=() if only else tuple(corpus.unkilled(entries.values(), loaded.assignment)),
        canaries=tuple(read),
        planted=len(canaries.places),
        left=tuple(left_behind),
        order=order,
        isolation=used,
        seconds=time.monotonic() - began,
        mutation=mutation,
        unmeasured=len(unmeasured),
    )


def _corpus_entries(
    name: str, only: Sequence[str], canaries: corpus.Canaries, *, attacks: bool
) -> dict[str, corpus.Entry]:
    """What is to be graded, by key, with the neighbours. Without `attacks` nothing that means harm."""
    entries = [entry for entry in corpus.load(name) if attacks or entry.kind != "hostile"]
    if only:
        entries = [entry for entry in entries if any(fnmatch.fnmatch(entry.key, pattern) for pattern in only)]
    reference = corpus.reference(name)
    for number in range(1, NEIGHBOURS + 1):
        secret = canaries.new(f"the source of neighbour {number}")
        answers = reference.answers | {HELPERS: f"{reference.answers[HELPERS]}\nSECRET = {secret!r}  # {number}"}
        entries.append(dataclasses.replace(reference, name=f"neighbour{number}", answers=answers))
    return {entry.key: entry for entry in entries}


@contextlib.contextmanager
def sandbox_for(loaded: suite.Suite, minimum: int) -> Iterator[Sandbox]:
    """A sandbox of at least the level `minimum` for submissions to a suite, its walls tried. Raises `SandboxUnavailable`."""
    devices = gpu_devices() if tier_of(loaded) == "gpu" else ()
    needs = loaded.assignment
    sandbox = best_sandbox(
        needs.preload, minimum, _model_folders(needs.models), devices=devices, loopback=needs.loopback
    )
    try:
        sandbox.self_test()
        yield sandbox
    finally:
        oracle.release()
        sandbox.close()


def tier_of(loaded: suite.Suite) -> str:
    """What the suite's speed is measured on here: "gpu" if it has a threshold for one and there is one, else "cpu"."""
    return device.describe().tier if _measures_gpus(loaded) else "cpu"


def _measures_gpus(loaded: suite.Suite) -> bool:
    return any("gpu" in check.thresholds for check in loaded.assignment.checks)


def _model_folders(names: Sequence[str]) -> list[Path]:
    """Folders of those models that are here; a check that needs another one says so itself."""
    folders = []
    for name in names:
        with contextlib.suppress(models.ModelMissing):
            folders.append(models.find(name))
    return folders


def level_of(word: str) -> int:
    """The lowest level that a word of `--isolation` accepts. Raises `SandboxUnavailable`."""
    if word not in LEVELS:
        raise SandboxUnavailable(f"Unknown isolation {word!r}. Use one of: {', '.join(LEVELS)}.")
    return LEVELS[word]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _used_before(graded: Sequence[Graded]) -> str:
    used = {f"{each.result.isolation.name} (level {each.result.isolation.level})" for each in graded if each.result}
    return ", ".join(sorted(used)) or "none used"


def _line(each: Graded) -> str:
    if each.score is None:
        return f"{each.student}: withheld"
    state = f"{points_text(each.score.points)}/{each.score.max_points}" if each.status == "graded" else "withheld"
    return f"{each.student}: {state}"


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One grading run per course at a time; the second one says who is at it."""
    file = _locked(folder)
    try:
        yield
    finally:
        os.close(file)


def _locked(folder: Path) -> int:
    from autograder.courses.course import CourseError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(
            ImportError
        ):  # where flock is not there are no namespaces: nothing is graded for marks
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(file, 200).decode(errors="replace").strip() or "unknown"
                os.close(file)
                raise CourseError(
                    f"Another grading run is at work in this course ({holder}). Wait for it, or stop it."
                ) from None
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    except OSError as error:
        raise results.StoreError(
            f"Results cannot be stored in {folder}: {error.strerror}. Nothing was graded. "
            "Make room or mend the permissions, then run the same command again."
        ) from error
    return file
