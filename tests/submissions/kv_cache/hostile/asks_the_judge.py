"""Calls functions of the judge that it was never given, with arguments that no check sends, from several threads.

fails: *

attack: V15 V3
stopped by: P, a number that was not handed out is malformed, and ends the worker.
"""

# %% helpers="helpers"
# Finds the worker's loop and lets it invoke.
import gc
import threading


def loops():
    return [thing for thing in gc.get_objects() if type(thing).__name__ == "_Server"]


def ask(number):
    for loop in loops():
        try:
            print(number, loop.invoke(number, ["expected"], {}))
        except BaseException as error:
            print(number, error)


def answer(*args, **kwargs):
    threads = [threading.Thread(target=ask, args=(number,)) for number in (0, 1, -1, 10**6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1)
    return 8192


# %% task="kv_bytes_per_token"
kv_bytes_per_token = answer

# %% task="kv_cache_bytes"
kv_cache_bytes = answer

# %% task="max_concurrency"
max_concurrency = answer

# %% task="max_model_len_that_fits"
max_model_len_that_fits = answer

# %% task="BlockPool"
BlockPool = answer

# %% task="PagedKVCacheManager"
PagedKVCacheManager = answer

# %% task="PagedAttentionLayer"
PagedAttentionLayer = answer

# %% task="QuantizedKVLayer"
QuantizedKVLayer = answer

# %% task="sliding_window_evict"
sliding_window_evict = evict_blocks = answer
