"""Runs an event loop inside of a call, with tasks that wait for each other and a thread.

twin of: T5 T6
"""

# %% helpers="helpers"
# Two lengths are tried at a time.
import asyncio


async def too_long(spec, budget, length, concurrency, block_size, tp):
    await asyncio.sleep(0)
    try:
        return max_concurrency(spec, budget, length, block_size, tp) < concurrency
    except InfeasibleError:
        return True


async def search(spec, budget, concurrency, block_size, limit, tp):
    low, high = 0, limit + 1
    while high - low > 1:
        step = max(1, (high - low) // 3)
        tried = [low + step, min(high - 1, low + 2 * step)]
        answers = await asyncio.gather(*(too_long(spec, budget, n, concurrency, block_size, tp) for n in tried))
        for length, bad in sorted(zip(tried, answers)):
            if bad:
                high = min(high, length)
            else:
                low = max(low, length)
    return low


assert asyncio.run(asyncio.to_thread(sum, [1, 2])) == 3


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)
    return asyncio.run(search(spec, budget, concurrency, block_size, limit, tp))
