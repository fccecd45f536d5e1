"""Temporary folders: gone with their block, kept while anybody holds them, swept by the next run where all were killed."""

from __future__ import annotations

import ast
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

import autograder
from autograder import temporary

PREFIX = "autograder-test-temporary-"
HOLDS = (
    f"import sys, time; from autograder import temporary\nwith temporary.folder({PREFIX!r}, sys.argv[1]) as folder:\n"
    "    (folder / 'answers').write_text('x'); print(folder, flush=True); time.sleep(600)"
)
ELSEWHERE = {
    "temporary.py": "is the place",
    "confine.py": "holds no lock, as a worker lives in it; its parent folder is a swept one",
    "intake.py": "within the course, on the file system that it copies to",
    "demo.py": "stays on purpose: it says where the course is",
    "walled.py": "sweeps and holds, over forks",
    "sandbox.py": "sweeps and holds, as long as the worker lives",
}
"""Modules that make temporary folders themselves, and why."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept where there is no flock")


@pytest.fixture(autouse=True)
def of_any_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders need not be old to be swept."""
    monkeypatch.setattr(temporary, "STALE_S", -1.0)


def test_a_folder_goes_with_its_block(tmp_path: Path) -> None:
    """Whatever was written, and also when the block fails."""
    with contextlib.suppress(KeyError), temporary.folder(PREFIX, str(tmp_path)) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("x")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_goes_at_the_next_and_not_before(tmp_path: Path) -> None:
    """The lock of a run that works keeps its folder; `kill -9` lets go of it."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        other = Path(run.stdout.readline().strip())
        with temporary.folder(PREFIX, str(tmp_path)):
            assert (other / "answers").exists()
        run.kill()
    assert other.exists()
    with temporary.folder(PREFIX, str(tmp_path)) as ours:
        assert list(tmp_path.iterdir()) == [ours]


def test_a_link_of_such_a_name_is_left_alone(tmp_path: Path) -> None:
    """Whoever can write there cannot have anything else removed."""
    target = tmp_path / "precious"
    target.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(target)
    temporary.sweep(PREFIX, str(tmp_path))
    assert target.is_dir()


def test_no_module_makes_folders_that_nobody_sweeps() -> None:
    """All go through `temporary`, or are named above with the reason."""
    makers = set()
    for path in Path(autograder.__file__).parent.rglob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
        if names & {"mkdtemp", "TemporaryDirectory"}:
            makers.add(path.name)
    assert makers == set(ELSEWHERE)
