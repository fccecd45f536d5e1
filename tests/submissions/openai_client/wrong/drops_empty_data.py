"""Gives no event for data that is an empty text.

fails: test_sse_random_streams
"""


# %% task="SSEDecoder"
class SSEDecoder:
    """Takes the bytes of an event stream in chunks, and gives the data of its events."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []
        self._after_cr = False
        self._first = True

    def _end_of_line(self) -> str | None:
        line = bytes(self._line)
        self._line.clear()
        if self._first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        text = line.decode("utf-8", errors="replace")
        if not text:
            value = "\n".join(self._data) or None
            self._data = []
            return value
        name, _, value = text.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        return None

    def feed(self, chunk: bytes) -> list[str]:
        """The data of all events that `chunk` completes, in order."""
        events = []
        for byte in chunk:
            if byte == 10 and self._after_cr:
                self._after_cr = False
                continue
            self._after_cr = byte == 13
            if byte in (10, 13):
                value = self._end_of_line()
                if value is not None:
                    events.append(value)
            else:
                self._line.append(byte)
        return events
