"""`check("task")` in a real kernel."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from autograder import suite
from autograder.authoring import corpus

NAME = "kv_cache"


def execute(folder: Path, notebook: Any, *, error: bool = False) -> dict[str, Any]:
    """Run the notebook's cells up to the first check in `folder`; the outputs of that check's cell, by mime type."""
    last = next(number for number, cell in enumerate(notebook.cells) if "check" in cell.metadata)
    notebook.cells = notebook.cells[: last + 1]
    client = NotebookClient(notebook, timeout=60, allow_errors=True, resources={"metadata": {"path": str(folder)}})
    client.execute()
    (output,) = notebook.cells[-1].outputs
    assert output.output_type == ("error" if error else "execute_result"), output
    return dict(output.get("data", {}))


def fetched(folder: Path, answers: dict[str, str]) -> Any:
    """A fetched assignment whose notebook holds `answers`."""
    shutil.copytree(suite.repository() / "assignments" / NAME, folder)
    made = corpus.notebook(NAME, answers)
    nbformat.write(made, folder / f"{NAME}.ipynb")
    return made


def test_the_cell_shows_the_same_table_as_the_command(tmp_path: Path) -> None:
    """A solved task shows its public points as text and as HTML, once, and says which file was read."""
    made = fetched(tmp_path / NAME, corpus.reference(NAME).answers)
    data = execute(tmp_path / NAME, made)
    assert "3 of 3 public points" in data["text/plain"]
    assert f"read {NAME}.ipynb" in data["text/plain"]
    assert "3 of 3 points" in data["text/html"]
    assert "✓ PASSED" in data["text/html"]
    sentence = "Each layer stores one key and one value per KV head"
    assert sentence in data["text/plain"]
    assert sentence in data["text/html"]


def test_a_cell_can_choose_the_language(tmp_path: Path) -> None:
    """After `%env LANGUAGE=zh_TW`, as the release's README says, the table and the course's sentences are Chinese."""
    made = fetched(tmp_path / NAME, corpus.stub(NAME).answers)
    made.cells.insert(0, nbformat.v4.new_code_cell("%env LANGUAGE=zh_TW"))
    data = execute(tmp_path / NAME, made)
    for part in (
        "尚未實作。",
        "每一層為每個 KV head 存放一個 key",
        "✗ 未通過",
        'lang="zh-TW"',
        "讀取了 kv_cache.ipynb",
    ):
        assert part in data["text/html"]
    assert "公開檢查 0／3 分" in data["text/plain"]
    assert "Each layer stores" not in data["text/html"] + data["text/plain"]


def test_a_cell_that_was_run_and_not_saved_is_checked(tmp_path: Path) -> None:
    """The file still holds the stub, saved before the kernel was started: what was run since is what counts."""
    made = fetched(tmp_path / NAME, corpus.reference(NAME).answers)
    file = shutil.copy(suite.repository() / "assignments" / NAME / f"{NAME}.ipynb", tmp_path / NAME)
    os.utime(file, (time.time() - 60,) * 2)
    data = execute(tmp_path / NAME, made)
    assert "3 of 3 public points" in data["text/plain"]
    assert "Save" not in data["text/plain"]


def test_a_file_that_was_saved_since_is_read_and_the_difference_told(tmp_path: Path) -> None:
    """It holds the stub, and nobody knows which is newer: the student is told to save instead of being misled."""
    made = fetched(tmp_path / NAME, corpus.reference(NAME).answers)
    file = shutil.copy(suite.repository() / "assignments" / NAME / f"{NAME}.ipynb", tmp_path / NAME)
    os.utime(file, (time.time() + 3600,) * 2)
    data = execute(tmp_path / NAME, made)
    assert "Save (Ctrl+S), check again" in data["text/plain"]
    assert "Not implemented yet" in data["text/html"]


def test_validate_hears_of_a_check_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nbgrader's Validate takes whatever is no error for a success: there a failure is one, with our text for a traceback."""
    monkeypatch.setenv("NBGRADER_EXECUTION", "validate")
    made = fetched(tmp_path / NAME, dict(next(entry for entry in corpus.load(NAME) if entry.name == "stub").answers))
    execute(tmp_path / NAME, made, error=True)
    (output,) = made.cells[-1].outputs
    assert output.ename == "ChecksFailed"
    assert "Not implemented yet" in "".join(output.traceback)
    assert "selfcheck" not in "".join(output.traceback)


def test_what_cannot_be_checked_is_said_in_a_sentence(tmp_path: Path) -> None:
    """An unknown task, and a notebook outside its folder, give no traceback."""
    made = fetched(tmp_path / NAME, corpus.reference(NAME).answers)
    check = next(cell for cell in made.cells if "check" in cell.metadata)
    check.source = 'from autograder import check\n\ncheck("nonsense")'
    assert "There is no task 'nonsense'" in execute(tmp_path / NAME, made)["text/plain"]
    check.source = 'import os; os.chdir("/")\nfrom autograder import check\n\ncheck("BlockPool")'
    assert "holds no manifest.json" in execute(tmp_path / NAME, made)["text/plain"]
