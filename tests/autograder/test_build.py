"""Building releases: deterministic, true to the suite, and without anything that only the solution may say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from autograder import suite
from autograder.authoring import build
from autograder.manifest import BEGIN, Manifest

NAME = "kv_cache"
CANARY = "canary_5f1d7c2e"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a build reads, to be damaged."""
    real = suite.repository()
    root = tmp_path / "repository"
    for folder in ("solutions", "tests/grading", "assignments"):
        shutil.copytree(real / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("AUTOGRADER_REPOSITORY", str(root))
    return root


def edit(path: Path, old: str, new: str) -> None:
    """Replace text that must be there."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} no longer holds {old!r}; the test needs another place to edit"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_committed_releases_are_what_a_build_gives() -> None:
    """`assignments/` holds, byte for byte, what `solutions/` builds."""
    assert suite.names()
    for name in suite.names():
        assert build.differences(name) == []


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """Neither time, nor hash seed, nor time zone gets into a release."""
    code = f"from pathlib import Path; from autograder.authoring import build; build.build({NAME!r}, Path('OUT'))"
    for number, (seed, zone) in enumerate((("1", "UTC"), ("2", "Asia/Taipei"))):
        out = tmp_path / str(number)
        environment = {"PYTHONHASHSEED": seed, "TZ": zone, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        environment["PYTHONPATH"] = str(suite.repository())
        subprocess.run([sys.executable, "-c", code.replace("'OUT'", repr(str(out)))], env=environment, check=True)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / str(number) / NAME).iterdir()} for number in range(2)
    )
    assert first == second


def test_points_of_grade_cells_are_the_sums_of_the_suite() -> None:
    """No number of points is written twice."""
    notebook = nbformat.read(suite.repository() / "assignments" / NAME / f"{NAME}.ipynb", as_version=4)
    points = {
        cell.metadata["check"]: cell.metadata["nbgrader"]["points"]
        for cell in notebook.cells
        if "check" in cell.metadata
    }
    assert points == {task.name: task.points for task in suite.load_assignment(NAME)}


def test_notebook_and_script_of_a_release_hold_the_same_cells() -> None:
    """A student may start from either file."""
    from autograder.submission import read_notebook, read_script

    folder = suite.repository() / "assignments" / NAME
    manifest = Manifest.load(folder)
    notebook = read_notebook(folder / f"{NAME}.ipynb", manifest)
    script = read_script(folder / f"{NAME}.py", manifest)
    assert notebook.hash == script.hash
    assert not notebook.review


def test_a_release_names_no_hidden_check() -> None:
    """Students see how many points hidden checks have, and nothing else of them."""
    hidden = [check.name for check in suite.load_assignment(NAME).checks if check.hidden]
    for path in (suite.repository() / "assignments" / NAME).iterdir():
        text = path.read_text(encoding="utf-8")
        assert not [name for name in hidden if name in text], path.name


def test_a_solution_outside_its_markers_is_refused(repository: Path, tmp_path: Path) -> None:
    """A line of the solution that also reaches the release stops the build, and nothing is written."""
    solution = repository / "solutions" / f"{NAME}.py"
    text = solution.read_text(encoding="utf-8")
    begin = text.index(BEGIN)
    line = next(line for line in text[begin:].splitlines()[1:] if len(line.strip()) > build.LEAK_LENGTH)
    public = repository / "tests" / "grading" / NAME / "test_public.py"
    public.write_text(public.read_text(encoding="utf-8") + f"\n\ndef helper():\n    {line.strip()}\n", encoding="utf-8")
    with pytest.raises(build.LeakError, match="shows a line of the solution"):
        build.build(NAME, tmp_path / "out")
    assert not (tmp_path / "out" / NAME).exists()


def test_a_hidden_check_named_in_the_handout_is_refused(repository: Path, tmp_path: Path) -> None:
    """The name of a hidden check tells what it looks for."""
    hidden = next(check.name for check in suite.load_assignment(NAME).checks if check.hidden)
    edit(repository / "solutions" / f"{NAME}.py", "# %% [markdown]\n", f"# %% [markdown]\n# See {hidden}.\n")
    with pytest.raises(build.LeakError, match=hidden):
        build.build(NAME, tmp_path / "out")


def test_a_solution_file_that_contradicts_the_suite_is_refused(repository: Path, tmp_path: Path) -> None:
    """A renamed task cell, an unknown head and a missing cell of helpers each get a sentence."""
    solution = repository / "solutions" / f"{NAME}.py"
    good = solution.read_text(encoding="utf-8")
    for old, new, words in (
        ('# %% task="BlockPool"', '# %% task="Pool"', "Pool"),
        ('# %% task="BlockPool"', '# %% tasks="BlockPool"', "unknown head"),
        ('# %% helpers="helpers"', "# %%", "exactly one cell"),
    ):
        solution.write_text(good, encoding="utf-8")
        edit(solution, old, new)
        with pytest.raises(build.BuildError, match=words):
            build.build(NAME, tmp_path / "out")


def test_check_reports_the_files_that_differ(repository: Path) -> None:
    """`build --check` names what is out of date, also files that should not be there."""
    edit(
        repository / "solutions" / f"{NAME}.py", "# %% [markdown]\n# #", "# %% [markdown]\n# Another beginning.\n#\n# #"
    )
    (repository / "assignments" / NAME / "stray.txt").write_text("left over", encoding="utf-8")
    assert build.differences(NAME) == [f"{NAME}.ipynb", f"{NAME}.py", "stray.txt"]


def test_a_change_of_prose_keeps_the_release_and_a_change_of_given_code_does_not(
    repository: Path, tmp_path: Path
) -> None:
    """Submissions of a release with a mended typo stay valid; those that build on other given code do not."""
    solution = repository / "solutions" / f"{NAME}.py"
    before = build.read_source(NAME).manifest.release
    edit(solution, "# %% [markdown]\n", "# %% [markdown]\n# A mended typo.\n")
    assert build.read_source(NAME).manifest.release == before
    edit(solution, '# %% given="kv_spec"\n', '# %% given="kv_spec"\n# other code\n')
    assert build.read_source(NAME).manifest.release != before


def test_canaries_reach_nothing_that_a_student_receives(repository: Path, tmp_path: Path) -> None:
    """Strings planted in solution, hidden checks, their messages, oracles and spec are in no released or returned file."""
    from autograder.authoring.corpus import notebook, reference, stub

    grading = repository / "tests" / "grading" / NAME
    answers = {
        "blank": stub(NAME).answers,
        "half": {**reference(NAME).answers, "BlockPool": stub(NAME).answers["BlockPool"]},
    }
    answers["wrong"] = {
        **reference(NAME).answers,
        "kv_cache_bytes": "def kv_cache_bytes(*args, **kwargs):\n    return 1\n",
    }
    edit(repository / "solutions" / f"{NAME}.py", BEGIN + "\n", f"{BEGIN}\n    {CANARY}_solution = 1\n")
    for file in ("test_hidden.py", "oracles.py", "spec.py"):
        path = grading / file
        path.write_text(path.read_text(encoding="utf-8") + f'\n{CANARY}_{path.stem} = "{CANARY}"\n', encoding="utf-8")
    with open(grading / "test_hidden.py", "a", encoding="utf-8") as hidden:
        hidden.write(
            "\n_plain = expect_equal\n\n\ndef expect_equal(value, expected, what):  # noqa\n"
            f'    _plain(value, expected, what + "{CANARY}")\n'
        )
    folder = tmp_path / "course"
    scripts = Path(sys.executable).parent

    def run(*command: str, code: int = 0) -> None:
        environment = {
            "PATH": f"{scripts}:/usr/bin:/bin",
            "HOME": str(Path.home()),
            "AUTOGRADER_REPOSITORY": str(repository),
        }
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr

    run("autograder", "build")
    run("autograder", "init", str(folder))
    for student, answer in answers.items():
        target = folder / "submitted" / student / NAME
        target.mkdir(parents=True)
        nbformat.write(notebook(NAME, answer), target / f"{NAME}.ipynb")
    run("autograder", "grade", NAME, "--course", str(folder), "--plain")
    run("nbgrader", "generate_feedback", NAME, f"--course-dir={folder}")
    stored = b"".join(path.read_bytes() for path in (folder / "results").rglob("*.json"))
    assert CANARY.encode() in stored, "no hidden check failed with the planted message, so this test shows nothing"
    received = [repository / "assignments", folder / "release", folder / "autograded", folder / "feedback"]
    files = [path for root in received for path in root.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".ipynb", ".html", ".py", ".json"}
    assert not [str(path) for path in files if CANARY.encode() in path.read_bytes()]
