"""Shows the replacement character until the rest comes.

fails: test_detokenizer_examples test_detokenizer_any_tokens test_detokenizer_smollm2 test_detokenizer_work
"""


# %% task="IncrementalDetokenizer"
class IncrementalDetokenizer:
    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._prefix = self._read = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._new()
        if not text:
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return text

    def finish(self) -> str:
        return self._new()

    def _new(self) -> str:
        given = self._decode(self._ids[self._prefix : self._read])
        return self._decode(self._ids[self._prefix :])[len(given) :]
