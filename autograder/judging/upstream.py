"""A server of the judge's that a submission's client talks to.

    async def answer(request, reply):
        await reply.start(200, "text/event-stream")
        await reply.send(b"data: [DONE]\\n\\n")

    with reachable(submission, answer) as server:
        submission.fetch(server.url)              # http://127.0.0.1:..., a port of the worker's own network
        server.requests                           # what it asked for

Covered:
- whose words: a request is the submission's; one that is no HTTP, or too long, ends its connection and no check
- time: the check decides when a byte is sent, by what has been asked for so far, not by a clock
- size: at most so many connections, and bytes per request, as said here
Not covered:
- keep-alive: every answer ends its connection, so that a request never waits for another one's
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import h11

from autograder.judging.remote import RunningSubmission
from autograder.sandboxing.sandbox import SandboxUnavailable

__all__ = ["Reply", "Request", "Upstream", "reachable"]

MAX_CONNECTIONS = 2_000
"""Of one server, all in all."""
MAX_REQUEST_BYTES = 1 << 20
END_S = 5.0
"""How long we wait for the server's thread to end."""


@dataclass(frozen=True)
class Request:
    """One request: the submission's word. `number` counts from 0 in the order of arrival."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Its body, `None` where that is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class Reply:
    """The answer to one request. What a client that went away would have got is dropped."""

    def __init__(self, connection: h11.Connection, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        self._connection = connection
        self._writer = writer
        self.gone = gone
        """Set once the client has closed its side."""

    async def start(self, status: int, content_type: str = "application/json", **headers: str) -> None:
        """Status line and headers. The body comes in chunks, of which `send` makes one each."""
        fields = [("content-type", content_type), ("connection", "close"), *headers.items()]
        await self._write(h11.Response(status_code=status, headers=fields))

    async def send(self, data: bytes) -> None:
        """A part of the body, on its way before this returns."""
        if data:
            await self._write(h11.Data(data=data))

    async def end(self) -> None:
        """The end of the body, as HTTP has it. Without it the connection breaks off."""
        await self._write(h11.EndOfMessage())

    async def whole(self, status: int, value: Any) -> None:
        """A whole answer in JSON."""
        await self.start(status)
        await self.send(json.dumps(value).encode())
        await self.end()

    async def _write(self, event: h11.Event) -> None:
        data = self._connection.send(event)
        with contextlib.suppress(OSError):
            self._writer.write(data or b"")
            await self._writer.drain()
            await asyncio.sleep(0)


Answer = Callable[[Request, Reply], Awaitable[None]]


@dataclass
class Upstream:
    """A running server. `error` is what the check's own `answer` raised: our fault, raised again when the block ends."""

    answer: Answer
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    error: BaseException | None = None
    connections: int = 0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def _run(self, control: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.add_reader(control, self._connect, control)
        self._loop.run_forever()
        self._loop.remove_reader(control)
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    def _connect(self, control: socket.socket) -> None:
        """Somebody connects to the worker's port: hand over one end of a pair."""
        try:
            if not control.recv(16):
                raise ConnectionError("the worker is gone")
            if self.connections >= MAX_CONNECTIONS:
                control.send(b"n")
                return
            self.connections += 1
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(control, [b"y"], [theirs.fileno()])
        except OSError:
            self._loop.remove_reader(control)
            return
        task = self._loop.create_task(self._serve(ours))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        connection, gone = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES), asyncio.Event()
        try:
            request = await self._read(reader, connection)
            if request is None:
                return
            watch = asyncio.ensure_future(_closed(reader, gone))
            try:
                await self.answer(request, Reply(connection, writer, gone))
            finally:
                watch.cancel()
        except (h11.RemoteProtocolError, OSError):
            return  # no HTTP, or nobody there any more
        except Exception as error:
            self.error = self.error or error
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, connection: h11.Connection) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_REQUEST_BYTES:
                    return None
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                fields = {key.decode("latin-1"): value.decode("latin-1") for key, value in head.headers}
                method, path = head.method.decode("latin-1"), head.target.decode("latin-1")
                request = Request(len(self.requests), method, path, fields, bytes(body))
                self.requests.append(request)
                return request
            else:
                return None


async def _closed(reader: asyncio.StreamReader, gone: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass
    gone.set()


@contextlib.contextmanager
def reachable(submission: RunningSubmission, answer: Answer) -> Iterator[Upstream]:
    """Let `answer` answer what the submission's worker sends to `url`, until the block ends.

    The worker ends with the block, so that nothing of it waits for the next server. Raises what `answer` raised.
    """
    if not hasattr(socket, "send_fds"):
        raise SandboxUnavailable("Clients are graded where sockets can be passed between processes. Use Linux or WSL.")
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = Upstream(answer)
    thread = threading.Thread(target=server._run, args=(control,), name="upstream", daemon=True)
    with control:
        with theirs:
            port = submission.exchange(["reach"], [theirs])
        server.url = f"http://127.0.0.1:{int(port)}" if type(port) is int else "http://127.0.0.1:1"
        thread.start()
        try:
            yield server
        finally:
            server._loop.call_soon_threadsafe(server._loop.stop)
            thread.join(END_S)
            submission.fresh()
    if server.error is not None:
        raise RuntimeError(f"a server of the check's failed: {server.error!r}") from server.error
