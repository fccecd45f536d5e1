"""Recurses without end, in Python and in C, and raises exceptions that cannot be printed, copied or looked at.

fails: test_length_*

attack: V21 V5
stopped by: P, a crash ends the worker only; an exception crosses as checked text.
"""

# %% helpers="helpers"
# Deeper than the stack, and exceptions with traps.
import ctypes
import sys


class Trap(Exception):
    def __str__(self):
        raise Trap

    __repr__ = __str__

    def __getattribute__(self, name):
        raise Trap

    args = property(__str__)


turn = 0


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(*args, **kwargs):
    global turn
    turn += 1
    if turn % 3 == 1:
        raise Trap
    if turn % 3 == 2:
        raise ExceptionGroup("x" * 10_000, [Trap() for _ in range(1_000)])
    sys.setrecursionlimit(1 << 30)
    ctypes.string_at(1)
