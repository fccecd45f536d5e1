"""The tool itself: what it leaves open or behind on the machine, what it builds on, and what its own code must not do.

What stops a submission is tested in `test_sandbox.py`, `test_wire.py`, `test_hostile_notebooks.py` and by the corpus.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autograder import temporary
from autograder.sandboxing import sandbox, selftest, walled
from autograder.sandboxing.isolation import ROOT
from autograder.sandboxing.sandbox import Limits, NamespaceSandbox, ProcessSandbox, SandboxUnavailable
from autograder.worker import selftest as hostile

if TYPE_CHECKING:
    from conftest import Course

# ------------------------------------------------------------------------------------------------ files of a run


def open_to_others(folder: Path) -> Iterator[str]:
    """What other users may reach below `folder`, whatever its own mode, with its mode."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                mode = entry.stat(follow_symlinks=False).st_mode & 0o777
                if mode & 0o066:
                    yield f"{entry.path} {mode:o}"
                if mode & 0o011 and entry.is_dir(follow_symlinks=False):
                    yield from open_to_others(Path(entry.path))


NO_NAMESPACES = ("unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"')


@pytest.mark.parametrize("around", [(), NO_NAMESPACES], ids=["as it is", "without namespaces"])
def test_files_of_a_run_are_closed_to_others(course: Course, around: tuple[str, ...]) -> None:
    """Whatever the umask: results and temporary files can be read by their owner only, while a run lasts and after it."""
    if around and subprocess.run([*around, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace to forbid namespaces in")
    slow = "import time\n\ndef double(n):\n    time.sleep(0.5)\n    return 2 * n"
    for student in ("ada", "zoe"):
        course.solve(student, double=slow)
    grade = [sys.executable, "-m", "autograder", "grade", course.name, "--isolation", "process"]
    process = course.start(*around, "/bin/sh", "-c", 'umask 0 && exec "$0" "$@"', *grade)
    met: set[str] = set()
    found: set[str] = set()
    while running := process.poll() is None:
        met.update(entry.name for entry in course.tmp.iterdir())
        found.update(open_to_others(course.tmp))
        found.update(each for each in open_to_others(course.root) if f"{course.root}/results" in each)
    ran = course.finish(process)
    assert (running, ran.code) == (False, 0), ran.said
    assert len(course.results()) == 2
    on_purpose = f"{course.tmp}/{selftest.FOLDER}"  # holds nothing but what hostile programs are to be kept from
    assert sorted(each for each in found if not each.startswith(on_purpose)) == []
    assert around == () or any(name.startswith((sandbox.SCRATCH, walled.HOME)) for name in met)
    assert list(course.tmp.iterdir()) == []


KILLED = """
import os, signal
from autograder.sandboxing.sandbox import Limits, ProcessSandbox
with ProcessSandbox(serve="autograder.worker.zygote:serve_nothing") as sandbox:
    worker = sandbox.start(Limits())
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone are a killed run's folders; what is in use, young, another's by its name, or a link's target stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    ProcessSandbox()
    assert left.exists()
    monkeypatch.setattr(temporary, "STALE_S", -1.0)
    worker = ProcessSandbox(serve="autograder.worker.zygote:serve_nothing").start(Limits())
    (used,) = tmp_path.iterdir()
    assert used != left
    others = [tmp_path / "worker-of-another-program", tmp_path / "kept"]
    for folder in others:
        folder.mkdir()
    (link := tmp_path / f"{sandbox.SCRATCH}link").symlink_to(others[1])
    ProcessSandbox()
    assert sorted(tmp_path.iterdir()) == sorted([used, link, *others])
    worker.kill()
    assert not used.exists()


# ------------------------------------------------------------------------------------------------ long paths


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, with a path far longer than the address of a Unix socket may be."""
    folder = tmp_path / ("d" * 120) / ("e" * 120)
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_self_test_where_paths_are_long(deep: Path) -> None:
    """Without walls every attack gets through there as well; behind walls none does."""
    open_sandbox = ProcessSandbox(serve="autograder.worker.selftest:serve")
    through = selftest.attack(open_sandbox.start, Limits(scratch_bytes=1 << 20), [], quota=True)
    assert sorted(through) == ["connect", "fill", "outlive", "read", "signal_others"]
    assert list(deep.iterdir()) == []
    try:
        with NamespaceSandbox() as namespaces:
            namespaces.self_test()
    except SandboxUnavailable as error:
        pytest.skip(f"no namespaces here: {error}")


def test_a_listener_at_a_long_path_is_found(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack on sockets in the file system alone reaches one, stays where it was, and says so if there is none."""
    monkeypatch.chdir(deep.parent)
    path = str(deep / "socket")
    assert not hostile.connect({"listeners": [[int(socket.AF_UNIX), path]]})
    folder = os.open(deep, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
        assert not hostile.connect({"listeners": [[int(socket.AF_UNIX), path]]})
        listener.listen()
        assert hostile.connect({"listeners": [[int(socket.AF_UNIX), path]]})
    assert Path.cwd() == deep.parent


# ------------------------------------------------------------------------------------------------ our own code

HAZARDS = {
    "S102": "exec(data)",
    "S301": "import pickle\npickle.loads(data)",
    "S302": "import marshal\nmarshal.loads(data)",
    "S306": "import tempfile\ntempfile.mktemp()",
    "S307": "eval(data)",
    "S324": "import hashlib\nhashlib.md5(data)",
    "S501": "import requests\nrequests.get(data, verify=False)",
    "S506": "import yaml\nyaml.load(data)",
    "S602": "import subprocess\nsubprocess.run(data, shell=True)",
    "S605": "import os\nos.system(data)",
    "S701": "import jinja2\njinja2.Environment()",
}


@pytest.mark.parametrize("rule", HAZARDS)
def test_make_test_refuses_hazards(rule: str) -> None:
    """The linter that `make test` runs over all code stops data from becoming code or a command anywhere in the framework."""
    for module in ("autograder/new.py", "autograder/worker/new.py", "gpu_env/new.py"):
        command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", module, "-"]
        done = subprocess.run(
            command, input=f"data = input()\n{HAZARDS[rule]}\n", cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stdout + done.stderr
        assert f" {rule} " in done.stdout


# ------------------------------------------------------------------------------------------------ what we build on


@contextmanager
def osv(answer: Callable[[str], dict[str, Any]]) -> Iterator[str]:
    """A list of known holes on this machine, as api.osv.dev has one: the address that is asked about a package."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(answer(asked["package"]["name"]))

        def answer(self, found: dict[str, Any]) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        finally:
            server.shutdown()


def audit(address: str) -> subprocess.CompletedProcess[str]:
    """Run `make audit` on what is installed here."""
    command = ["make", "-o", ".venv/installed", "audit", f"BIN={Path(sys.executable).parent}", f"OSV={address}"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | {"NO_PROXY": "*"}
    return subprocess.run(
        command, cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def test_a_known_hole_fails_the_audit() -> None:
    """One installed package with a known hole is named, and `make audit` fails."""
    hole = {"id": "HOLE-1", "summary": "A hole.", "affected": [{"package": {"name": "numpy", "ecosystem": "PyPI"}}]}
    with osv(lambda name: {"vulns": [hole]} if name == "numpy" else {}) as address:
        done = audit(address)
    assert done.returncode != 0
    assert "HOLE-1" in done.stdout
    assert "1 known vulnerability" in done.stdout


def test_no_known_hole_passes_the_audit() -> None:
    """All that is installed is asked about; nothing found is no failure."""
    asked: list[str] = []
    with osv(lambda name: asked.append(name) or {}) as address:  # type: ignore[func-returns-value]
        done = audit(address)
    assert done.returncode == 0, done.stdout
    assert "No known vulnerabilities found" in done.stdout
    assert {"torch", "nbgrader", "msgspec"} <= set(asked)


def test_an_audit_without_a_network_says_so() -> None:
    """Where the list cannot be reached that is told, and taken neither for a finding nor for none."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    done = audit(f"http://127.0.0.1:{port}/v1/query")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("Not audited: ")
    assert "No known" not in done.stdout
