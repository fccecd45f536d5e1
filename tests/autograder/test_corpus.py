"""The corpus: heads that say what must happen, and a run that notices when something else does."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from autograder import suite
from autograder.authoring import corpus
from autograder.authoring.corpus import Canaries, CorpusError, Leftovers
from autograder.finding import Finding, Outcome
from autograder.grade import Graded, score
from autograder.judging.remote import RunningSubmission
from autograder.sandboxing.sandbox import NamespaceSandbox, ProcessSandbox, Sandbox

if TYPE_CHECKING:
    from conftest import Course

    from autograder.results import Result

NAME = "kv_cache"
ROWS = {
    *(f"T{number}" for number in range(1, 17)),
    *(f"D{number}" for number in range(1, 24)),
    *(f"V{number}" for number in range(1, 25)),
    *(f"S{number}" for number in range(1, 14)),
    "K1",
}
"""The list of known attacks."""


# ------------------------------------------------------------------------------------------------ heads


SUBMISSIONS = suite.repository() / "tests" / "submissions"


def test_every_known_attack_has_a_file_or_a_reason() -> None:
    """Rows are attacked by a hostile file of some assignment, or named in the corpus's README with the reason why not."""
    names = [path.name for path in (suite.repository() / "assignments").iterdir() if (SUBMISSIONS / path.name).is_dir()]
    tried = {row for name in names for entry in corpus.load(name) if entry.kind == "hostile" for row in entry.rows}
    readme = (SUBMISSIONS / "README.md").read_text(encoding="utf-8")
    table = [line.split("|")[1:3] for line in readme.splitlines() if re.match(r"\| [TDVKS]\d", line)]
    left_out = {row for rows, _ in table for row in rows.split()}
    assert len(names) >= 9
    assert tried <= ROWS
    assert left_out <= ROWS
    assert ROWS - tried - left_out == set()
    assert tried & left_out == set(), "these have a file now: take them out of the README's table"


def test_reasons_name_files_that_are_there() -> None:
    """Whatever looks like a path in the README's table is a file of the corpus or a test."""
    readme = (SUBMISSIONS / "README.md").read_text(encoding="utf-8")
    named = [
        name for line in readme.splitlines() if re.match(r"\| [TDVKS]\d", line) for name in re.findall(r"`(.+?)`", line)
    ]
    assert named
    for name in named:
        places = (SUBMISSIONS / f"{name}.py", SUBMISSIONS / NAME / f"{name}.py", Path(__file__).parent / name)
        assert any(place.is_file() for place in places), name


def test_honest_twins_name_the_attack_that_they_look_like() -> None:
    """There are at least 30 of them, and each is the twin of a known attack."""
    twins = [entry for entry in corpus.load(NAME) if entry.kind == "honest"]
    assert len(twins) >= 30
    assert all(set(entry.rows) <= ROWS and entry.rows and not entry.fails for entry in twins)


@pytest.mark.parametrize(
    ("kind", "head", "says"),
    [
        ("right", "", "must say what it is"),
        ("right", "Right.\n\nfails: test_bytes_latent", "must not have a line `fails:`"),
        ("wrong", "Wrong.", "must name the checks that it fails"),
        ("wrong", "Wrong.\n\nfails: test_nothing", "'test_nothing', which is no check"),
        ("hostile", "Bad.\n\nfails: *", "`attack: ROW ...` and `stopped by:"),
        ("hostile", "Bad.\n\nattack: V1\nstopped by: P, so.", "`changes nothing`"),
        ("hostile", "Bad.\n\nfails: *\nchanges nothing\nattack: V1\nstopped by: P, so.", "not both"),
        ("honest", "Good.", "`twin of: ROW ...`"),
        ("wrong", "Wrong.\n\nfails: *\nbased on: nowhere", "based on 'nowhere'"),
        ("wrong", 'Wrong.\n\nfails: *\n"""\n# %% task="nothing"\nx = 1\n"""', "which the assignment has not"),
    ],
)
def test_a_head_that_is_none_is_told(tmp_path: Path, kind: str, head: str, says: str) -> None:
    """A file whose head leaves open what must happen stops the run, with a sentence."""
    path = tmp_path / "made.py"
    path.write_text(f'"""{head}"""\n' if head else "x = 1\n")
    with pytest.raises(CorpusError, match=re.escape(says)):
        corpus._entry(path, kind, {"reference": corpus.reference(NAME)}, suite.load_assignment(NAME))


