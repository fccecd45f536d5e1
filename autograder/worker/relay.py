"""The worker's side of a server of the judge's: a port of the worker's own 127.0.0.1 behind which the judge answers.

For each connection to the port a byte goes to the judge, which answers with a connected socket; bytes are then carried
between the two. So a submission's client needs no more than an address, and a worker's network still leads nowhere.

Not covered: keeping chunks as they were sent; a client may read two of them at once, as on any network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

__all__ = ["Relay"]


class Relay:
    """Listens on `port` until the worker ends. `control` leads to the judge."""

    def __init__(self, control: socket.socket) -> None:
        control.setblocking(True)
        self._control = control
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=lambda: asyncio.run(self._run()), name="relay", daemon=True).start()

    async def _run(self) -> None:
        async with await asyncio.start_server(self._connected, sock=self._listener) as server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._control.send(b"c")
            _, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)  # the judge has it ready: no time to wait
            if not descriptors:
                raise ConnectionError("refused")
            judge_reader, judge_writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptors[0]))
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(_carry(reader, judge_writer), _carry(judge_reader, writer))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
