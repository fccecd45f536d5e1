"""The store of results: whole files or none, whatever becomes of the disk or of the process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autograder import results
from autograder.finding import Finding, Outcome
from autograder.grade import score
from autograder.results import Refused, Result, StoreError
from autograder.spec import Assignment, Task, Threshold

SAMPLE: dict[str, Any] = {
    "assignment": "sample",
    "student": "ada",
    "source": "sample.ipynb",
    "submission_hash": "a" * 64,
    "submission_copy": "c" * 64,
    "suite_hash": "b" * 64,
    "release": "1",
    "framework": "0",
    "tier": "cpu",
    "seed": 7,
    "isolation": {"name": "namespaces", "level": 3, "walls": ["pid"], "refused": []},
    "machine": {"cpu": "a cpu", "cores": 2},
    "models": {},
    "seconds": 1.5,
    "withheld": [],
    "remarks": [],
    "spec": {"name": "sample", "title": "Sample", "tasks": []},
    "findings": [],
}
MAKE = f"""
import json, sys
from pathlib import Path
from autograder import results
result = results.Result(**json.loads({json.dumps(SAMPLE)!r}) | {{"remarks": ["x" * 200_000]}})
"""


def sample(**fields: Any) -> Result:
    return Result.model_validate(SAMPLE | fields)


def finding(**fields: Any) -> Finding:
    known: dict[str, Any] = {
        "check": "test_a",
        "task": "first",
        "outcome": Outcome.PASSED,
        "hidden": False,
        "sentence": "",
    }
    return Finding.model_validate(known | fields)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


text = st.text(st.characters(codec="utf-8"), max_size=20)
findings = st.builds(
    Finding,
    check=text,
    task=text,
    outcome=st.sampled_from(Outcome),
    hidden=st.booleans(),
    sentence=text,
    message=text,
    hint=text,
    value=st.none() | text,
    expected=st.none() | text,
    credit=st.none() | st.floats(),
    seconds=st.floats(),
    measurements=st.dictionaries(text, st.floats(), max_size=3),
)


class TestRoundTrip:
    """What is saved is what is loaded."""

    @given(st.lists(findings, max_size=4))
    def test_every_finding_comes_back(self, tmp_path_factory: pytest.TempPathFactory, stream: list[Finding]) -> None:
        """All fields survive, numbers that are none (NaN, infinity) included."""
        file = tmp_path_factory.mktemp("store") / "ada" / "x.json"
        result = sample(findings=stream)
        results.save(file, result)
        assert repr(results.load(file)) == repr(result), "repr, since NaN does not equal itself"

    def test_a_credit_that_is_no_number_never_becomes_full_points(self, tmp_path: Path) -> None:
        """A finding that earns nothing before it is stored earns nothing after."""
        task = Task(
            "first", "First", 1, {"test_b": 1}, {"test_a": 5}, {"test_a": {"cpu": Threshold(2.0, 1.0, "1", "x")}}
        )
        assignment = Assignment("sample", "Sample", (task,))
        results.save(tmp_path / "x.json", sample(findings=[finding(credit=math.nan)]))
        loaded = results.load(tmp_path / "x.json")
        assert loaded is not None
        assert score(assignment, loaded.findings).points == 0
        assert any("nan" in reason for reason in score(assignment, loaded.findings).withheld)

    def test_half_a_surrogate_pair_does_not_stop_the_run(self, tmp_path: Path) -> None:
        """Text that UTF-8 cannot hold is stored with a mark in its place."""
        results.save(tmp_path / "x.json", sample(findings=[finding(message="a\ud800b")]))
        loaded = results.load(tmp_path / "x.json")
        assert loaded is not None
        assert loaded.findings[0].message == "a?b"

    def test_saving_again_replaces(self, tmp_path: Path) -> None:
        """The same name holds the newest result, and no temporary file stays."""
        for seed in (1, 2):
            results.save(tmp_path / "x.json", sample(seed=seed))
        loaded = results.load(tmp_path / "x.json")
        assert loaded is not None
        assert loaded.seed == 2
        assert names(tmp_path) == ["x.json"]

    def test_names_tell_submissions_suites_and_tiers_apart(self) -> None:
        """Content, suite and machine tier each change the name; nothing can be shifted from one to the next."""
        keys = [
            results.key(*each) for each in [("a", "b", "cpu"), ("a", "b", "gpu"), ("a", "c", "cpu"), ("ab", "", "cpu")]
        ]
        assert len(set(keys)) == 4
        assert results.key("a", "b", "cpu") == keys[0]


class TestDamage:
    """Files that are not what was written are refused: never taken, never overlooked."""

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"null",
            b"[]",
            b"{}",
            b"\xff\xfe\x00",
            b"[" * 100_000,
            json.dumps(SAMPLE | {"seed": "x"}).encode(),
        ],
        ids=repr,
    )
    def test_foreign_content_is_refused(self, tmp_path: Path, content: bytes) -> None:
        """Broken, foreign or incomplete JSON, and what an older version wrote, is refused by name."""
        (tmp_path / "x.json").write_bytes(content[:200_000])
        with pytest.raises(Refused, match=r"x\.json.*no digest at its end"):
            results.load(tmp_path / "x.json")

    @pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"{\n", b"[" * 100_000, b"\xff\xfe\x00"], ids=repr)
    def test_foreign_content_with_a_good_digest_is_refused(self, tmp_path: Path, content: bytes) -> None:
        """A digest alone makes nothing a result: its content must be one of this version."""
        digest = hashlib.sha256(content).hexdigest()
        (tmp_path / "x.json").write_bytes(content + f',\n "digest": "{digest}"\n}}\n'.encode())
        with pytest.raises(Refused, match="another version"):
            results.load(tmp_path / "x.json")

    def test_every_truncation_is_refused(self, tmp_path: Path) -> None:
        """No beginning of a result passes for the whole."""
        file = tmp_path / "x.json"
        results.save(file, sample(findings=[finding(), finding(credit=0.5)]))
        whole = file.read_bytes()
        for length in [*range(0, len(whole), 7), len(whole) - 1]:
            file.write_bytes(whole[:length])
            with pytest.raises(Refused):
                results.load(file)
        file.write_bytes(whole)
        assert results.load(file) is not None

    def test_what_is_not_there_is_absent_and_what_cannot_be_read_is_refused(self, tmp_path: Path) -> None:
        """Missing files and folders are no result; a folder of that name and a dead or endless link are told."""
        (tmp_path / "folder.json").mkdir()
        (tmp_path / "dead.json").symlink_to(tmp_path / "nothing")
        (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
        (tmp_path / "file").write_text("")
        for name in ("none.json", "none/x.json", "file/x.json"):
            assert results.load(tmp_path / name) is None
        for name in ("folder.json", "dead.json", "loop.json"):
            with pytest.raises(Refused, match=name):
                results.load(tmp_path / name)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_a_closed_file_is_refused(self, tmp_path: Path) -> None:
        """A result without permission to read is told, not crashed on."""
        results.save(tmp_path / "x.json", sample())
        (tmp_path / "x.json").chmod(0)
        with pytest.raises(Refused, match="Permission denied"):
            results.load(tmp_path / "x.json")

    @pytest.mark.parametrize("where", [(), ("isolation",), ("spec",), ("findings", 0)])
    def test_the_schema_rejects_unknown_fields(self, where: tuple[Any, ...]) -> None:
        """A field that this version does not know, at any level, makes the whole file foreign."""
        data = json.loads(sample(findings=[finding()]).model_dump_json())
        Result.model_validate(data)
        part = data
        for step in where:
            part = part[step]
        part["bonus"] = 100
        with pytest.raises(ValidationError, match="bonus"):
            Result.model_validate(data)

    def test_another_version_of_the_schema_is_foreign(self) -> None:
        """A result of a later framework is not half understood."""
        for version in (1, 2, 4):
            with pytest.raises(ValidationError):
                sample(schema_version=version)
        assert Result.model_json_schema()["additionalProperties"] is False


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 64 KiB at `folder`; needs the right to mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root on Linux; the limit on file sizes is tested instead")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class TestFullDisk:
    """Writing fails: an error that says why, and nothing lost."""

    def test_a_full_disk_loses_nothing(self, tmp_path: Path) -> None:
        """The result before is whole, no temporary file is left, and with room the same call succeeds."""
        disk = tmp_path / "disk"
        with small_disk(disk):
            file = disk / "sample" / "ada" / "x.json"
            results.save(file, sample(seed=1))
            with pytest.raises(StoreError, match=r"ada cannot be stored: No space left.*run the same command again"):
                results.save(file, sample(seed=2, remarks=["x" * 200_000]))
            assert (loaded := results.load(file)) is not None
            assert loaded.seed == 1
            assert names(disk) == ["x.json"]
            results.save(file, sample(seed=3))
            assert (loaded := results.load(file)) is not None
            assert loaded.seed == 3

    @pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
    def test_a_limit_on_file_sizes_loses_nothing(self, tmp_path: Path) -> None:
        """A write that stops half-way leaves the old result and no other file."""
        file = tmp_path / "ada" / "x.json"
        results.save(file, sample(seed=1))
        code = MAKE + (
            "import resource, signal\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
            "try: results.save(Path(sys.argv[1]), result)\n"
            "except results.StoreError as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
        assert "cannot be stored: File too large" in done.stdout
        assert (loaded := results.load(file)) is not None
        assert loaded.seed == 1
        assert names(tmp_path) == ["x.json"]

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_a_closed_folder_is_a_sentence(self, tmp_path: Path) -> None:
        """Missing permission is told with the folder's name."""
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(StoreError, match="Permission denied"):
                results.save(tmp_path / "x.json", sample())
        finally:
            tmp_path.chmod(0o700)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
    def test_a_folder_that_nobody_can_write_is_a_sentence(self) -> None:
        """Even for root there are folders without room for a file."""
        with pytest.raises(StoreError, match=r"ada cannot be stored: .*/proc/self"):
            results.save(Path("/proc/self/results/x.json"), sample())

    def test_a_file_in_the_way_is_a_sentence(self, tmp_path: Path) -> None:
        """A file where the student's folder should be is named, not overwritten."""
        (tmp_path / "ada").write_text("mine")
        with pytest.raises(StoreError, match="cannot be stored"):
            results.save(tmp_path / "ada" / "x.json", sample())
        assert (tmp_path / "ada").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_a_killed_writer_leaves_whole_files_only(tmp_path: Path) -> None:
    """kill -9 in the middle of many saves: what has a name is whole, what was being written is swept."""
    code = MAKE + (
        "print('ready', flush=True)\n"
        "for seed in range(10 ** 9):\n"
        "    results.save(Path(sys.argv[1]) / f'{seed % 20}.json', result.model_copy(update={'seed': seed}))\n"
    )
    interrupted = 0
    for turn in range(12):
        folder = tmp_path / str(turn % 3)
        writer = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        with writer.stdout:
            writer.stdout.readline()
            time.sleep(0.05 + turn * 0.003)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        interrupted += sum(name.startswith(results.PREFIX) for name in names(folder))
        for file in folder.glob("*.json"):
            loaded = results.load(file)
            assert loaded is not None
            assert loaded.seed % 20 == int(file.stem)
            assert len(loaded.remarks[0]) == 200_000
        left = sum(name.startswith(results.PREFIX) for name in names(folder))
        assert results.sweep(folder) == left
        assert not any(name.startswith(results.PREFIX) for name in names(folder))
        if interrupted and turn >= 2:
            break
    assert interrupted, "no kill met a write; the test has shown nothing"
