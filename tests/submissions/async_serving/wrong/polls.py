"""Looks again every ten milliseconds instead of being woken.

fails: test_queue_waits_when_full test_limiter_takes_turns test_queue_agrees_with_model test_queue_closed_by_its_reader test_limiter_agrees_with_model test_limiter_cancelled_in_its_turn
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
        while len(self._items) >= self._max_size and not self._closed:
            await asyncio.sleep(0.01)
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


# %% task="ConcurrencyLimiter"
class ConcurrencyLimiter:
    """At most `max_running` callers have a slot, at most `max_waiting` more wait for one, first come first served."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        if max_running < 1:
            raise ValueError(f"max_running must be at least 1, not {max_running}")
        if max_waiting < 0:
            raise ValueError(f"max_waiting must be at least 0, not {max_waiting}")
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._queue: deque[asyncio.Future[None]] = deque()
        self.running = 0

    async def acquire(self) -> None:
        """Take a slot, now or when its turn has come.

        Raises:
            Overloaded: all slots are taken and `max_waiting` callers wait already.
        """
        if self.running < self._max_running:
            self.running += 1
            return
        if self.waiting >= self._max_waiting:
            raise Overloaded
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            while not turn.done():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was given to us already
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back. Raises `RuntimeError` if none is taken."""
        if self.running == 0:
            raise RuntimeError("release() without a slot that is taken")
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    @property
    def waiting(self) -> int:
        return sum(not turn.done() for turn in self._queue)
