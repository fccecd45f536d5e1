"""Submissions as students hand them in: damaged, foreign, doubled, huge, and in two files at once."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autograder.manifest import REST, Manifest, digest
from autograder.students import pair
from autograder.students.pair import PairConflict
from autograder.submission import Submission, UnreadableSubmission, read_notebook, read_script

RELEASE = Path(__file__).resolve().parents[2] / "assignments" / "kv_cache"
MANIFEST = Manifest.load(RELEASE)
NOTEBOOK: dict[str, Any] = json.loads((RELEASE / "kv_cache.ipynb").read_bytes())
LAST = len(NOTEBOOK["cells"])
POOL = 1 + next(number for number, cell in enumerate(NOTEBOOK["cells"]) if cell["metadata"].get("task") == "BlockPool")
"""Number of the cell of the block pool, counted from 1 as people do."""
SMALL: dict[str, Any] = {**NOTEBOOK, "cells": [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"][:6]}
CODE = "def kv_bytes_per_token(*args, **kwargs):\n    return 42\n"

Damage = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The release, as a student fetched it."""
    target = tmp_path / "kv_cache"
    shutil.copytree(RELEASE, target)
    return target


def task_cell(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    return next(cell for cell in notebook["cells"] if cell["metadata"].get("task") == name)


def write(path: Path, damage: Damage = lambda notebook: None, base: dict[str, Any] = NOTEBOOK) -> Path:
    """The release's notebook after `damage`."""
    notebook = copy.deepcopy(base)
    damage(notebook)
    path.write_text(json.dumps(notebook))
    return path


def read(tmp_path: Path, damage: Damage) -> Submission:
    return read_notebook(write(tmp_path / "kv_cache.ipynb", damage), MANIFEST)


def cell(source: str, **metadata: Any) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [], "execution_count": None}


UNTOUCHED = read_notebook(RELEASE / "kv_cache.ipynb", MANIFEST)