def test_a_head_is_read(tmp_path: Path) -> None:
    """Patterns stand for several checks, and what a file leaves out comes from the one that it is based on."""
    path = tmp_path / "made.py"
    head = "Bad.\n\nfails: test_cache_*\nfails: test_bytes_latent\nattack: V1 V3\nstopped by: P, so.\nbased on: stub\n"
    path.write_text(f'"""{head}"""')
    known = {"reference": corpus.reference(NAME), "stub": corpus.stub(NAME)}
    entry = corpus._entry(path, "hostile", known, suite.load_assignment(NAME))
    assert (len(entry.fails), entry.rows, entry.about) == (7, ("V1", "V3"), "Bad.")
    assert entry.answers == known["stub"].answers


# ------------------------------------------------------------------------------------------------ secrets

READS = """
import glob, os, re, socket
FORM = re.compile("autograder-canary-[0-9a-f]{32}")

def look():
    found = []
    for path in glob.glob("/tmp/.canary-*") + glob.glob("/dev/shm/.canary-*") + glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path) as file:
                found += FORM.findall(file.read())
        except OSError:
            pass
    try:
        names = re.findall("@(autograder-canary-[0-9]+)", open("/proc/net/unix").read())
    except OSError:
        names = []
    for name in names:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(chr(0) + name)
            found += FORM.findall(sock.recv(1000).decode())
    print(*found)
"""


@pytest.fixture
def world() -> Iterator[Path]:
    with corpus.private_world() as folder:
        yield folder


def read_by_a_thief(sandbox: Sandbox, world: Path) -> list[str]:
    """What `read` reports when a submission prints all secrets that it finds."""
    with Canaries(NAME, world) as canaries:
        running = RunningSubmission([("cell", READS)], corpus.overhear(sandbox, world / "heard"))
        try:
            running.look()
        finally:
            running.close()
        assert len(canaries.places) >= 10
        return canaries.read([world / "results", world / "heard"])


def test_secrets_that_are_read_are_noticed(world: Path) -> None:
    """Without walls a thief finds files, arguments and sockets, and each of them is reported."""
    read = read_by_a_thief(ProcessSandbox(), world)
    for place in ("a file in /tmp", "a file in /dev/shm", "bystander's arguments", "abstract socket", "a connection"):
        assert any(place in each for each in read), read


def test_a_sandbox_keeps_secrets(world: Path) -> None:
    """Behind walls the same thief finds nothing."""
    with NamespaceSandbox() as sandbox:
        assert read_by_a_thief(sandbox, world) == []


def test_secrets_are_removed(world: Path) -> None:
    """Nothing of them stays, wherever they were planted."""
    with Canaries(NAME, world) as canaries:
        planted = list(canaries._files)
        assert len(planted) >= 5
        assert all(path.exists() for path in planted)
    assert not any(path.exists() for path in planted)
    assert "AUTOGRADER_CANARY" not in os.environ


# ------------------------------------------------------------------------------------------------ what stays behind

DAEMON = "import os, time; os.setsid(); os.fork() and os._exit(0); time.sleep(60)"


def test_what_stays_behind_is_noticed(world: Path) -> None:
    """A daemon that changed its parent, a file, a socket and shared memory are each named; gone, they are not."""
    libc = ctypes.CDLL(None)
    file = Path("/tmp/hostile-test")
    left = Leftovers(NAME, world)
    subprocess.run([sys.executable, "-c", DAEMON], check=True)
    file.touch()
    (world / "tmp" / "forgotten").touch()
    shared = libc.shmget(0, 4096, 0o600 | 0o1000)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0hostile-{os.getpid()}")
        try:
            found = left.found(wait_s=0)
        finally:
            file.unlink()
            (world / "tmp" / "forgotten").unlink()
            libc.shmctl(shared, 0, None)
            for pid in re.findall(r"process (\d+) \(python", " ".join(found)):
                os.kill(int(pid), 9)
                os.waitpid(int(pid), 0)
    for what in ("process", f"file {file}", "forgotten", "System V shm", f"socket @hostile-{os.getpid()}"):
        assert [each for each in found if what in each], found
    assert Leftovers(NAME, world).found(wait_s=0) == []


