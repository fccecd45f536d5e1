"""Attacks on the way around the sandbox: through notebooks, the files beside them, nbgrader and the pages that people open."""

from __future__ import annotations

import copy
import html
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from autograder.authoring import build

if TYPE_CHECKING:
    from conftest import Course, Ran

Notebook = Any
HALF = {"layers": "def layers(n): return 0"}
EARNED, MOST = 5.0, 10.0
"""What the honest half of every submission here is worth, and what there is to get."""
CANARY = "autograder-canary-0123456789abcdef0123456789abcdef"
MARK = "hostile-was-here"
"""What a page's root element gets as an attribute if one of these runs."""
SCRIPT = f"document.documentElement.setAttribute('data-{MARK}', '1')"
MARKUP = (
    f'<script>{SCRIPT}</script><img src=x onerror="{SCRIPT}"><svg onload="{SCRIPT}"></svg>'
    f'</pre></td></textarea></style><iframe srcdoc="<script>parent.{SCRIPT}</script>"></iframe>'
    f'<details open ontoggle="{SCRIPT}"></details>{{{{ 7 * 7 }}}}{{% raw %}}'
)


def cell(notebook: Notebook, grade_id: str) -> Any:
    """The one cell with that id."""
    (found,) = [each for each in notebook.cells if each.metadata.get("nbgrader", {}).get("grade_id") == grade_id]
    return found


def grade_cell(grade_id: str, points: float, **more: bool) -> Any:
    """A cell that nbgrader would take for one of its own, with a score in it."""
    about = {"grade": True, "solution": False, "locked": True, "task": False, "schema_version": 3, "cell_type": "code"}
    made = new_code_cell("999", metadata={"nbgrader": about | more | {"grade_id": grade_id, "points": points}})
    made.outputs = [scored(points)]
    return made


def scored(points: object) -> Any:
    return new_output("execute_result", {"text/plain": str(points)}, execution_count=1)


# ------------------------------------------------------------------------------------------------ forged notebooks


def points_raised(notebook: Notebook) -> None:
    for each in notebook.cells:
        each.metadata.get("nbgrader", {}).update(points=999)


def locks_opened(notebook: Notebook) -> None:
    for each in notebook.cells:
        if "nbgrader" in each.metadata:
            each.metadata["nbgrader"].update(locked=False, grade=False, solution=True)
    cell(notebook, "check_layers").source = "10"


def ids_swapped(notebook: Notebook) -> None:
    one, other = cell(notebook, "check_double"), cell(notebook, "check_layers")
    one.metadata, other.metadata = other.metadata, one.metadata


def cells_removed(notebook: Notebook) -> None:
    notebook.cells = [each for each in notebook.cells if "check" not in each.metadata]


def cells_added(notebook: Notebook) -> None:
    notebook.cells += [grade_cell("check_layers", 999), grade_cell("check_more", 999), grade_cell("bonus", 50)]
    notebook.cells.insert(0, grade_cell("check_layers", 999))
    notebook.cells.append(grade_cell("essay", 100, solution=True, locked=False))


def outputs_forged(notebook: Notebook) -> None:
    for each in notebook.cells:
        if each.cell_type == "code":
            each.outputs = [
                scored(999), scored("nan"), scored("-1"), new_output("stream", name="stderr", text="no error"),
                new_output("display_data", {"text/plain": "10.0"}), new_output("error", ename="", evalue="", traceback=[]),
            ]  # fmt: skip


def checks_rewritten(notebook: Notebook) -> None:
    for task in ("double", "layers"):
        cell(notebook, f"check_{task}").source = "import os\nprint(10)\n10"


def result_forged(notebook: Notebook) -> None:
    notebook.metadata["autograder"]["result"] = "0" * 32
    notebook.metadata["autograder"]["points"] = 999
    notebook.metadata["kernelspec"] = {"name": "bash", "display_name": MARKUP, "language": "bash"}