class TestNotebook:
    """Notebooks that can be graded."""

    def test_the_release_holds_every_task(self) -> None:
        """The notebook as released is a submission with all cells and nothing to remark."""
        assert set(UNTOUCHED.answers) == {*MANIFEST.tasks, "helpers"}
        assert (UNTOUCHED.missing, UNTOUCHED.review, UNTOUCHED.remarks) == ({}, (), ())
        hashes = {name: digest(source) for name, source in UNTOUCHED.answers.items()}
        assert hashes | {REST: UNTOUCHED.rest} == MANIFEST.stubs
        assert [name for name, _ in UNTOUCHED.module(MANIFEST)] == list(MANIFEST.cells)

    def test_notebook_and_script_of_the_release_are_one_submission(self) -> None:
        """Both files of the pair give the same hash."""
        assert read_script(RELEASE / "kv_cache.py", MANIFEST).hash == UNTOUCHED.hash

    def test_the_hash_depends_on_graded_content_only(self, tmp_path: Path) -> None:
        """Outputs, ids, prose, own cells and the given cell change nothing; one character of an answer does."""

        def cosmetic(notebook: dict[str, Any]) -> None:
            for each in notebook["cells"]:
                each["id"] = "x" + each["id"]
                if each["cell_type"] == "markdown":
                    each["source"] = "other prose"
                else:
                    each["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "hello"}]
                    each["execution_count"] = 9
            notebook["cells"].insert(0, cell("my_plot = 1"))
            notebook["metadata"]["kernelspec"] = {"name": "other"}

        assert read(tmp_path, cosmetic).hash == UNTOUCHED.hash
        edits = [lambda nb, name=name: task_cell(nb, name).update(source=CODE) for name in MANIFEST.tasks]
        hashes = {read(tmp_path, edit).hash for edit in edits}
        assert len(hashes | {UNTOUCHED.hash}) == len(MANIFEST.tasks) + 1

    def test_source_may_be_a_text_or_a_list_of_lines(self, tmp_path: Path) -> None:
        """nbformat allows both."""
        one = read(tmp_path, lambda nb: task_cell(nb, "BlockPool").update(source="a = 1\nb = 2\n"))
        other = read(tmp_path, lambda nb: task_cell(nb, "BlockPool").update(source=["a = 1\n", "b = 2\n"]))
        assert one.hash == other.hash

    def test_an_edited_given_cell_is_not_graded(self, tmp_path: Path) -> None:
        """The course's own cell is taken from the release, and the student is told."""

        def edit(notebook: dict[str, Any]) -> None:
            notebook["cells"][1]["source"] = "def check_count(*args, **kwargs): pass"

        found = read(tmp_path, edit)
        assert found.hash == UNTOUCHED.hash
        assert dict(found.module(MANIFEST))["kv_spec"] == MANIFEST.given["kv_spec"]
        assert found.remarks == ("You changed the course's own cell 2; grading uses the original.",)

    def test_a_deleted_task_is_missing_with_a_sentence(self, tmp_path: Path) -> None:
        """A task without a cell is told apart from one that is wrong; the others are graded."""
        found = read(tmp_path, lambda nb: nb["cells"].remove(task_cell(nb, "BlockPool")))
        assert set(found.missing) == {"BlockPool"}
        assert "deleted or renamed" in found.missing["BlockPool"]
        assert found.review == ()
        assert found.hash != UNTOUCHED.hash

    def test_deleted_check_and_given_cells_do_not_matter(self, tmp_path: Path) -> None:
        """Locked cells are the course's own: without them the same code is graded."""

        def delete(notebook: dict[str, Any]) -> None:
            notebook["cells"] = [each for each in notebook["cells"] if not {"check", "given"} & each["metadata"].keys()]

        assert read(tmp_path, delete).hash == UNTOUCHED.hash

    def test_an_equal_duplicate_is_remarked(self, tmp_path: Path) -> None:
        """The same cell twice is no doubt about what counts."""
        found = read(tmp_path, lambda nb: nb["cells"].append(copy.deepcopy(task_cell(nb, "BlockPool"))))
        assert found.hash == UNTOUCHED.hash
        assert found.remarks == ("The cell for 'BlockPool' stands 2 times.",)

    def test_different_duplicates_wait_for_a_person(self, tmp_path: Path) -> None:
        """Two different cells for one task are not guessed between."""

        def double(notebook: dict[str, Any]) -> None:
            notebook["cells"].append({**copy.deepcopy(task_cell(notebook, "BlockPool")), "source": CODE})

        found = read(tmp_path, double)
        assert len(found.review) == 1
        assert f"different cells for 'BlockPool': cell {POOL} and cell {LAST + 1}" in found.review[0]

    @pytest.mark.parametrize("metadata", [{}, {"task": "Renamed", "nbgrader": {"grade_id": "Renamed"}}])
    def test_a_cell_that_lost_its_identity_waits_for_a_person(self, tmp_path: Path, metadata: dict[str, Any]) -> None:
        """A copied or renamed cell that still defines the task is no zero."""
        source = "class BlockPool:\n    pass"
        found = read(tmp_path, lambda nb: task_cell(nb, "BlockPool").update(source=source, metadata=metadata))
        assert "BlockPool" in found.missing
        assert any(f"cell {POOL} defines that name" in reason for reason in found.review)

    @pytest.mark.parametrize("release", ["0" * 16, None, 5, ["x"]])
    def test_another_release_waits_for_a_person(self, tmp_path: Path, release: Any) -> None:
        """Code for an older release is not graded against the new one unasked."""
        found = read(tmp_path, lambda nb: nb["metadata"]["autograder"].update(release=release))
        assert len(found.review) == 1
        assert ("older release" if isinstance(release, str) else "no known release") in found.review[0]

    def test_names_that_only_ungraded_cells_define_are_known(self, tmp_path: Path) -> None:
        """A helper in an own cell is found with its place; one that a graded cell defines too is not listed."""

        def edit(notebook: dict[str, Any]) -> None:
            notebook["cells"].append(
                cell("import numpy as np, os.path\ndef helper(): inner = 1\nmine, hashlib = 1, 2\nfor i in []: j = 1")
            )
            task_cell(notebook, "BlockPool")["source"] = "mine = 3"

        elsewhere = read(tmp_path, edit).elsewhere
        ours = {name: where for name, where in elsewhere.items() if where == f"cell {LAST + 1}"}
        assert set(ours) == {"np", "os", "helper", "i", "j"}

    def test_half_a_surrogate_pair_is_graded_like_any_other_character(self, tmp_path: Path) -> None:
        """JSON can escape what no text file can hold; the answer stays readable, hashable and sendable."""
        found = read(tmp_path, lambda nb: task_cell(nb, "BlockPool").update(source="x = '\ud83d'"))
        assert found.answers["BlockPool"] == "x = '?'"
        assert len(found.hash) == 64

    def test_200_mb_of_output_are_read_past(self, tmp_path: Path) -> None:
        """A notebook full of prints is graded as if it had none, in seconds."""
        path = tmp_path / "kv_cache.ipynb"
        before, after = json.dumps(NOTEBOOK).split('"outputs": []', 1)
        output = json.dumps({"output_type": "stream", "name": "stdout", "text": "x" * (10 << 20)})
        try:
            with open(path, "w") as file:
                file.write(f'{before}"outputs": [{output}')
                for _ in range(19):
                    file.write(f", {output}")
                file.write(f"]{after}")
            assert path.stat().st_size > 200 << 20
            began = time.monotonic()
            assert read_notebook(path, MANIFEST).hash == UNTOUCHED.hash
            assert time.monotonic() - began < 10
        finally:
            path.unlink(missing_ok=True)

    def test_huge_ungraded_cells_are_not_parsed(self, tmp_path: Path) -> None:
        """Megabytes of pasted code beside the graded cells cost neither minutes nor gigabytes."""
        began = time.monotonic()
        found = read(tmp_path, lambda nb: nb["cells"].extend([cell("x = 1\n" * 100_000)] * 30))
        assert found.hash == UNTOUCHED.hash
        assert time.monotonic() - began < 3

    def test_huge_graded_cells_are_refused(self, tmp_path: Path) -> None:
        """Megabytes in a graded cell get a sentence."""
        with pytest.raises(UnreadableSubmission, match="hold more than 1,048,576 characters"):
            read(tmp_path, lambda nb: task_cell(nb, "BlockPool").update(source="x = 1\n" * 200_000))

    @pytest.mark.parametrize(
        "source", ["(" * 5000, "-" * 100_000 + "1", "x = (" * 300, "\0", "x" * 200_000, "if 1:\n" * 200]
    )
    def test_source_that_no_parser_survives_is_still_a_submission(self, tmp_path: Path, source: str) -> None:
        """Code that Python cannot even parse is graded (and fails there)."""
        found = read(
            tmp_path, lambda nb: [task_cell(nb, "BlockPool").update(source=source), nb["cells"].append(cell(source))]
        )
        assert found.answers["BlockPool"] == source


class TestUnreadable:
    """What is no submission gets a sentence: what, why, what next."""

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "not valid JSON"),
            (b"not json", "not valid JSON"),
            (b"<<<<<<< HEAD\n{}", "merge conflict"),
            (json.dumps(NOTEBOOK).encode()[:-100], "not valid JSON"),
            (b"[" * 1_000_000, "not valid JSON"),
            (b'{"cells": [' + b"9" * 5000 + b"]}", "not valid JSON"),
            (b'{"a": "\xff"}', "byte 7 is not valid UTF-8"),
            (b"[]", "no list of cells"),
            (b"null", "no list of cells"),
            (b'{"cells": {}}', "no list of cells"),
            (b'{"worksheets": []}', "format 4"),
            (b'{"cells": []}', "none of the cells of 'kv_cache'"),
        ],
        ids=lambda value: repr(value)[:30],
    )
    def test_broken_files_are_refused_with_a_remedy(self, tmp_path: Path, content: bytes, says: str) -> None:
        """Each kind of damage is named, together with what to do."""
        path = tmp_path / "kv_cache.ipynb"
        path.write_bytes(content)
        with pytest.raises(UnreadableSubmission, match=says) as error:
            read_notebook(path, MANIFEST)
        assert "hand" in str(error.value).lower()
        assert len(str(error.value)) < 500

    def test_another_assignment_is_refused(self, tmp_path: Path) -> None:
        """A notebook of another assignment is named as such, and never a zero."""
        with pytest.raises(UnreadableSubmission, match="of the assignment 'other', not of 'kv_cache'"):
            read(tmp_path, lambda nb: nb["metadata"]["autograder"].update(assignment="other"))

    def test_only_prose_is_refused(self, tmp_path: Path) -> None:
        """A notebook with markdown cells only, without our metadata, is not ours."""

        def prose(notebook: dict[str, Any]) -> None:
            notebook["cells"] = [each for each in notebook["cells"] if each["cell_type"] == "markdown"]
            notebook["metadata"] = {}

        with pytest.raises(UnreadableSubmission, match="none of the cells"):
            read(tmp_path, prose)

    def test_only_prose_in_our_notebook_misses_every_task(self, tmp_path: Path) -> None:
        """Our notebook with all code deleted is a submission in which everything is missing."""
        found = read(tmp_path, lambda nb: nb.update(cells=[{"cell_type": "markdown", "source": "x", "metadata": {}}]))
        assert set(found.missing) == set(MANIFEST.tasks)

    def test_links_are_not_followed(self, tmp_path: Path) -> None:
        """A link to a file of the grader is not read."""
        (tmp_path / "kv_cache.ipynb").symlink_to(RELEASE / "kv_cache.ipynb")
        with pytest.raises(UnreadableSubmission, match="not a regular file"):
            read_notebook(tmp_path / "kv_cache.ipynb", MANIFEST)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
    def test_pipes_devices_and_folders_are_not_waited_for(self, tmp_path: Path) -> None:
        """Nothing but a regular file is opened: a pipe would block the run, a device would never end."""
        path = tmp_path / "kv_cache.ipynb"
        os.mkfifo(path)
        for each in (path, Path("/dev/zero"), tmp_path):
            for reader in (read_notebook, read_script):
                with pytest.raises(UnreadableSubmission, match="not a regular file"):
                    reader(each, MANIFEST)
        with pytest.raises(UnreadableSubmission, match="cannot be read: No such file"):
            read_notebook(tmp_path / "none.ipynb", MANIFEST)

    @pytest.mark.parametrize(("name", "reader"), [("kv_cache.ipynb", read_notebook), ("kv_cache.py", read_script)])
    def test_enormous_files_are_not_read(self, tmp_path: Path, name: str, reader: Any) -> None:
        """A file beyond the limit is refused by its size alone."""
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(UnreadableSubmission, match="at most"):
            reader(tmp_path / name, MANIFEST)

    @pytest.mark.parametrize(
        "text",
        [
            "# ---\n# jupyter:\n#   autograder: 5\n# ---\n",
            "# ---\n# jupyter:\n#   autograder: [[1]]\n# ---\n",
            "# ---\n# jupyter: 5\n# ---\n",
            "# ---\n# jupyter: {{{\n# ---\n",
            "# %% task=5\nx",
            "# %% task=[\nx",
            "# %%\n" * 50,
            "\0",
            "",
        ],
    )
    def test_a_damaged_script_is_a_submission_or_a_sentence(self, tmp_path: Path, text: str) -> None:
        """Broken heads of a `.py` file raise nothing else."""
        (tmp_path / "kv_cache.py").write_text(text + '\n# %% task="BlockPool"\nx = 1\n')
        with contextlib.suppress(UnreadableSubmission):
            assert read_script(tmp_path / "kv_cache.py", MANIFEST).review, "no release is named"

    def test_a_script_in_another_encoding_is_a_sentence(self, tmp_path: Path) -> None:
        """Latin-1 is not guessed."""
        (tmp_path / "kv_cache.py").write_bytes("# é".encode("latin-1"))
        with pytest.raises(UnreadableSubmission, match=r"not valid UTF-8 \(byte 2\)"):
            read_script(tmp_path / "kv_cache.py", MANIFEST)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from([*MANIFEST.tasks, "\ud800", "helpers"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from nodes(value, (*path, key))


PATHS = [path for path in nodes(SMALL) if path]


@given(st.lists(st.tuples(st.sampled_from(PATHS), json_values), min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_any_json_in_any_field_is_a_submission_or_a_sentence(
    tmp_path: Path, changes: list[tuple[tuple[Any, ...], Any]]
) -> None:
    """Whatever stands anywhere in the notebook, reading gives a submission with a hash or `UnreadableSubmission`."""

    def mutate(notebook: dict[str, Any]) -> None:
        for path, value in changes:
            part: Any = notebook
            try:
                for step in path[:-1]:
                    part = part[step]
                part[path[-1]] = value
            except (KeyError, IndexError, TypeError, AttributeError):
                continue  # an earlier change took that place away

    path = write(tmp_path / "kv_cache.ipynb", mutate, SMALL)
    try:
        found = read_notebook(path, MANIFEST)
    except UnreadableSubmission:
        return
    assert len(found.hash) == 64
    assert set(found.answers) | set(found.missing) >= set(MANIFEST.tasks)
    assert not set(found.answers) & set(found.missing)
    for name, source in found.module(MANIFEST):
        assert len(source.encode()) < 1 << 22, "without lone surrogates, which do not encode"
        assert name in MANIFEST.cells


class TestPair:
    """Two files, of which either may be edited."""

    def test_untouched_files_agree(self, folder: Path) -> None:
        """As released, both hold the same code and none is stale."""
        found = pair.read(folder, MANIFEST)
        assert (found.path.name, found.stale, found.submission.hash) == ("kv_cache.ipynb", None, UNTOUCHED.hash)

    def test_the_file_that_changed_counts(self, folder: Path) -> None:
        """An edit of one file is read from it, and the other one is told to be stale."""
        edit_script(folder, 1)
        found = pair.read(folder, MANIFEST)
        assert (found.path.name, found.stale) == ("kv_cache.py", folder / "kv_cache.ipynb")
        assert "return 1" in found.submission.answers["kv_bytes_per_token"]
        shutil.copy(RELEASE / "kv_cache.py", folder)
        edit_notebook(folder, 2)
        found = pair.read(folder, MANIFEST)
        assert (found.path.name, found.stale) == ("kv_cache.ipynb", folder / "kv_cache.py")
        assert "return 2" in found.submission.answers["kv_bytes_per_token"]

    def test_two_different_edits_are_a_conflict(self, folder: Path) -> None:
        """Nothing is guessed, and the sentence names both files, the task and the command."""
        edit_script(folder, 1)
        edit_notebook(folder, 2)
        with pytest.raises(PairConflict, match=r"both changed.*kv_bytes_per_token.*autograder sync"):
            pair.read(folder, MANIFEST)

    def test_two_equal_edits_are_none(self, folder: Path) -> None:
        """The same code in both files is no conflict."""
        edit_script(folder, 1)
        edit_notebook(folder, 1)
        assert pair.read(folder, MANIFEST).stale is None

    def test_an_edit_outside_the_graded_cells_counts_for_the_pair_and_not_for_the_grade(self, folder: Path) -> None:
        """Notes in one file are carried over, and are never overwritten by a task solved in the other one."""
        script = folder / "kv_cache.py"
        script.write_text(script.read_text(encoding="utf-8") + "\n# %%\nnotes = 'mine'\n", encoding="utf-8")
        found = pair.read(folder, MANIFEST)
        assert (found.path.name, found.stale) == ("kv_cache.py", folder / "kv_cache.ipynb")
        edit_notebook(folder, 2)
        with pytest.raises(PairConflict, match="cells that are not graded"):
            pair.read(folder, MANIFEST)
        assert "return 2" in pair.read(folder, MANIFEST, graded_only=True).submission.answers["kv_bytes_per_token"]

    @pytest.mark.parametrize("counts", ["kv_cache.py", "kv_cache.ipynb"])
    def test_taking_one_side_ends_the_conflict_and_loses_nothing(self, folder: Path, counts: str) -> None:
        """After sync both files hold the chosen code, and what the other one held lies in its backup."""
        edit_script(folder, 1)
        edit_notebook(folder, 2)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        other = pair.take(folder / counts, MANIFEST)
        assert {other.name, counts} == {"kv_cache.py", "kv_cache.ipynb"}
        assert (folder / counts).read_bytes() == before[counts]
        assert (folder / f".{other.name}.bak").read_bytes() == before[other.name]
        found = pair.read(folder, MANIFEST)
        assert found.stale is None
        assert f"return {1 if counts == 'kv_cache.py' else 2}" in found.submission.answers["kv_bytes_per_token"]
        assert not list(folder.glob("*.writing"))

    def test_sync_from_the_script_keeps_what_only_notebooks_have(self, folder: Path) -> None:
        """Outputs of unchanged cells, nbgrader's metadata and the notebook's own stay in a valid notebook."""

        def run(notebook: dict[str, Any]) -> None:
            for number, each in enumerate(each for each in notebook["cells"] if each["cell_type"] == "code"):
                each["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [f"output {number}"]}]
                each["execution_count"] = number + 1

        path = write(folder / "kv_cache.ipynb", run)
        before = json.loads(path.read_bytes())
        edit_script(folder, 1)
        pair.take(folder / "kv_cache.py", MANIFEST)
        after = json.loads(path.read_bytes())
        nbformat.validate(after)
        assert after["metadata"]["autograder"] == before["metadata"]["autograder"]
        assert len(after["cells"]) == len(before["cells"])
        for old, new in zip(before["cells"], after["cells"], strict=True):
            assert new["metadata"] == old["metadata"]
            if old["metadata"].get("task") == "kv_bytes_per_token":
                assert "return 1" in "".join(new["source"])
            else:
                assert "".join(new["source"]) == "".join(old["source"])
                assert new.get("outputs") == old.get("outputs")

    def test_sync_there_and_back_changes_no_code(self, folder: Path) -> None:
        """Own cells, prose and answers survive the way through the other file, either way."""
        write(
            folder / "kv_cache.ipynb",
            lambda nb: [
                task_cell(nb, "BlockPool").update(source=CODE),
                nb["cells"].append({**cell("own = 1"), "id": "own"}),
            ],
        )
        before = json.loads((folder / "kv_cache.ipynb").read_bytes())
        pair.take(folder / "kv_cache.ipynb", MANIFEST)
        pair.take(folder / "kv_cache.py", MANIFEST)
        after = json.loads((folder / "kv_cache.ipynb").read_bytes())
        assert [(each["cell_type"], "".join(each["source"]).rstrip(), each["metadata"]) for each in after["cells"]] == [
            (each["cell_type"], "".join(each["source"]).rstrip(), each["metadata"]) for each in before["cells"]
        ]

    def test_after_an_agreement_the_next_edit_counts(self, folder: Path) -> None:
        """What both agreed on last is remembered, not the release."""
        edit_script(folder, 1)
        pair.take(folder / "kv_cache.py", MANIFEST)
        edit_notebook(folder, 3)
        found = pair.read(folder, MANIFEST)
        assert found.path.name == "kv_cache.ipynb"
        assert "return 3" in found.submission.answers["kv_bytes_per_token"]

    def test_one_file_alone_is_read(self, folder: Path) -> None:
        """Either file may be missing; both may not."""
        (folder / "kv_cache.py").rename(folder / "aside")
        assert pair.read(folder, MANIFEST).path.name == "kv_cache.ipynb"
        (folder / "kv_cache.ipynb").unlink()
        with pytest.raises(UnreadableSubmission, match=r"no kv_cache\.ipynb in this folder"):
            pair.read(folder, MANIFEST)
        (folder / "aside").rename(folder / "kv_cache.py")
        assert pair.read(folder, MANIFEST).path.name == "kv_cache.py"

    def test_a_broken_script_does_not_hide_the_notebook(self, folder: Path) -> None:
        """The notebook is what is handed in: it counts, and syncing keeps the broken script."""
        (folder / "kv_cache.py").write_bytes(b"\xff mine")
        found = pair.read(folder, MANIFEST)
        assert (found.path.name, found.stale) == ("kv_cache.ipynb", folder / "kv_cache.py")
        pair.take(found.path, MANIFEST)
        assert (folder / ".kv_cache.py.bak").read_bytes() == b"\xff mine"

    @pytest.mark.parametrize("state", [b"[" * 100_000, b"\xff", b"[]", b'{"BlockPool": {}}', b""])
    def test_a_damaged_memory_of_the_agreement_is_no_error(self, folder: Path, state: bytes) -> None:
        """`.pair.json` comes from the student's folder like the rest: anything may stand in it."""
        (folder / ".pair.json").write_bytes(state)
        edit_script(folder, 1)
        try:
            found = pair.read(folder, MANIFEST)
            assert found.path.name in ("kv_cache.py", "kv_cache.ipynb")
        except PairConflict:
            pass
        pair.take(folder / "kv_cache.py", MANIFEST)
        assert json.loads((folder / ".pair.json").read_bytes()).keys() == {*UNTOUCHED.answers, REST}

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
    def test_a_pipe_as_memory_of_the_agreement_is_not_waited_for(self, folder: Path) -> None:
        """A pipe named `.pair.json` does not stop the run."""
        os.mkfifo(folder / ".pair.json")
        edit_script(folder, 1)
        assert pair.read(folder, MANIFEST).path.name == "kv_cache.py"

    @pytest.mark.parametrize(
        "damage",
        [
            lambda nb: nb.pop("nbformat"),
            lambda nb: nb["cells"][6].update(outputs=5),
            lambda nb: nb["cells"][0].update(metadata=5),
            lambda nb: nb["cells"].append(7),
        ],
    )
    def test_a_sync_that_cannot_be_done_changes_nothing(self, folder: Path, damage: Damage) -> None:
        """A notebook that can be graded but not converted gets a sentence, and every file stays."""
        write(folder / "kv_cache.ipynb", damage)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for path in (folder / "kv_cache.ipynb", folder / "kv_cache.py"):
            with pytest.raises(UnreadableSubmission, match="Nothing was changed"):
                pair.take(path, MANIFEST)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def edit_script(folder: Path, number: int) -> None:
    path = folder / "kv_cache.py"
    head = '# %% task="kv_bytes_per_token"\n'
    text = path.read_text()
    assert text.count(head) == 1
    begin = text.index(head) + len(head)
    path.write_text(text[:begin] + CODE.replace("42", str(number)) + text[text.index("\n# %%", begin) :])


def edit_notebook(folder: Path, number: int) -> None:
    path = folder / "kv_cache.ipynb"
    notebook = json.loads(path.read_bytes())
    task_cell(notebook, "kv_bytes_per_token")["source"] = CODE.replace("42", str(number))
    path.write_text(json.dumps(notebook))
