"""One request to a service, in flight: the check does other things meanwhile, and reads the answer as it comes.

    exchange = service.begin("POST", "/v1/completions", json={...})      # sent, nothing is waited for
    exchange.status                                                      # waits for the head of the answer
    exchange.until(b"data: ")                                            # waits until the body so far holds that
    exchange.body()                                                      # waits for the end
    exchange.hang_up()                                                   # as a client that goes away

Many can be in flight at once without a thread. h11 reads what comes; nothing is unpacked, no redirect followed.

Covered: size and time of an answer, what is no HTTP: faults of the submission.
Not covered: keeping connections open, pipelines: one connection for each exchange.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import h11

from autograder.checks import SubmissionFault

__all__ = ["Exchange"]


class Exchange:
    """A request that was sent on `sock`. `fault` makes a `SubmissionFault` of what a socket raises."""

    def __init__(
        self,
        sock: socket.socket,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes,
        *,
        fault: Callable[[BaseException], SubmissionFault],
        left_s: float,
        max_bytes: int,
    ) -> None:
        self._sock = sock
        self._fault = fault
        self._end = time.monotonic() + left_s
        self._left = self._most = max_bytes
        self._http = h11.Connection(h11.CLIENT)
        self._head: h11.Response | None = None
        self._body = bytearray()
        self.ended = False
        """Whether the whole answer was read."""
        lines = {"Host": "service", "Accept-Encoding": "identity", "Content-Length": str(len(content)), **headers}
        request = h11.Request(method=method, target=path, headers=list(lines.items()))
        data = [self._http.send(request), self._http.send(h11.Data(data=content)), self._http.send(h11.EndOfMessage())]
        try:
            self._sock.sendall(b"".join(part or b"" for part in data))
        except OSError as error:
            raise fault(error) from None

    @property
    def status(self) -> int:
        """The status; waits for it."""
        return self._started().status_code

    def header(self, name: str) -> str | None:
        """The value of a header; waits for the head of the answer."""
        wanted = name.lower().encode()
        return next((v.decode("latin-1").strip() for k, v in self._started().headers if k.lower() == wanted), None)

    def until(self, found: bytes | Callable[[bytes], bool]) -> bytes:
        """The body so far, as soon as it holds `found` (or `found(body)` is true), or at its end."""
        self._started()
        holds = found if callable(found) else lambda body: found in body
        while not self.ended and not holds(bytes(self._body)):
            self._receive()
        return bytes(self._body)

    def body(self) -> bytes:
        """The whole body; waits for its end."""
        return self.until(lambda body: False)

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body())
        except (ValueError, RecursionError):
            return None

    def hang_up(self) -> None:
        """Close the connection, whatever is still to come."""
        self._sock.close()

    def more_time(self, seconds: float) -> None:
        """A new limit from now: for answers whose length the check decides."""
        self._end = time.monotonic() + seconds

    def _started(self) -> h11.Response:
        while self._head is None:
            self._receive()
        return self._head

    def _receive(self) -> None:
        try:
            event = self._http.next_event()
            while event is h11.NEED_DATA:
                self._sock.settimeout(max(0.001, self._end - time.monotonic()))
                if time.monotonic() > self._end:
                    raise TimeoutError
                data = self._sock.recv(1 << 16)
                self._left -= len(data)
                if self._left < 0:
                    raise SubmissionFault(f"sent an answer of more than {self._most:,} bytes")
                self._http.receive_data(data)
                event = self._http.next_event()
        except (OSError, h11.RemoteProtocolError) as error:
            raise self._fault(error) from None
        if isinstance(event, h11.Response):
            self._head = event
        elif isinstance(event, h11.Data):
            self._body += event.data
        elif not isinstance(event, h11.InformationalResponse):
            self.ended = True
