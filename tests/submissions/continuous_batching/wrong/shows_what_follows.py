"""With include_stop, shows the rest of the piece as well.

fails: test_stop_examples test_stop_any_pieces
"""


# %% task="StopChecker"
class StopChecker:
    def __init__(self, stop: Sequence[str], eos_token_ids: Sequence[int] = (), include_stop: bool = False) -> None:
        if "" in stop:
            raise ValueError("stop must not contain an empty string: every text ends with it")
        self._stop = sorted(stop, key=len, reverse=True)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._include_stop = include_stop
        self._held = ""

    def feed(self, text: str, token_id: int) -> tuple[str, str | None]:
        if token_id in self._eos_token_ids:
            return self.finish(), "stop"
        whole = self._held + text
        for end in range(1, len(text) + 1):
            seen = self._held + text[:end]
            for stop in self._stop:
                if seen.endswith(stop):
                    self._held = ""
                    return whole if self._include_stop else seen.removesuffix(stop), "stop"
        seen = self._held + text
        for start in range(max(0, len(seen) - len(max(self._stop, key=len, default=""))), len(seen) + 1):
            if any(stop.startswith(seen[start:]) for stop in self._stop) or start == len(seen):
                self._held = seen[start:]
                return seen[:start], None
        raise AssertionError("the empty ending is always found")

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held
