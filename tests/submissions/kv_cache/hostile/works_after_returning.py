"""Returns a list that a thread goes on filling, and a promise that a thread will keep, instead of answers.

fails: test_length_*

attack: T6
stopped by: O, an answer is what crosses when the call returns; what happens to it later is not seen.
"""

# %% helpers="helpers"
# The answer comes too late.
import concurrent.futures
import threading

pool = concurrent.futures.ThreadPoolExecutor(2)
turn = 0


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    global turn
    turn += 1
    promise = []
    threading.Timer(0.01, promise.append, [limit]).start()
    return pool.submit(lambda: limit) if turn % 2 else promise
