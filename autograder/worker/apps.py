"""The worker's side of a service: the submission's ASGI app under uvicorn, on a listening socket that the judge made.

The judge passes open sockets, since a worker may not be able to make a connection, or see a path, that the judge sees too.
The server runs in a thread, so the worker goes on answering the judge's other calls.

Not covered: several processes per service, TLS, HTTP/2.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Service", "receive_sockets"]

START_S = 30.0
"""How long the app's start-up (its lifespan, up to `yield`) may take; the judge's own limit is usually shorter."""
DRAIN_S = 5
"""How long a server that was told to stop waits for requests that are still being answered."""
LOOK_S = 0.5
"""How long a loop that may be blocked has for telling of its tasks."""


def receive_sockets(wire: socket.socket, count: int) -> list[socket.socket]:
    """The `count` sockets that the judge sent after its last message. Raises `ConnectionError`."""
    wire.setblocking(True)
    _, descriptors, _, _ = socket.recv_fds(wire, 1, count)
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    if len(sockets) != count:
        raise ConnectionError(f"{len(sockets)} sockets came instead of {count}")
    return sockets


class Service:
    """An ASGI app that is being served on `listener`. Raises `RuntimeError` with uvicorn's log if it does not start.

    `describe` makes data of an exception; to keep the exception itself would keep what its frames hold.
    """

    def __init__(self, app: Any, listener: socket.socket, describe: Callable[[BaseException], Any]) -> None:
        import asyncio

        import uvicorn

        self._describe = describe
        self._log = _Log(describe)
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).addHandler(self._log)
        config = uvicorn.Config(
            app, lifespan="on", http="h11", access_log=False, log_config=None, timeout_graceful_shutdown=DRAIN_S
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(listener)), name="uvicorn", daemon=True)
        self._thread.start()
        end = time.monotonic() + START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.002)
        if not self._server.started:
            self._server.should_exit = True
            raise RuntimeError(f"the app did not start: {self._log.text() or 'its lifespan did not reach `yield`'}")

    async def _run(self, listener: socket.socket) -> None:
        import asyncio

        def made(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
            self._tasks.add(task)
            return task

        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(made)
        await self._server.serve(sockets=[listener])

    def logged(self) -> Any:
        """The last exception that the server logged, or else one that a task ended with and nobody has seen; or None."""
        looked = threading.Event()
        unseen: list[Any] = []

        def look() -> None:
            for task in list(self._tasks):
                if task.done() and getattr(task, "_log_traceback", False) and (error := task.exception()):
                    unseen.append(self._describe(error))
            looked.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._loop:
                self._loop.call_soon_threadsafe(look)  # what is logged after an answer was sent is logged by then
                looked.wait(LOOK_S)
        return self._log.last or next(iter(unseen), None)

    def drain(self) -> None:
        """Ask it to stop, as SIGTERM would: no new connections, then the app's shutdown."""
        self._server.should_exit = True

    def ended(self, wait_s: float) -> bool:
        """Whether it has stopped; waits up to `wait_s` seconds for that."""
        self._thread.join(wait_s)
        return not self._thread.is_alive()


class _Log(logging.Handler):
    def __init__(self, describe: Callable[[BaseException], Any]) -> None:
        super().__init__(logging.ERROR)
        self._describe = describe
        self._lines: list[str] = []
        self.last: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        self._lines = [*self._lines[-99:], record.getMessage().strip()]
        error = record.exc_info[1] if record.exc_info else None
        while isinstance(error, BaseExceptionGroup) and error.exceptions:
            error = error.exceptions[0]
        if error is not None:
            self.last = self._describe(error)

    def text(self) -> str:
        """What was raised, and in which line of the submission's cells; of a traceback nothing else."""
        raised = next((line for text in self._lines for line in [text.rpartition("\n")[2]] if "Traceback" in text), "")
        where = re.findall(r'^  File "<(\w+)>", line (\d+)', "\n".join(self._lines), re.MULTILINE)
        return (raised or " ".join(self._lines))[:1500] + (
            f" (cell {where[-1][0]}, line {where[-1][1]})" if where else ""
        )
