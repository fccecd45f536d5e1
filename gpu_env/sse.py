"""One streamed answer of a server: from hostile bytes to text, and when each piece of the text came.

An `Answer` is fed what a socket receives. It reads HTTP/1.1 (h11), server-sent events and the JSON of OpenAI's streamed
completions and chat completions, does no input or output of its own, and raises `BadAnswer` with a named `Fault` at the
first thing that is wrong.

Covered: endless, dripping and huge answers, lines without end, floods of tiny chunks or events, compressed answers
(`Accept-Encoding: identity` was sent; nothing is ever unpacked), redirects (a status like any other), wrong JSON, wrong
types, error objects, streams that end before `[DONE]`. What follows `[DONE]` is not read.
Not covered: whether the text is right (`gpu_env.slo.audit`), TLS, HTTP/2, tool calls, more than the first choice.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import h11
import msgspec

__all__ = ["Answer", "BadAnswer", "Fault", "Limits"]

LINE_END = re.compile(rb"\r\n|\r|\n")
BOM = b"\xef\xbb\xbf"
DETAIL = 200
"""Characters of a server's own words that are kept for people."""


class Fault(StrEnum):
    """Why a request was not served. Each of them is a miss."""

    REFUSED = "refused"
    """No connection, or it broke."""
    TIME = "time"
    """Not finished in time."""
    SIZE = "size"
    """More bytes, lines or chunks than allowed."""
    STATUS = "status"
    """Not 200: an error, a rejection, a redirect."""
    FORMAT = "format"
    """Not HTTP/1.1, not server-sent events, compressed, not JSON, or not the JSON of a completion."""
    ERROR = "error"
    """An error object in the stream."""
    CUT = "cut"
    """Ended before `[DONE]`."""
    SHORT = "short"
    """Fewer tokens than the request's `min_tokens`."""
    LONG = "long"
    """More tokens than the request's `max_tokens`."""
    CROWDED = "crowded"
    """Not sent: the server had left too many requests unanswered."""


class BadAnswer(Exception):
    """What is wrong with an answer: a `Fault`, and a sentence."""

    def __init__(self, fault: Fault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail[:DETAIL]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server may make the client hold, read or wait for."""

    answer_s: float = 60.0
    """Seconds from a request's scheduled time to the end of its answer."""
    answer_bytes: int = 4 << 20
    """Bytes of one answer, as they come from the socket."""
    line_bytes: int = 64 << 10
    """Bytes of one line, and of one event."""
    pieces: int = 20_000
    """Lines, and chunks of HTTP, of one answer; a token is three or four of them."""
    total_bytes: int = 256 << 20
    """Bytes of all answers of a run."""
    in_flight: int = 512
    """Requests that may wait for the end of their answers at the same time; below the limit of open files."""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(_Chunk)


class Answer:
    """An answer while it arrives. Times are the caller's, of whatever clock."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._http = h11.Connection(h11.CLIENT)
        self._bytes = self._pieces = 0
        self._tail = bytearray()
        """The beginning of a line."""
        self._skip_newline = False
        """A line ended in CR with the bytes at hand; a LF that comes next belongs to it."""
        self._first_line = True
        self._data: list[bytes] = []
        """The data lines of an event."""
        self._data_bytes = 0
        self._text: list[str] = []
        self.times_s = array("d")
        """When each non-empty piece of text came."""
        self.done = False

    @property
    def text(self) -> str:
        """What came so far, verbatim."""
        return "".join(self._text)

    def request(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """The bytes that ask for this answer."""
        with_length = [*headers, ("Content-Length", str(len(body)))]
        head = self._http.send(h11.Request(method=method, target=path, headers=with_length))
        end = self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage())
        return b"".join(part or b"" for part in (head, *end))

    def feed(self, data: bytes, now_s: float) -> bool:
        """Take the bytes that came at `now_s`, b"" for the end of the connection; whether the answer is complete.

        Raises BadAnswer.
        """
        self._bytes += len(data)
        if self._bytes > self._limits.answer_bytes:
            raise BadAnswer(Fault.SIZE, f"an answer of more than {self._limits.answer_bytes:,} bytes")
        try:
            self._http.receive_data(data)
            for body in self._bodies():
                for line in self._lines(body):
                    self._take_line(line, now_s)
                    if self.done:
                        return True
        except h11.RemoteProtocolError as error:
            raise BadAnswer(Fault.FORMAT if data else Fault.CUT, f"not HTTP/1.1: {error}") from None
        return False

    def _bodies(self) -> Iterator[bytes]:
        """Pieces of the body that h11 has now."""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED:
                return
            self._count_piece()
            if isinstance(event, h11.Response):
                self._check_head(event)
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                raise BadAnswer(Fault.CUT, "the stream ended before [DONE]")

    def _check_head(self, head: h11.Response) -> None:
        if head.status_code != 200:
            raise BadAnswer(Fault.STATUS, f"status {head.status_code}")
        headers = {name.lower(): value.decode("latin-1").strip().lower() for name, value in head.headers}
        encoding, kind = headers.get(b"content-encoding", "identity"), headers.get(b"content-type", "nothing")
        if encoding != "identity":
            raise BadAnswer(Fault.FORMAT, f"Content-Encoding is {encoding}, though only identity was accepted")
        if kind.partition(";")[0].strip() != "text/event-stream":
            raise BadAnswer(Fault.FORMAT, f"Content-Type is {kind}, not text/event-stream")

    def _lines(self, data: bytes) -> Iterator[bytes]:
        """Whole lines, without their ends; each byte is scanned once."""
        if self._skip_newline and data:
            data = data.removeprefix(b"\n")
            self._skip_newline = False
        if not data:
            return
        self._skip_newline = data.endswith(b"\r")
        start = 0
        for end in LINE_END.finditer(data):
            line = bytes(self._tail) + data[start : end.start()]
            self._tail.clear()
            start = end.end()
            self._check_line(len(line))
            yield line
        self._tail += data[start:]
        self._check_line(len(self._tail))

    def _check_line(self, size: int) -> None:
        if size + self._data_bytes > self._limits.line_bytes:
            raise BadAnswer(Fault.SIZE, f"a line or event of more than {self._limits.line_bytes:,} bytes")

    def _take_line(self, line: bytes, now_s: float) -> None:
        """As in HTML, section 9.2.6: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
        self._count_piece()
        if self._first_line:
            line = line.removeprefix(BOM)
            self._first_line = False
        if not line:
            if self._data:
                self._take_event(b"\n".join(self._data), now_s)
            self._data.clear()
            self._data_bytes = 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._data_bytes += len(line)

    def _take_event(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _decoder.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadAnswer(Fault.FORMAT, f"not the JSON of a completion: {error}") from None
        if bytes(chunk.error) not in (b"", b"null"):
            raise BadAnswer(Fault.ERROR, bytes(chunk.error).decode(errors="replace"))
        for choice in chunk.choices:
            piece = (choice.delta.content if choice.delta else choice.text) if choice.index == 0 else None
            if piece:
                self._text.append(piece)
                self.times_s.append(now_s)

    def _count_piece(self) -> None:
        self._pieces += 1
        if self._pieces > self._limits.pieces:
            raise BadAnswer(Fault.SIZE, f"an answer of more than {self._limits.pieces:,} lines and chunks")
