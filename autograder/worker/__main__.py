"""A worker without walls (level 0): a process of its own, started, not forked, on Linux, macOS and Windows.

Covered:
- crashes: and calls of `exit` end the worker only
- limits: CPU time, private memory and file size, where the system has them
Not covered:
- everything else: student code reads, writes and ends whatever the user can; for self-checks, never for marks
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

__all__ = ["CANNOT_START", "Serve", "load", "main", "run", "show_gpu"]

Serve = Callable[[socket.socket], None]
CANNOT_START = 97
"""Exit code that says: not the submission's fault."""


def load(name: str) -> Serve:
    """The function that `name`, as in "package.module:function", stands for."""
    module, _, function = name.partition(":")
    serve: Serve = getattr(importlib.import_module(module), function)
    return serve


def run(serve: Serve, sock: socket.socket) -> int:
    """Serve `sock` to its end; gives the exit code. The process's own output is flushed line by line."""
    code = 0
    # New streams: the ones at hand may have been made for a file, and a fork has them from there.
    sys.stdout, sys.stderr = (
        open(descriptor, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        for descriptor in (1, 2)
    )
    try:
        serve(sock)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    return code & 0xFF


def show_gpu(limits: Mapping[str, Any]) -> None:
    """Let CUDA, which nobody has asked for anything yet, show this process one GPU only, if it is limited to one."""
    if limits["gpu"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = limits["gpu"]


def main(config_text: str) -> NoReturn:
    """Serve the socket that the judge handed over: an inherited descriptor, or on Windows a share on standard input."""
    config = json.loads(config_text)
    try:
        if sys.platform == "win32":
            sock = socket.fromshare(sys.stdin.buffer.read())
        else:
            sock = socket.socket(fileno=config["descriptor"])
        sys.path[:0] = config["import_paths"]
        if sys.platform == "linux":
            from autograder.worker import walls

            walls.set_parent_death_signal()  # student code that loops would outlive a killed judge
        show_gpu(config["limits"])
        serve = load(config["serve"])
        _set_limits(config["limits"])
    except BaseException:
        traceback.print_exc()
        os._exit(CANNOT_START)
    os._exit(run(serve, sock))  # not sys.exit: threads of the submission would keep the process alive


def _set_limits(limits: Mapping[str, int]) -> None:
    if sys.platform == "win32":
        return
    import resource

    wanted = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_FSIZE: limits["scratch_bytes"],
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":
        # Private memory, not address space: torch, imported later, maps GiB of files. 1 GiB is for torch's own data.
        wanted[resource.RLIMIT_DATA] = limits["memory_bytes"] + (1 << 30)
    for what, value in wanted.items():
        with contextlib.suppress(OSError, ValueError):  # level 0 promises nothing
            resource.setrlimit(what, (value, value + (what == resource.RLIMIT_CPU)))
