"""Ends the process with success, in every way there is, as soon as it is asked for something.

fails: test_length_*

attack: V5
stopped by: P, an end without an answer is no answer, whatever the exit code.
"""

# %% task="max_model_len_that_fits"
turn = 0


def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    import os
    import signal
    import sys

    global turn
    turn += 1
    if turn == 1:
        raise SystemExit(0)
    if turn == 2:
        raise KeyboardInterrupt
    if turn == 3:
        raise GeneratorExit
    sys.stdout.flush()
    (os._exit if os.getpid() % 2 else lambda code: os.kill(os.getpid(), signal.SIGKILL))(0)
