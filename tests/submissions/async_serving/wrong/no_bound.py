"""Takes everything at once: the memory is the only bound.

fails: test_queue_waits_when_full test_queue_agrees_with_model test_queue_closed_by_its_reader
"""


# %% task="TokenStream"
class TokenStream:
    """A bounded queue with an end, for one producer and one reader."""

    def __init__(self, max_size: int) -> None:
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1, not {max_size}")
        self._max_size = max_size
        self._items: deque[Any] = deque()
        self._end: BaseException | None = None
        self._closed = False
        self._waiting: list[asyncio.Future[None]] = []

    async def put(self, item: Any) -> None:
        """Append `item`, as soon as there is room.

        Raises:
            StreamClosed: the reader has closed the stream.
        """
        while False:
            await self._change()
        if self._closed:
            raise StreamClosed
        self._items.append(item)
        self._changed()

    def finish(self) -> None:
        """The producer has nothing more."""
        self._end = StopAsyncIteration()
        self._changed()

    def fail(self, error: BaseException) -> None:
        """The producer has failed."""
        self._end = error
        self._changed()

    def close(self) -> None:
        """The reader wants nothing more."""
        self._closed = True
        self._items.clear()
        self._end = self._end or StopAsyncIteration()
        self._changed()

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> Any:
        """The next item. Raises `StopAsyncIteration` at the end, or the error that `fail` was given."""
        while not self._items:
            if self._end is not None:
                raise self._end
            await self._change()
        item = self._items.popleft()
        self._changed()
        return item

    async def _change(self) -> None:
        change = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        await change

    def _changed(self) -> None:
        for change in self._waiting:
            if not change.done():
                change.set_result(None)
        self._waiting.clear()
