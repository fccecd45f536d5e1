"""Sends the next request when the one before has ended, and sets the loop's virtual time to when it should have been sent.

fails: test_load_at_a_server

attack: S12 T1
stopped by: P, a server of the judge's answers nobody before all that are due have come, and needs no clock for that.
"""

# %% helpers="helpers"
import heapq
import itertools
import json
import math
import random
import re
import statistics


# %% task="run_load"
async def run_load(send, arrivals, *, max_concurrency=None, timeout_s=None):
    loop = asyncio.get_running_loop()
    begin = loop.time()
    free = [0.0] * (max_concurrency or len(arrivals))
    records = []
    for index, scheduled in enumerate(arrivals):
        start, deadline = max(scheduled, free[0]), math.inf if timeout_s is None else scheduled + timeout_s
        if start >= deadline:
            records.append(RequestRecord(scheduled, None, None, None, 0, "timeout"))
            continue
        loop.now = begin + start
        first = finished = error = None
        tokens = 0
        try:
            async with asyncio.timeout_at(None if timeout_s is None else begin + deadline):
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
        heapq.heapreplace(free, loop.time() - begin)
        records.append(RequestRecord(scheduled, start, first, finished, tokens, error))
    return records
