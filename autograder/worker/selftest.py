"""Five hostile programs that try the walls from inside, before the first submission of a grading run.

Told by the judge what to attack; answers with the names of the attacks that seemed to get through. The judge looks at
the effects itself as well (see `autograder.sandboxing.selftest`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

__all__ = ["serve"]


def serve(sock: socket.socket) -> None:
    """Run the attacks that one line of JSON asks for."""
    with sock.makefile("rw") as file:
        targets = json.loads(file.readline())
        through = []
        for attack in (read, connect, signal_others, outlive, fill):
            with contextlib.suppress(OSError):
                through += [attack.__name__] if attack(targets) else []
        file.write(json.dumps(through) + "\n")
        file.flush()
        file.readline()


def _any(attempt: Callable[[Any], object], targets: list[Any]) -> bool:
    """Whether an attempt at one of the targets raises no error."""
    done = 0
    for target in targets:
        with contextlib.suppress(OSError):
            attempt(target)
            done += 1
    return done > 0


def read(targets: dict[str, Any]) -> bool:
    """The judge's files: read them, and change them."""
    ways = (os.O_RDONLY, os.O_WRONLY)
    return _any(lambda way: os.open(way[0], way[1]), [(path, way) for path in targets["files"] for way in ways])


def connect(targets: dict[str, Any]) -> bool:
    """Listeners outside: on the loopback, on a Unix socket in the file system and on an abstract one."""

    def attempt(listener: tuple[int, Any]) -> None:
        family, address = listener
        with socket.socket(family) as sock, contextlib.ExitStack() as stack:
            sock.settimeout(0.1)
            if family == socket.AF_UNIX and address.startswith("/"):  # too long for an address: go there
                here = os.open(".", os.O_RDONLY)
                stack.callback(os.close, here)
                stack.callback(os.fchdir, here)
                os.chdir(os.path.dirname(address))
                address = os.path.basename(address)
            sock.connect(tuple(address) if isinstance(address, list) else address)

    return _any(attempt, targets["listeners"])


def signal_others(targets: dict[str, Any]) -> bool:
    """Processes outside. In a pid namespace their numbers are nobody's or, by chance, our own."""
    for pid in targets["processes"]:
        if pid != os.getpid():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    return False  # the judge sees who died


def outlive(targets: dict[str, Any]) -> bool:
    """Leave a grandchild behind that has left its session and holds our output."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    os.wait()
    return False  # the judge sees the output's end


def fill(targets: dict[str, Any]) -> bool:
    """Write more than the limit: into one file, and where there is a quota for all also into several."""
    limit = targets["scratch_bytes"]
    with contextlib.suppress(OSError), open("one", "wb", buffering=0) as file:
        while file.tell() <= limit:
            file.write(bytes(1 << 18))
        return True
    os.remove("one")
    if not targets["quota"]:
        return False
    for number in range(4):
        with open(f"{number}", "wb", buffering=0) as file:
            for _ in range(limit // 2 >> 18):
                file.write(bytes(1 << 18))
    return True
