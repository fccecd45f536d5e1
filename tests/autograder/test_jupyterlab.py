"""An assignment's whole way in a browser, with nbgrader's own buttons: fetched, solved, checked, validated, submitted, graded.

A real JupyterLab for the student and one for the instructor, driven in headless Chromium. `SCREENSHOTS=FOLDER` keeps a picture
of every step in FOLDER.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autograder.courses import course as courses

if TYPE_CHECKING:
    from conftest import Course

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to drive JupyterLab in")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
PATIENCE_MS = 60_000
"""For each step, however busy the machine is; all of them take half a minute on a quiet one."""
NUMBERS = itertools.count(1)
STUDENT = "ada"
SOLUTION = "def double(n):\n    return n + n"
WRONG = "def double(n):\n    return 3 * n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def lab(folder: Path, course: Course) -> Iterator[str]:
    """A JupyterLab in `folder`: the address of its pages, with `{}` where the path goes."""
    token = secrets.token_urlsafe()
    home = course.tmp / f"home-{folder.name}"
    home.mkdir()
    folders = {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"), "IPYTHONDIR": str(home / "ipython")}
    folders |= {"JUPYTER_DATA_DIR": str(home / "data"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += ["--ServerApp.port=0", f"--ServerApp.token={token}", f"--ServerApp.root_dir={folder}"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | course.environment | {"XDG_CACHE_HOME": str(Path.home() / ".cache")} | folders,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/lab\?token", line):
                break
        else:
            pytest.fail(f"JupyterLab did not start:\n{said}")
        with (folder.parent / f"{folder.name}.log").open("w") as log:
            drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=log)  # a full pipe would stop the server
            yield f"{found[1]}/{{}}?token={token}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        drain.wait()
        assert process.stdout
        process.stdout.close()


@contextlib.contextmanager
def opened(browser: Any) -> Iterator[tuple[Any, Any]]:
    """A new page, and a function that takes a picture of it if pictures are kept."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(PATIENCE_MS)
    folder = os.environ.get("SCREENSHOTS")

    def picture(name: str) -> None:
        if folder:
            page.screenshot(path=Path(folder, f"{next(NUMBERS):02}-{name}.png"))

    try:
        yield page, picture
    except BaseException:
        picture("at-the-end")
        raise
    finally:
        page.close()


def write(page: Any, cell: str, source: str) -> None:
    """Put `source` into the code cell that contains the text `cell`, and run it."""
    page.locator(".jp-CodeCell", has_text=cell).first.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(source)  # as from the clipboard: typed, the editor would indent and close brackets itself
    page.keyboard.press("Shift+Enter")


def run_check(page: Any, task: str) -> Any:
    """Run the cell that checks `task`; its output."""
    cell = page.locator(".jp-CodeCell", has_text=f'check("{task}")').first
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    return cell.locator(".jp-OutputArea-output")


def validated(page: Any) -> str:
    """Press nbgrader's Validate button, which saves first; what it says."""
    page.locator(".jp-Toolbar").get_by_text("Validate", exact=True).click()
    dialog = page.locator(".jp-Dialog")
    dialog.wait_for()
    return str(dialog.inner_text())


def test_an_assignment_goes_its_way_with_nbgraders_buttons(course: Course, tmp_path: Path, browser: Any) -> None:
    """A student fetches, solves, checks, validates and submits in JupyterLab; formgrader's buttons grade and give feedback."""
    exchange = Path(str(courses.load_config(course.root).Exchange.root))
    exchange.mkdir(exist_ok=True)
    exchange.chmod(0o777)
    course.nbgrader("release_assignment", course.name)
    student = tmp_path / STUDENT
    student.mkdir()
    (student / "nbgrader_config.py").write_text(
        f"c = get_config()\nc.CourseDirectory.course_id = {courses.load_config(course.root).CourseDirectory.course_id!r}\n"
        f"c.CourseDirectory.student_id = {STUDENT!r}\nc.Exchange.root = {str(exchange)!r}\n"
        f"c.Exchange.cache = {str(tmp_path / 'cache')!r}\n"
    )
    with lab(student, course) as address, opened(browser) as (page, picture):
        page.goto(address.format("lab"))
        page.get_by_role("menuitem", name="Nbgrader").click()
        page.get_by_text("Assignment List").first.click()
        page.get_by_role("button", name="Fetch").click()
        page.get_by_role("button", name="Submit").wait_for()
        picture("fetched")

        page.goto(address.format(f"lab/tree/{course.name}/{course.name}.ipynb"))
        page.get_by_text("(ipykernel) | Idle").wait_for()  # what is run before the kernel is there is not run
        write(page, "def double", WRONG)
        output = run_check(page, "double")
        output.get_by_text("FAILED").wait_for()
        picture("failed")
        assert "Twice 1: wrong value." in validated(page)
        picture("not-valid")
        page.keyboard.press("Escape")
        write(page, "def double", SOLUTION)
        output = run_check(page, "double")
        output.get_by_text("PASSED").wait_for()
        assert "3 of 3 points" in output.inner_text()
        write(page, "def layers", "def layers(n):\n    return n")
        run_check(page, "layers").get_by_text("PASSED").wait_for()
        picture("passed")

        assert "Success" in validated(page)
        picture("valid")
        page.keyboard.press("Escape")
        page.get_by_role("menuitem", name="Nbgrader").click()
        page.get_by_text("Assignment List").first.click()
        page.get_by_role("button", name="Submit").click()
        page.get_by_text(re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")).first.wait_for()
        picture("submitted")
    course.nbgrader("collect", course.name)

    with lab(course.root, course) as address, opened(browser) as (page, picture):
        page.goto(address.format("lab"))  # logs in: formgrader's own pages do not
        page.get_by_role("menuitem", name="Nbgrader").wait_for()
        page.goto(address.format(f"formgrader/manage_submissions/{course.name}"))
        row = page.locator("tr", has_text=STUDENT)
        row.get_by_text("needs autograding").wait_for()
        picture("collected")
        row.locator(".autograde a").click()
        page.get_by_text("Successfully autograded").wait_for()
        picture("autograded")
        page.keyboard.press("Escape")
        page.reload()
        assert page.locator("tr", has_text=STUDENT).locator(".score").inner_text() == "10 / 10"
        picture("graded")
    assert course.total(STUDENT) == 10
