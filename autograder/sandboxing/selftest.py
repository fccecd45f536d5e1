"""The judge's side of the self-test: offers what must not be reached, lets `autograder.worker.selftest` try, and looks.

One program for each of files, connections, signals, left-over processes and scratch space: enough to notice a wall that
is missing, not to prove one. What a level lacks by its own account (the sum of files at levels 1 and 2) is not tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from autograder import temporary

if TYPE_CHECKING:
    from autograder.sandboxing.isolation import Limits, Worker

__all__ = ["FOLDER", "attack"]

ANSWER_S, GONE_S = 30.0, 2.0
FOLDER = "autograder-self-test-"
"""How the names of its temporary folders begin."""


def attack(start: Callable[[Limits], Worker], limits: Limits, trusted: Sequence[int], *, quota: bool) -> list[str]:
    """Names of the attacks that got through in a worker from `start` that runs `autograder.worker.selftest.serve`.

    `trusted` are ids of processes that must survive it, besides one of our own; `quota` says that all files count.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary.folder(FOLDER))
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        folder.chmod(0o755)  # what stops the worker is to be the sandbox
        (folder / "canary").write_text("canary")
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listeners: list[tuple[int, Any]] = [(tcp.family, tcp.getsockname())]
        # The address of a socket may have 107 characters, the path of a temporary folder has thousands.
        for address, short in (
            (str(folder / "socket"), f"/proc/self/fd/{descriptor}/socket"),
            (f"\0{folder.name}", f"\0{folder.name}"),
        ):
            unix = stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(short)
            unix.listen()
            listeners.append((unix.family, address))
        (folder / "socket").chmod(0o777)
        # It reads from us, so it ends with us, however we end.
        bystander = stack.enter_context(subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
        stack.callback(bystander.kill)
        worker = start(limits)
        try:
            worker.sock.settimeout(ANSWER_S)
            targets = {"files": [str(folder / "canary")], "listeners": listeners, "quota": quota}
            targets |= {"processes": [bystander.pid, *trusted], "scratch_bytes": limits.scratch_bytes}
            with worker.sock.makefile("rw") as file:
                file.write(json.dumps(targets) + "\n")
                file.flush()
                answer = file.readline()
            through: list[str] = json.loads(answer) if answer else ["(the worker ended before it could tell)"]
        except OSError as error:
            through = [f"(no answer: {error})"]
        finally:
            worker.kill()
        if bystander.poll() is not None:
            through.append("signal_others")
        if not worker.output_has_ended(GONE_S):
            through.append("outlive")
        return through