# ------------------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("outcome", "amiss", "unmeasured"),
    [(Outcome.PASSED, 0, 0), (Outcome.INCONCLUSIVE, 0, 1), (Outcome.FAILED, 1, 0), (Outcome.SKIPPED, 1, 0)],
)
def test_a_speed_that_cannot_be_measured_is_counted_apart(outcome: Outcome, amiss: int, unmeasured: int) -> None:
    """A busy machine is no fault of a right submission, and no sign that it passes either."""
    loaded = suite.load(NAME)
    findings = tuple(
        Finding(
            check=check.name,
            task=check.task,
            outcome=outcome if check.performance else Outcome.PASSED,
            hidden=check.hidden,
            sentence="",
        )
        for check in loaded.assignment.checks
    )
    result = cast("Result", types.SimpleNamespace(findings=findings))
    graded = Graded("right-reference", result, score(loaded.assignment, findings))
    assert len(corpus.complaints(corpus.reference(NAME), graded)) == amiss
    assert len(corpus.unmeasured(graded)) == unmeasured


# ------------------------------------------------------------------------------------------------ whole runs


def made(head: str, name: str = "helpers", source: str = "x = 1") -> str:
    """A file of the corpus with one cell."""
    key = "helpers" if name == "helpers" else "task"
    return f'"""{head}\n"""\n\n# %% {key}="{name}"\n{source}\n'


ATTACK = "attack: V1\nstopped by: P, so."
FILES = {
    "right/other.py": made("Another way.", "double", "def double(n):\n    return 2 * n"),
    "wrong/nothing.py": made("Nothing.\n\nfails: *", source="import os\nos._exit(1)"),
    "honest/prints.py": made("Prints.\n\ntwin of: V4", source="print('PASSED')"),
    "hostile/exits.py": made(f"Exits.\n\nfails: *\n{ATTACK}", source="import os\nos._exit(0)"),
}
AMISS = {
    "wrong/uncaught.py": made("Right.\n\nfails: test_double"),
    "honest/punished.py": made("Punished.\n\ntwin of: V5", "double", "def double(n):\n    return 0"),
    "hostile/effective.py": made(f"Gets through.\n\nfails: test_double\n{ATTACK}"),
    "hostile/tells.py": made(
        f"Tells what it could not have read.\n\nchanges nothing\n{ATTACK}",
        source="print('autograder-canary-' + '0' * 32)",
    ),
}


@pytest.fixture
def corpus_course(course: Course, tmp_path: Path) -> Course:
    """The small assignment with a small corpus, in a repository of its own."""
    repository = tmp_path / "repository"
    shutil.copytree(course.environment["AUTOGRADER_REPOSITORY"], repository)
    course.environment = {"AUTOGRADER_REPOSITORY": str(repository)}
    write(course, FILES)
    return course


