"""`make demo`: the whole way, as a newcomer sees it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from autograder import demo
from autograder.suite import load_assignment

ASSIGNMENT = load_assignment(demo.NAME)


def test_the_demo_gives_every_student_the_right_grade_and_a_page(tmp_path: Path) -> None:
    """Reference, right, wrong, untouched and hostile submissions go through nbgrader, and each student gets a page."""
    command = [sys.executable, "-m", "autograder", "demo", "--plain", "--folder", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Every grade is as it should be" in said
    assert re.search(r"isolation in force: \S+.* \(level \d\)", said)
    for student in demo.NAMES:
        pages = list((tmp_path / "demo" / "home" / student).rglob("*.html"))
        assert len(pages) == 1, student
        assert str(pages[0]) in said
        assert pages[0].read_text(encoding="utf-8").count('<tr class="task">') == len(ASSIGNMENT.tasks)
    kinds = re.findall(r"^\w+ \((\w+)/\w+\): ", said, re.MULTILINE)
    assert [kinds.count(kind) for kind in ("right", "wrong", "hostile")] == [3, 4, 1]


def test_the_demo_fails_if_a_grade_is_not_what_it_should_be(tmp_path: Path) -> None:
    """A wrong submission that claims to fail another check ends in a complaint and a non-zero exit."""
    code = (
        "import dataclasses, sys\n"
        "from autograder import demo; from autograder.authoring import corpus\n"
        "real = demo._class\n"
        "def changed():\n"
        "    first, *others = real()\n"
        "    return [dataclasses.replace(first, fails=frozenset({'test_bytes_latent'})), *others]\n"
        "demo._class = changed\n"
        "sys.argv = ['autograder', 'demo', '--plain', '--folder', sys.argv[1]]\n"
        "from autograder.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "demo")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "passes test_bytes_latent, which it must fail" in done.stdout
    assert f"the gradebook says {ASSIGNMENT.points}" in done.stdout
