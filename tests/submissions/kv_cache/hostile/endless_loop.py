"""Never answers, ignores every signal that can be ignored, and burns the processor.

fails: test_length_*

attack: V21
stopped by: C, a limit on the time of a call, kept by the judge, which ends the worker.
"""


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    import signal

    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
