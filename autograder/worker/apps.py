"""The worker's side of a service: the submission's ASGI app under uvicorn, on a listening socket that the judge made.

The judge passes open sockets, since a worker may not be able to make a connection, or see a path, that the judge sees too.
The server runs in a thread, so the worker goes on answering the judge's other calls.

Not covered: several processes per service, TLS, HTTP/2.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from typing import Any

__all__ = ["Service", "receive_sockets"]

START_S = 30.0
"""How long the app's start-up (its lifespan, up to `yield`) may take; the judge's own limit is usually shorter."""
DRAIN_S = 5
"""How long a server that was told to stop waits for requests that are still being answered."""


def receive_sockets(wire: socket.socket, count: int) -> list[socket.socket]:
    """The `count` sockets that the judge sent after its last message. Raises `ConnectionError`."""
    wire.setblocking(True)
    _, descriptors, _, _ = socket.recv_fds(wire, 1, count)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    if len(sockets) != count:
        raise ConnectionError(f"{len(sockets)} sockets came instead of {count}")
    return sockets


class Service:
    """An ASGI app that is being served on `listener`. Raises `RuntimeError` with uvicorn's log if it does not start."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        import uvicorn

        log = _Log()
        logger = logging.getLogger("uvicorn.error")
        logger.addHandler(log)
        config = uvicorn.Config(
            app, lifespan="on", http="h11", loop="asyncio", access_log=False, log_config=None,
            timeout_graceful_shutdown=DRAIN_S,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="uvicorn", daemon=True
        )
        self._thread.start()
        end = time.monotonic() + START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.002)
        logger.removeHandler(log)
        if not self._server.started:
            self._server.should_exit = True
            raise RuntimeError(f"the app did not start: {log.text() or 'its lifespan did not reach `yield`'}")

    def drain(self) -> None:
        """Ask it to stop, as SIGTERM would: no new connections, then the app's shutdown."""
        self._server.should_exit = True

    def ended(self, wait_s: float) -> bool:
        """Whether it has stopped; waits up to `wait_s` seconds for that."""
        self._thread.join(wait_s)
        return not self._thread.is_alive()


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage().strip())

    def text(self) -> str:
        """What was raised, and in which line of the submission's cells; of a traceback nothing else."""
        raised = next((line for text in self._lines for line in [text.rpartition("\n")[2]] if "Traceback" in text), "")
        where = re.findall(r'^  File "<(\w+)>", line (\d+)', "\n".join(self._lines), re.MULTILINE)
        return (raised or " ".join(self._lines))[:1500] + (
            f" (cell {where[-1][0]}, line {where[-1][1]})" if where else ""
        )
