"""The corpus: submissions that show that the checks of a suite pass and fail where they must, and that nothing leaks.

`tests/submissions/<assignment>/<kind>/<name>.py` is a py:percent file whose docstring says what it is. Lines of it:

    fails: test_a test_b*       all checks that must not pass (wrong, hostile)
    attack: V1 V3               rows of the list of known attacks (hostile)
    stopped by: P, how          the layer that must stop it (hostile)
    changes nothing             an attack beside honest work, which keeps all its points (hostile)
    twin of: V1                 the attack that this honest one looks like (honest)
    based on: wrong/name        where tasks that the file leaves out come from; the reference by default

`right` ones differ in style from the reference, `honest` ones look like attacks and are none; both must get all points.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import ctypes
import fnmatch
import os
import re
import secrets
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from autograder import suite, temporary
from autograder.errors import AutograderError
from autograder.finding import Outcome
from autograder.grade import Graded
from autograder.manifest import BEGIN, END, HELPERS, Manifest
from autograder.sandboxing.sandbox import Isolation, Limits, Sandbox, Worker
from autograder.spec import Assignment
from autograder.submission import Submission
from autograder.worker import walls

__all__ = [
    "KINDS",
    "Canaries",
    "CorpusError",
    "Entry",
    "Leftovers",
    "complaints",
    "expected_points",
    "load",
    "notebook",
    "overhear",
    "private_world",
    "reference",
    "stub",
    "unkilled",
    "unmeasured",
]

KINDS = ("right", "honest", "wrong", "hostile")
HEADS = ("fails", "attack", "stopped by", "twin of", "based on")


class CorpusError(AutograderError):
    """A file of the corpus has no proper head."""


@dataclass(frozen=True)
class Entry:
    """One submission of the corpus. `fails` are the checks that must not pass."""

    kind: str
    name: str
    about: str
    fails: frozenset[str]
    answers: dict[str, str]
    rows: tuple[str, ...] = ()
    """The known attacks that it is one of, or looks like."""

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.name}"

    def submission(self, manifest: Manifest) -> Submission:
        return Submission(
            f"{self.kind}/{self.name}.py", {name: self.answers[name] for name in [*manifest.tasks, HELPERS]}
        )


def reference(name: str) -> Entry:
    """The reference solution."""
    cells = jupytext.read(suite.repository() / "solutions" / f"{name}.py", fmt="py:percent").cells
    answers = {
        cell.metadata.get("task") or cell.metadata.get(HELPERS): "\n".join(
            line for line in cell.source.splitlines() if line.strip() not in (BEGIN, END)
        )
        for cell in cells
        if "task" in cell.metadata or HELPERS in cell.metadata
    }
    return Entry("right", "reference", "The reference solution.", frozenset(), answers)


def stub(name: str) -> Entry:
    """The release as it is handed out, untouched: earns nothing."""
    cells = jupytext.read(suite.repository() / "assignments" / name / f"{name}.ipynb").cells
    answers = {
        cell.metadata.get("task") or cell.metadata.get(HELPERS): cell.source
        for cell in cells
        if "task" in cell.metadata or HELPERS in cell.metadata
    }
    checks = frozenset(check.name for check in suite.load_assignment(name).checks)
    return Entry("wrong", "stub", "The untouched stub.", checks, answers)


def load(name: str) -> list[Entry]:
    """The corpus of an assignment, with reference and stub. Raises `CorpusError`."""
    assignment = suite.load_assignment(name)
    known = {"reference": reference(name), "stub": stub(name)}
    entries = list(known.values())
    for kind in KINDS:
        for path in sorted((suite.repository() / "tests" / "submissions" / name / kind).glob("*.py")):
            made = _entry(path, kind, known, assignment)
            known[f"{kind}/{path.stem}"] = made
            entries.append(made)
    return entries


def _entry(path: Path, kind: str, known: dict[str, Entry], assignment: Assignment) -> Entry:
    text = path.read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(text)) or ""
    head = _head(about)
    fails = _checks(path, head["fails"], assignment)
    if not about:
        raise CorpusError(f"{path.name} ({kind}): its docstring must say what it is.")
    if kind in ("right", "honest") and fails:
        raise CorpusError(f"{path.name} ({kind}): it must get all points, and so must not have a line `fails:`.")
    if kind == "wrong" and not fails:
        raise CorpusError(f"{path.name} (wrong): a line `fails: ...` must name the checks that it fails.")
    if kind == "hostile" and not (head["attack"] and head["stopped by"]):
        raise CorpusError(f"{path.name} (hostile): it needs the lines `attack: ROW ...` and `stopped by: LAYER, how`.")
    if kind == "hostile" and bool(fails) == ("changes nothing" in about.splitlines()):
        raise CorpusError(
            f"{path.name} (hostile): it needs a line `fails: ...` or the line `changes nothing`, not both."
        )
    if kind == "honest" and not head["twin of"]:
        raise CorpusError(f"{path.name} (honest): a line `twin of: ROW ...` must name the attack that it looks like.")
    base = " ".join(head["based on"]) or "reference"
    if base not in known:
        raise CorpusError(f"{path.name} is based on {base!r}, which is not in the corpus (or comes after it).")
    answers = dict(known[base].answers)
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        if named := cell.metadata.get("task") or cell.metadata.get(HELPERS):
            if named not in answers:
                raise CorpusError(f"{path.name} has a cell {named!r}, which the assignment has not.")
            answers[named] = cell.source
    return Entry(kind, path.stem, about.splitlines()[0], fails, answers, tuple(head["attack"] or head["twin of"]))


def _head(about: str) -> dict[str, list[str]]:
    """The words of each of the lines in `HEADS`; `fails` may have several lines."""
    found: dict[str, list[str]] = {name: [] for name in HEADS}
    for line in about.splitlines():
        name, colon, words = line.partition(":")
        if colon and name in found:
            found[name] += words.split()
    return found


def _checks(path: Path, patterns: list[str], assignment: Assignment) -> frozenset[str]:
    known = [check.name for check in assignment.checks]
    found: set[str] = set()
    for pattern in patterns:
        if not (matching := fnmatch.filter(known, pattern)):
            raise CorpusError(f"{path.name} fails {pattern!r}, which is no check of {assignment.name}.")
        found.update(matching)
    return frozenset(found)


def expected_points(entry: Entry, assignment: Assignment) -> float:
    """The points that the entry must get."""
    return float(sum(check.points for check in assignment.checks if check.name not in entry.fails))


def complaints(entry: Entry, graded: Graded) -> list[str]:
    """Where the grade of `entry` is not what its head says. A speed that this machine could not measure is in `unmeasured`."""
    if graded.result is None or graded.score is None:
        return [f"{entry.kind}/{entry.name} was not graded: {graded.problem}"]
    unclear = unmeasured(graded)
    if withheld := [reason for reason in graded.score.withheld if reason.partition(":")[0] not in unclear]:
        return [f"{entry.kind}/{entry.name} is withheld: {'; '.join(withheld)}"]
    passed = {finding.check for finding in graded.result.findings if finding.outcome is Outcome.PASSED}
    failed = {finding.check: finding for finding in graded.result.findings if finding.outcome is not Outcome.PASSED}
    wrong = [f"{entry.kind}/{entry.name} passes {check}, which it must fail" for check in sorted(entry.fails & passed)]
    return wrong + [
        f"{entry.kind}/{entry.name} fails {check}, which it must pass: {failed[check].message}"
        for check in sorted(failed.keys() - entry.fails - unclear)
    ]


def unmeasured(graded: Graded) -> set[str]:
    """Checks of speed that were inconclusive: the machine was too busy, which says nothing about the submission."""
    findings = graded.result.findings if graded.result else ()
    return {finding.check for finding in findings if finding.outcome is Outcome.INCONCLUSIVE}


def unkilled(entries: Iterable[Entry], assignment: Assignment) -> list[str]:
    """Checks that no wrong submission but the stub fails: nobody has seen them fail for a reason."""
    failed = {check for entry in entries if entry.kind == "wrong" and entry.name != "stub" for check in entry.fails}
    return [check.name for check in assignment.checks if check.name not in failed]


def notebook(name: str, answers: dict[str, str]) -> Any:
    """The released notebook with `answers` in its cells, as a student would hand it in."""
    made = copy.deepcopy(nbformat.read(suite.repository() / "assignments" / name / f"{name}.ipynb", as_version=4))
    for cell in made.cells:
        if named := cell.metadata.get("task") or cell.metadata.get(HELPERS):
            cell.source = answers[named]
    return made


# ------------------------------------------------------------------------------------------------ what must not leak

FORM = re.compile(r"autograder-canary-[0-9a-f]{32}")
"""What attacks look for. Hexadecimal, so that it survives every encoding of text."""

BYSTANDER = """
import os, socket, sys, threading
tcp, local, hidden = sys.argv[1:4]
def serve(sock, canary):
    while True:
        peer = sock.accept()[0]
        os.write(1, b"!")
        peer.sendall(canary.encode())
        peer.close()