def write(course: Course, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = Path(course.environment["AUTOGRADER_REPOSITORY"], "tests", "submissions", "tiny", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_corpus_in_which_all_is_as_it_must_be(corpus_course: Course) -> None:
    """The figures end the output as JSON; ordinary neighbours are graded among the others."""
    ran = corpus_course.autograder("corpus", "tiny", "--json")
    assert ran.code == 0, ran.said
    figures = json.loads(ran.said.splitlines()[-1])
    expected = {"attacks_tried": 1, "honest_tried": 1, "right_tried": 5, "wrong_tried": 2}
    bad = ("attacks_effective", "canaries_read", "left_behind", "honest_punished", "right_below_full", "wrong_uncaught")
    expected |= dict.fromkeys((*bad, "unkilled_checks"), 0)
    assert {name: figures[name] for name in expected} == expected
    assert list(corpus_course.tmp.iterdir()) == []


def test_a_corpus_in_which_something_is_amiss(corpus_course: Course) -> None:
    """An attack that changes a grade, a secret that is told, an honest one that is punished: each counts, and is named."""
    write(corpus_course, AMISS)
    ran = corpus_course.autograder("corpus", "tiny", "--json", "--order", "7")
    assert ran.code == 1
    figures = json.loads(ran.said.splitlines()[-1])
    for name in ("attacks_effective", "canaries_read", "honest_punished", "wrong_uncaught"):
        assert figures[name] == 1, (name, ran.said)
    assert figures["order"] == 7
    for said in (
        "hostile/effective passes test_double, which it must fail",
        "a submission got hold of a secret: nowhere: it is not one of ours",
        "honest/punished fails test_double",
        "wrong/uncaught passes test_double",
    ):
        assert said in ran.said


def test_a_check_that_nothing_wrong_fails_is_named(corpus_course: Course) -> None:
    """Nobody has seen it fail."""
    shutil.rmtree(Path(corpus_course.environment["AUTOGRADER_REPOSITORY"], "tests/submissions/tiny/wrong"))
    ran = corpus_course.autograder("corpus", "tiny", "--json")
    assert (ran.code, json.loads(ran.said.splitlines()[-1])["unkilled_checks"]) == (1, 4)
    assert "no wrong submission fails test_layers_of_model" in ran.said


def test_without_a_sandbox_no_attack_is_tried(corpus_course: Course) -> None:
    """Where walls cannot be had the harmless ones are graded, and it is said that no attack was."""
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"'
    if subprocess.run(["unshare", "-Ur", "sh", "-c", forbid, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace to forbid namespaces in")
    command = [sys.executable, "-m", "autograder", "corpus", "tiny", "--isolation", "process", "--json"]
    ran = corpus_course.run("unshare", "-Ur", "sh", "-c", forbid, *command)
    assert ran.code == 0, ran.said
    assert json.loads(ran.said.splitlines()[-1])["attacks_tried"] == 0
    assert "No attack was tried" in ran.said


def graded_as_it_must_be(name: str, folder: Path, *options: str) -> dict[str, int]:
    """The figures of a corpus run in `folder`. Where something is amiss, only that is shown, not a line per submission.

    One submission whose grade is not as its head says is graded three times more. If it is as it must be then, that is a
    warning, so that a log tells which check is a matter of chance, and one in some 16,000 verdicts stops nobody's work.
    """
    ran = run_corpus(name, folder, *options)
    amiss = [line for line in ran.stdout.splitlines() if line.startswith("✗")]
    seen = re.match(r"✗ (\w+)/(\w+) (fails|passes) ", amiss[0]) if len(amiss) == 1 else None
    if ran.returncode and seen:
        warnings.warn(f"corpus of {name}, the first of four times: {amiss[0]}", stacklevel=2)
        for _ in range(3):
            again = run_corpus(name, folder, "--only", f"{seen[1]}-{seen[2]}")
            assert again.returncode == 0, "\n".join([*amiss, again.stdout])
    else:
        assert ran.returncode == 0, "\n".join([*(amiss or ran.stdout.splitlines()[-20:]), ran.stderr[-3000:]])
    return cast("dict[str, int]", json.loads(ran.stdout.splitlines()[-1]))


def run_corpus(name: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`autograder corpus`, whatever it finds."""
    command = [sys.executable, "-m", "autograder", "corpus", name, "--json", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)


def test_the_corpus_of_kv_cache(tmp_path: Path) -> None:
    """No attack changes a grade, reads a secret or leaves anything; no honest twin is punished; every check is needed."""
    figures = graded_as_it_must_be(NAME, tmp_path)
    assert (figures["attacks_tried"] >= 54, figures["honest_tried"] >= 42) == (True, True)


def test_a_part_of_the_corpus_of_quantization(tmp_path: Path) -> None:
    """Its neighbours, which are the reference, have all points, the stub has none, and replaced helpers are found out."""
    only = ["--only", "wrong-stub", "--only", "hostile-patches_the_kit"]
    figures = graded_as_it_must_be("quantization", tmp_path, *only)
    assert (figures["right_tried"] >= 1, figures["wrong_tried"], figures["attacks_tried"]) == (True, 1, 1)
