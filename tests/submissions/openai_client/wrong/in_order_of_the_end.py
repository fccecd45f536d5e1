"""Gives the records in the order in which requests ended.

fails: test_load_agrees_with_a_queue test_load_failures test_load_timeouts test_load_at_a_server
"""


# %% task="run_load"
async def run_load(
    send: Callable[[int], AsyncIterator[Delta]],
    arrivals: list[float],
    *,
    max_concurrency: int | None = None,
    timeout_s: float | None = None,
) -> list[RequestRecord]:
    """Send `len(arrivals)` requests at their times and record what came of each.

    Args:
        send: gives the answer to request `i`, piece by piece.
        arrivals: when each is to be sent, in seconds from now, ascending.
        max_concurrency: how many may be on their way at once.
        timeout_s: how long after its time of arrival each is given up.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    slots = asyncio.Semaphore(max_concurrency or max(1, len(arrivals)))

    async def request(index: int, scheduled: float) -> RequestRecord:
        started = first = finished = error = None
        tokens = 0
        await asyncio.sleep(begin + scheduled - loop.time())
        try:
            async with asyncio.timeout_at(None if timeout_s is None else begin + scheduled + timeout_s), slots:
                started = loop.time() - begin
                async for delta in send(index):
                    if delta.text and first is None:
                        first = loop.time() - begin
                    if delta.usage is not None:
                        tokens = delta.usage.completion_tokens
                finished = loop.time() - begin
        except TimeoutError:
            error = "timeout"
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        return RequestRecord(scheduled, started, first, finished, tokens, error)

    records = await asyncio.gather(*(request(i, when) for i, when in enumerate(arrivals)))
    return sorted(records, key=lambda each: each.finished_s or math.inf)