for family, address, canary in (
    (socket.AF_INET, ("127.0.0.1", 0), tcp), (socket.AF_UNIX, sys.argv[4], local), (socket.AF_UNIX, "\\0" + sys.argv[5], hidden),
):
    sock = socket.socket(family)
    sock.bind(address)
    sock.listen()
    threading.Thread(target=serve, args=(sock, canary), daemon=True).start()
os.write(1, b".")
sys.stdin.read()
"""
"""A process with secrets among its arguments and in its environment, which gives others to whoever connects to it."""


class Canaries:
    """Secrets that no submission may reach: fresh random strings in files, variables, processes and sockets.

    A context manager; planted when entered, removed when left.
    """

    def __init__(self, name: str, world: Path) -> None:
        self.name = name
        self.world = world
        self.places: dict[str, str] = {}
        """Where each of them is, by its text."""
        self._files: list[Path] = []
        self._bystander: subprocess.Popen[bytes] | None = None

    def new(self, place: str) -> str:
        """One more, for a place that the caller plants it in."""
        canary = f"autograder-canary-{secrets.token_hex(16)}"
        self.places[canary] = place
        return canary

    def __enter__(self) -> Canaries:
        readable = [Path("/dev/shm"), Path("/tmp"), suite.repository() / "tests" / "grading" / self.name]
        for folder in (self.world / "results", self.world / "home", self.world / "tmp", *readable):
            self._plant(folder / f".canary-{secrets.token_hex(4)}", str(folder))
        os.environ["AUTOGRADER_CANARY"] = self.new("the judge's environment")
        sock = self.world / "tmp" / "canary.sock"
        arguments = [self.new(f"the bystander's {kind} socket") for kind in ("TCP", "Unix", "abstract")]
        arguments += [str(sock), f"autograder-canary-{os.getpid()}", self.new("the bystander's arguments")]
        self._files.append(sock)
        self._bystander = subprocess.Popen(
            [sys.executable, "-I", "-c", BYSTANDER, *arguments],
            env={"CANARY": self.new("the bystander's environment")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._bystander.stdout
        self._bystander.stdout.read(1)
        return self

    def _plant(self, file: Path, place: str) -> None:
        with contextlib.suppress(OSError):  # a repository may be read-only
            file.write_text(self.new(f"a file in {place}"))
            file.chmod(0o644)
            self._files.append(file)

    def close(self) -> None:
        """Remove them."""
        os.environ.pop("AUTOGRADER_CANARY", None)
        if self._bystander:
            self._bystander.kill()
            self._bystander.communicate()
        for file in self._files:
            file.unlink(missing_ok=True)

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, folders: Iterable[Path]) -> list[str]:
        """Where those are from that stand in some file below `folders`; and how often somebody met the bystander."""
        planted = {file.resolve() for file in self._files}
        found: set[str] = set()
        for folder in folders:
            for file in folder.rglob("*"):
                if file.resolve() not in planted and stat.S_ISREG(file.lstat().st_mode):
                    found.update(FORM.findall(file.read_text(encoding="utf-8", errors="replace")))
        told = [self.places.get(canary, "nowhere: it is not one of ours") for canary in found]
        assert self._bystander
        assert self._bystander.stdout
        os.set_blocking(self._bystander.stdout.fileno(), False)
        calls = len(self._bystander.stdout.read() or b"")
        return sorted(told) + ["a connection to the bystander"] * calls


@contextlib.contextmanager
def private_world() -> Iterator[Path]:
    """A folder with `results`, `heard`, and with `home` and `tmp` that are this process's own for the time being."""
    # A short name, not $TMPDIR: the path of a socket may have 107 characters.
    with temporary.folder("autograder-corpus-", "/tmp") as world:
        for name in ("results", "heard", "home", "tmp"):
            (world / name).mkdir()
        kept = {name: os.environ.get(name) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
        if not kept["XDG_CACHE_HOME"]:
            os.environ["XDG_CACHE_HOME"] = str(Path.home() / ".cache")  # models stay where they are
        os.environ |= {"HOME": str(world / "home"), "TMPDIR": str(world / "tmp")}
        before, tempfile.tempdir = tempfile.tempdir, None
        try:
            yield world
        finally:
            tempfile.tempdir = before
            for name, value in kept.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


class _Overheard:
    """A sandbox whose workers' output is kept in files, beside what becomes of it otherwise."""

    def __init__(self, sandbox: Sandbox, folder: Path) -> None:
        self._sandbox = sandbox
        self._folder = folder

    @property
    def isolation(self) -> Isolation:
        return self._sandbox.isolation

    @property
    def devices(self) -> Sequence[str]:
        return self._sandbox.devices

    def start(self, limits: Limits) -> Worker:
        worker = self._sandbox.start(limits)
        kill = worker.kill

        def heard() -> None:
            kill()
            file = self._folder / f"{os.getpid()}-{id(worker)}"
            file.write_text(worker.output(), encoding="utf-8", errors="replace")

        worker.kill = heard  # type: ignore[method-assign]
        return worker

    def revive(self) -> None:
        self._sandbox.revive()

    def self_test(self) -> None:
        self._sandbox.self_test()

    def close(self) -> None:
        self._sandbox.close()


def overhear(sandbox: Sandbox, folder: Path) -> Sandbox:
    """`sandbox`, with all that its workers print kept in files of `folder`."""
    return _Overheard(sandbox, folder)


# ------------------------------------------------------------------------------------------------ what must not stay

PUBLIC = ("/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", "/")
MARK = "hostile"
"""What attacks call what they leave behind; others may use the same machine at the same time."""
SUBREAPER = 36


class Leftovers:
    """Compares the machine with what it was when this was made: processes, files, sockets, shared memory of ours."""

    def __init__(self, name: str, world: Path) -> None:
        repository = suite.repository()
        self.world = world
        self.folders = [Path(path) for path in PUBLIC] + [
            Path.cwd(),
            repository,
            repository / "tests" / "grading" / name,
        ]
        self.folders += [Path(sys.prefix), repository / "autograder", repository / "autograder" / "worker"]
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)  # orphans of ours come to us, wherever they ran to
        self.before = self._look()

    def _look(self) -> set[str]:
        return {*self._files(), *self._sockets(), *self._shared()}

    def found(self, wait_s: float = 3.0) -> list[str]:
        """All that is there now, was not before, and is ours or was made by an attack. Waits a little for what is ending."""
        end = time.monotonic() + wait_s
        while (processes := self._processes()) and time.monotonic() < end:
            time.sleep(0.05)
        ctypes.CDLL(None).prctl(SUBREAPER, 0, 0, 0, 0)
        mine = [f"file {path}" for path in (self.world / "tmp").iterdir()]
        return sorted([*processes, *mine, *(self._look() - self.before)])

    def _processes(self) -> list[str]:
        """Descendants of this process."""
        parents: dict[int, tuple[int, str, str]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    text, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
                    state, parent = rest.split()[:2]
                    parents[int(entry.name)] = (int(parent), state, text.partition("(")[2])
        family = {os.getpid()}
        while more := {pid for pid, (parent, _, _) in parents.items() if parent in family} - family:
            family |= more
        orphans = [pid for pid in family - {os.getpid()} if parents[pid][1] == "Z" and parents[pid][0] == os.getpid()]
        for pid in orphans:
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        return [f"process {pid} ({parents[pid][2]})" for pid in family - {os.getpid(), *orphans}]

    def _files(self) -> Iterator[str]:
        for folder in self.folders:
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        alien = os.geteuid() == 0 and entry.stat(follow_symlinks=False).st_uid == walls.NOBODY
                        if alien or MARK in entry.name:
                            yield f"file {entry.path}"

    def _sockets(self) -> Iterator[str]:
        for line in _lines("/proc/net/unix"):
            if MARK in line:
                yield f"socket {line.split()[-1]}"
        for kind in ("tcp", "tcp6", "udp", "udp6"):
            for line in _lines(f"/proc/net/{kind}")[1:]:
                if os.geteuid() == 0 and int(line.split()[7]) == walls.NOBODY:
                    yield f"socket {kind} {line.split()[1]}"

    def _shared(self) -> Iterator[str]:
        for kind in ("shm", "sem", "msg"):
            header, *rows = [line.split() for line in _lines(f"/proc/sysvipc/{kind}")] or [[]]
            for row in rows:
                fields = dict(zip(header, row, strict=False))
                if {int(fields["uid"]), int(fields["cuid"])} & {os.geteuid(), walls.NOBODY}:
                    yield f"System V {kind} {fields['key']} of user {fields['cuid']}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
