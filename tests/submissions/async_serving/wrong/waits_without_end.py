"""Lets everybody wait.

fails: test_limiter_takes_turns test_limiter_agrees_with_model test_limiter_arguments test_chat_slots test_ws_closes
"""


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
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
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