def transformers_added(notebook: Notebook) -> None:
    """What fooled nbgrader's own execution: transformers, a silent traceback, a display that lies."""
    attack = (
        "ip = get_ipython()\nip.input_transformers_cleanup.append(lambda lines: ['1.0'])\n"
        "ip.showtraceback = lambda *a, **k: None\nopen('executed', 'w').close()\n"
    )
    notebook.cells.insert(0, new_code_cell(attack))
    cell(notebook, "check_layers").source = attack + "10.0"


def magics_in_cells(notebook: Notebook) -> None:
    notebook.cells.append(new_code_cell("%%javascript\n" + SCRIPT + "\n%run /etc/passwd\n!touch executed"))


FORGED: dict[str, Callable[[Notebook], None]] = {
    each.__name__.replace("_", " "): each
    for each in (
        points_raised, locks_opened, ids_swapped, cells_removed, cells_added, outputs_forged, checks_rewritten,
        result_forged, transformers_added, magics_in_cells,
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ files beside them


def links(folder: Path, secret: Path) -> None:
    """Links to a file that only the grader may read, under names that nbgrader passes on, and to whole folders."""
    for name in ("notes.txt", "tiny.html", "other.html", "data/deep.html", "timestamp.bak"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(secret)
    (folder / "all").symlink_to(secret.parent)


def broken_links(folder: Path, secret: Path) -> None:
    """Links to nothing and to themselves. (One to /dev/zero fills the disk of who follows it: not in a test.)"""
    (folder / "nowhere").symlink_to("/no/such/file")
    (folder / "loop").symlink_to("loop")


def pipes(folder: Path, secret: Path) -> None:
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "tiny.html")


def planted(folder: Path, secret: Path) -> None:
    """Modules and settings that would run if anything here were imported or taken for configuration."""
    ran = f"open({str(secret.with_name('executed'))!r}, 'w').close()\n"
    for name in ("conftest.py", "sitecustomize.py", "usercustomize.py", "nbgrader_config.py", "pytest.py", "numpy.py"):
        (folder / name).write_text(ran)
    (folder / "jupyter_nbconvert_config.py").write_text(ran)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p conftest\n")
    (folder / "evil.pth").write_text(f"import os; {ran}")
    for name in ("templates/feedback/index.html.j2", "task.html", "templates/task.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(MARKUP)
    (folder / "tiny.html").write_text(MARKUP)


def sparse(folder: Path, secret: Path) -> None:
    with open(folder / "data.bin", "wb") as file:
        file.truncate(1 << 30)


def odd_names(folder: Path, secret: Path) -> None:
    for name in (
        "-rf",
        "..hidden",
        "a\nb",
        "*",
        "$(touch executed)",
        f"{MARKUP.replace('/', '|')[:200]}.txt",
        "é" * 100,
    ):
        (folder / name).write_text(CANARY[:10])
    (folder / "deep" / "/".join("d" * 40)).mkdir(parents=True)


def forged_results(folder: Path, secret: Path) -> None:
    for name in ("results/tiny/ada/0.json", "submitted/ada/tiny/tiny.ipynb", "autograded/ada/tiny/tiny.ipynb"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    shutil.copy(folder / "tiny.ipynb", folder / "tiny2.ipynb")
    (folder / ".pair.json").write_text("{}")
    (folder / "gradebook.db").write_text("")


FILES: dict[str, Callable[[Path, Path], None]] = {
    each.__name__.replace("_", " "): each
    for each in (links, broken_links, pipes, planted, sparse, odd_names, forged_results)
}
TIMES = {"no date": b"yesterday", "binary": bytes(range(256)), "far away": b"9999-12-31 23:59:59 UTC", "empty": b""}


@dataclass
class Graded:
    """A course with all of these, after one run. `secret` is a file that no student can read."""

    course: Course
    ran: Ran
    secret: Path


def half(course: Course, student: str, change: Callable[[Notebook], None] = lambda notebook: None) -> Path:
    """Hand in a notebook whose honest part is worth half, changed by an attack."""
    course.solve(student, **HALF)
    path: Path = course.folder(student) / "tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    course.hand_in(student, copy.deepcopy(notebook))
    labelled(path.parent)
    return path.parent


def labelled(folder: Path) -> None:
    """What nbgrader's submit adds, and its release_feedback needs."""
    (folder / "timestamp.txt").write_text("2026-01-01 12:00:00 UTC")
    (folder / "submission_secret.txt").write_text("of this student")


def own_exchange(course: Course) -> Path:
    """An exchange that no other test uses."""
    exchange: Path = course.tmp.with_name("own exchange")
    exchange.mkdir()
    exchange.chmod(0o777)
    with open(course.root / "nbgrader_config.py", "a") as config:
        config.write(f"\nc.Exchange.root = {str(exchange)!r}\n")
    return exchange


@pytest.fixture(scope="module")
def graded(tiny: Course, tmp_path_factory: pytest.TempPathFactory) -> Graded:
    """One run over all attacks on notebooks and folders, and two honest students."""
    course = tiny.copy(tmp_path_factory.mktemp("hostile") / "own")
    secret = course.tmp.with_name("instructor") / "secret.txt"
    secret.parent.mkdir(mode=0o700)
    secret.write_text(CANARY)
    for student in ("ada", "zoe"):
        course.solve(student)
        labelled(course.folder(student))
    for student, change in FORGED.items():
        half(course, student, change)
    for student, put in FILES.items():
        put(half(course, student), secret)
    for student, text in TIMES.items():
        (half(course, f"time {student}") / "timestamp.txt").write_bytes(text)
    linked = half(course, "time linked") / "timestamp.txt"
    linked.unlink()
    linked.symlink_to(secret)
    return Graded(course, course.grade(), secret)


@pytest.mark.parametrize("student", FORGED)
def test_a_forged_notebook_is_worth_its_answers(graded: Graded, student: str) -> None:
    """Points, locks, ids, outputs and added cells change neither what is earned nor what there is to earn."""
    recorded = graded.course.book()[student]
    assert (recorded.total, recorded.max_total, recorded.manual) == (EARNED, MOST, False), graded.ran.said


@pytest.mark.parametrize("student", FILES)
def test_files_beside_the_notebook_change_nothing(graded: Graded, student: str) -> None:
    """Links, pipes, planted settings, a gigabyte of nothing and odd names cost nothing and bring nothing."""
    assert graded.course.total(student) == EARNED, graded.ran.said


def test_honest_neighbours_keep_their_points(graded: Graded) -> None:
    """Whoever is graded beside all this has the points of the answers."""
    assert {student: graded.course.total(student) for student in ("ada", "zoe")} == {"ada": MOST, "zoe": MOST}


def test_a_time_that_is_none_costs_nobody_else(graded: Graded) -> None:
    """A broken timestamp.txt is an honest score, or none and a sentence: never another score, never the end of the run."""
    for student in (*(f"time {each}" for each in TIMES), "time linked"):
        assert graded.course.total(student) in (EARNED, None), student
        if graded.course.total(student) is None:
            assert "timestamp" in graded.ran.line(f"{student}: ")


def test_nothing_of_a_submission_was_executed(graded: Graded) -> None:
    """No planted module, cell or magic ran outside of the sandbox."""
    assert not list(graded.course.root.rglob("executed"))
    assert not graded.secret.with_name("executed").exists()


def holding(folder: Path, text: str) -> list[Path]:
    """Files below `folder`, links apart, that contain `text`."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24
    )
    return [path for path in files if text.encode() in path.read_bytes()]


def test_links_are_not_followed(graded: Graded) -> None:
    """What only the grader may read is copied nowhere, not to the feedback that students fetch either."""
    course = graded.course
    course.nbgrader("generate_feedback", "tiny")
    exchange = own_exchange(course)
    (exchange / "inference").mkdir()
    course.nbgrader("release_feedback", "tiny")
    assert not holding(course.root, CANARY)
    assert not holding(exchange, CANARY)
    assert not holding(course.tmp, CANARY)


def test_nothing_grows_by_a_gigabyte(graded: Graded) -> None:
    """A sparse file is not written out, and an endless one not read."""
    used = sum(path.lstat().st_blocks * 512 for path in graded.course.root.rglob("*"))
    assert used < 100 << 20


def test_stock_autograde_gives_the_same(graded: Graded, tiny: Course, tmp_path: Path) -> None:
    """`nbgrader autograde` alone meets the same attacks, and gives the same scores."""
    course = tiny.copy(tmp_path / "stock")
    for student in ("ada", *FORGED):
        shutil.copytree(graded.course.folder(student), course.folder(student), dirs_exist_ok=True)
    for student, put in FILES.items():
        put(half(course, student), graded.secret)
    course.nbgrader("autograde", "tiny")
    expected = {"ada": MOST} | dict.fromkeys([*FORGED, *FILES], EARNED)
    assert {student: recorded.total for student, recorded in course.book().items()} == expected
    assert not holding(course.root, CANARY)


# ------------------------------------------------------------------------------------------------ through the exchange


@dataclass
class Inbound:
    """The folder of the exchange that every student may write into, however nbgrader means it to be used."""

    folder: Path
    course: Course

    def put(self, name: str, time: str = "2026-03-01 12:00:00 UTC") -> Path:
        """A submission that claims to be of `name` and `time`."""
        folder = self.folder / f"{name}+tiny+{time}+x"
        half(self.course, "template")
        shutil.copytree(self.course.folder("template"), folder)
        shutil.rmtree(self.course.folder("template").parent)
        return folder


@pytest.fixture
def inbound(course: Course) -> Inbound:
    """A course whose assignment is released."""
    exchange = own_exchange(course)
    course.nbgrader("release_assignment", "tiny")
    return Inbound(exchange / "inference" / "inbound", course)


def test_collecting_takes_plain_files_of_everybody(inbound: Inbound, tmp_path: Path) -> None:
    """Links, pipes, gigabytes and names that lead elsewhere stop nobody's collecting and bring nothing in."""
    secret = tmp_path / "instructor" / "secret.txt"
    secret.parent.mkdir()
    secret.write_text(CANARY)
    links(inbound.put("links"), secret)
    broken_links(inbound.put("broken links"), secret)
    pipes(inbound.put("pipes"), secret)
    sparse(inbound.put("sparse"), secret)
    inbound.put("..")
    inbound.put(NAME)
    inbound.put("late", "no date at all")
    (inbound.folder / "broken+tiny+").mkdir()
    (inbound.folder / "file+tiny+2026-03-01 12:00:00 UTC+x").write_text("no folder")
    swapped = inbound.put("swapped") / "tiny.ipynb"
    swapped.unlink()
    swapped.symlink_to(secret)
    inbound.put("zoe")
    before = {path.name for path in inbound.course.root.iterdir()}
    ran = inbound.course.nbgrader("collect", "tiny")
    after = {path.name for path in inbound.course.root.iterdir()}
    assert after - before <= {"submitted", "gradebook.db", ".nbgrader.log"}
    assert not holding(inbound.course.root, CANARY)
    assert not [path for path in (inbound.course.root / "submitted").rglob("*") if path.is_symlink() or path.is_fifo()]
    for said in ("it is a link", "it is a pipe", "it has more than", "not that of a submission"):
        assert said in ran.said
    ran = inbound.course.grade()
    totals = {student: recorded.total for student, recorded in inbound.course.book().items()}
    assert totals == dict.fromkeys(("links", "broken links", "pipes", "sparse", "zoe"), EARNED), ran.said
    assert "There is no tiny.ipynb" in ran.line("swapped: ")


def test_the_time_of_a_submission_is_that_of_its_folder(inbound: Inbound) -> None:
    """A forged or deleted timestamp.txt changes nothing; a folder that claims to be older than it is, is told of."""
    for student, text in (("forged", "2020-01-01 00:00:00 UTC"), ("garbage", "yesterday"), ("deleted", None)):
        file = inbound.put(student) / "timestamp.txt"
        file.unlink()
        if text:
            file.write_text(text)
    ran = inbound.course.nbgrader("collect", "tiny")
    for student in ("forged", "garbage", "deleted"):
        assert (inbound.course.folder(student) / "timestamp.txt").read_text().startswith("2026-03-01 12:00:00")
    assert "forged+tiny+2026-03-01 12:00:00 UTC+x claims to be of 2026-03-01" in ran.said


def test_somebody_elses_folder_is_only_a_copy(inbound: Inbound) -> None:
    """Who hands in another's folder, with all that graders left in it, has that work's points; the other keeps hers."""
    course = inbound.course
    ada = inbound.put("ada")
    course.solve("solved")
    shutil.move(course.folder("solved") / "tiny.ipynb", ada / "tiny.ipynb")
    shutil.rmtree(course.folder("solved").parent)
    course.nbgrader("collect", "tiny")
    assert course.grade().code == 0
    (result,) = course.results("ada")
    before = result.read_bytes()
    stolen = inbound.put("mallory")
    shutil.rmtree(stolen)
    shutil.copytree(course.folder("ada"), stolen)
    shutil.copytree(course.root / "results", stolen / "results")
    shutil.copytree(course.root / "autograded" / "ada", stolen / "autograded" / "ada")
    course.nbgrader("collect", "tiny")
    assert course.grade().code == 0
    assert {student: each.total for student, each in course.book().items()} == {"ada": MOST, "mallory": MOST}
    assert result.read_bytes() == before
    (own,) = course.results("mallory")
    assert '"student": "mallory"' in own.read_text()


# ------------------------------------------------------------------------------------------------ pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def marked_up(notebook: Notebook) -> None:
    """Markup in every place that some page shows."""
    text = repr(MARKUP)
    cell(notebook, "double").source = f"def double(n):\n    print({text})\n    raise ValueError({text})"
    cell(notebook, "layers").source = f"def layers(n):\n    print({text})\n    return {text}  # {MARKUP}"
    (helpers,) = [each for each in notebook.cells if "helpers" in each.metadata]
    helpers.source = f"# {MARKUP}"
    shown = {"text/html": MARKUP, "image/svg+xml": MARKUP, "application/javascript": SCRIPT}
    outputs = [new_output("display_data", shown), new_output("stream", name="stderr", text=MARKUP)]
    for each in notebook.cells:
        each.metadata["tags"] = [MARKUP]
        if each.cell_type == "code":
            each.outputs = copy.deepcopy(outputs)
    notebook.cells[0].source += MARKUP
    tricks = f"[link](javascript:{SCRIPT})\n![x](x){{onerror={SCRIPT}}}\n$$\\href{{javascript:{SCRIPT}}}{{x}}$$"
    notebook.cells += [
        new_markdown_cell(f"{MARKUP}\n{tricks}"),
        new_markdown_cell("![x](attachment:a.svg)", attachments={"a.svg": {"image/svg+xml": MARKUP}}),
        new_code_cell(f"{MARKUP}\n'{MARKUP}'", outputs=copy.deepcopy(outputs)),
        nbformat.v4.new_raw_cell(MARKUP, metadata={"raw_mimetype": "text/html"}),
    ]
    notebook.metadata["title"] = MARKUP
    notebook.metadata["language_info"] = {"name": MARKUP, "pygments_lexer": MARKUP, "file_extension": MARKUP}


def formgrader_page(course: Course, student: str) -> str:
    """The page on which formgrader shows a submission, made as its handler makes it."""
    import nbgrader.server_extensions.formgrader.handlers as formgrader
    from nbconvert.exporters import HTMLExporter
    from traitlets.config import Config

    config = Config()
    config.HTMLExporter.template_name = "formgrade"
    config.HTMLExporter.extra_template_basedirs = [formgrader.template_path]
    about: dict[str, object] = dict.fromkeys(("assignment_id", "notebook_id", "submission_id"), "tiny") | {
        "index": 0,
        "total": 1,
    }
    about |= {"base_url": "", "student": student, "last_name": None, "first_name": None, "notebook_path": "tiny.ipynb"}
    path = course.root / "autograded" / student / "tiny" / "tiny.ipynb"
    page, _ = HTMLExporter(config=config).from_filename(str(path), resources=about)
    return str(page)


@pytest.fixture(scope="module")
def pages(tiny: Course, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What students and instructors open, of a submission full of markup; and a control."""
    folder = tmp_path_factory.mktemp("pages")
    course = tiny.copy(folder / "own")
    half(course, "markup", marked_up)
    ran = course.grade()
    assert course.total("markup") == 0.0, ran.said
    course.nbgrader("generate_feedback", "tiny")
    found = {"control": folder / "control.html", "formgrader": folder / "formgrader.html"}
    found["control"].write_text(f"<!doctype html><html><body>{MARKUP}</body></html>")
    with build.quiet_nbgrader():
        found["formgrader"].write_text(formgrader_page(course, "markup"))
    return found | {"feedback": course.root / "feedback" / "markup" / "tiny" / "tiny.html"}


# A student's name that is markup does not come so far: `test_a_name_that_is_markup_enters_no_gradebook`.
PAGES = ("feedback", "formgrader")


NAME = f'<img src=x onerror="{SCRIPT}">'
"""A student's name, as far as a folder can be called so."""


def test_a_name_that_is_markup_enters_no_gradebook(course: Course) -> None:
    """formgrader would run it. Our command tells, and grades the others, O'Hara too; stock nbgrader stops before it knows
    the name."""
    for student in ("ada", "O'Hara", NAME):
        course.solve(student)
    ran = course.grade()
    assert ran.code == 1
    assert "Not entered, for formgrader would show the name as a part of its pages" in " ".join(ran.said.split())
    assert "must not enter the gradebook" in course.nbgrader("autograde", "tiny", "--force", code=1).said
    with sqlite3.connect(course.root / "gradebook.db") as book:
        assert book.execute("SELECT id FROM student").fetchall() == [("O'Hara",), ("ada",)]


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_markup_as_text(pages: dict[str, Path], page: str) -> None:
    """What a submission says, prints, raises and returns stands on the page, escaped; no template looks into it."""
    source = pages[page].read_text(encoding="utf-8")
    assert "{{ 7 * 7 }}" in html.unescape(source)
    for tag in (
        f"<script>{SCRIPT}",
        f'<img src=x onerror="{SCRIPT}',
        "<svg onload",
        "<details open ontoggle",
        "<iframe",
    ):
        assert tag not in source


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the pages in")
@pytest.mark.parametrize("page", ["control", *PAGES])
def test_pages_run_nothing_of_a_submission(pages: dict[str, Path], page: str, tmp_path: Path) -> None:
    """A browser that opens them executes no script that a student wrote; the control shows that it would."""
    address = tmp_path / "page.html"
    shutil.copy(pages[page], address)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [str(CHROMIUM), *flags, "--virtual-time-budget=4000", "--dump-dom", f"file://{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (root,) = re.findall(r"<html[^>]*>", done.stdout)[:1] or [done.stderr]
    assert root.startswith("<html"), root
    assert (f"data-{MARK}" in root) == (page == "control")
