"""The student's side runs where there is neither fork nor a POSIX library: here as far as Linux can pretend to lack them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from autograder import suite

WITHOUT_POSIX = """
import os, signal, socket, sys
import torch  # the checks need it; its build for Linux asks for what others do without
for module in ("fcntl", "resource", "termios"):
    sys.modules[module] = None
import subprocess, _posixsubprocess  # the standard library's own way to start a process, loaded before fork goes
for owner, names in (
    (os, ("fork", "forkpty", "register_at_fork", "pidfd_open", "sched_getaffinity")),
    (socket, ("send_fds", "recv_fds")),
    (signal, ("pidfd_send_signal", "pthread_sigmask")),
):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
"""


def test_checking_needs_no_posix_library_and_no_fork(tmp_path: Path) -> None:
    """`autograder check` on the reference passes in a Python without fork, fcntl and resource."""
    from autograder.authoring.corpus import notebook, reference

    shutil.copytree(suite.repository() / "assignments" / "kv_cache", tmp_path / "kv_cache")
    import nbformat

    nbformat.write(notebook("kv_cache", reference("kv_cache").answers), tmp_path / "kv_cache" / "kv_cache.ipynb")
    code = WITHOUT_POSIX + (
        "from autograder.students import selfcheck\n"
        "from autograder.sandboxing.sandbox import InlineSandbox, ProcessSandbox\n"
        "from pathlib import Path\n"
        f"folder = Path({str(tmp_path / 'kv_cache')!r})\n"
        "found = selfcheck.pair.read(folder, selfcheck.Manifest.load(folder))\n"
        "manifest = selfcheck.Manifest.load(folder)\n"
        "from autograder.judging.judge import judge\n"
        "findings = judge(manifest.public_assignment(), [folder / 'public_checks.py'], found.submission, manifest,\n"
        "    ProcessSandbox(), seed=1)\n"
        "print(sorted({str(finding.outcome) for finding in findings}), len(findings))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    public = sum(not check.hidden for check in suite.load_assignment("kv_cache").checks)
    assert done.stdout.splitlines()[-1] == f"['PASSED'] {public}"


def test_no_module_of_the_students_side_imports_a_posix_library_at_its_top() -> None:
    """What a student's command imports can be imported on Windows."""
    import ast

    posix = {"fcntl", "resource", "pwd", "grp", "termios"}
    root = suite.repository() / "autograder"
    student = [
        "__init__",
        "checks",
        "cli",
        "errors",
        "finding",
        "grade",
        "judging/judge",
        "judging/oracle",
        "judging/plugin",
        "judging/remote",
        "manifest",
        "pages/feedback",
        "runs/progress",
        "sandboxing/isolation",
        "sandboxing/sandbox",
        "spec",
        "students/notebook",
        "students/pair",
        "students/selfcheck",
        "submission",
        "suite",
        "worker/__main__",
        "worker/arrays",
        "worker/serve",
        "worker/wire",
    ]
    for name in student:
        for node in ast.parse((root / f"{name}.py").read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not posix & set(names), f"{name}.py imports {posix & set(names)}"
