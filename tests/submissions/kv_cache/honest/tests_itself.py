"""Runs unit tests and doctests of its own when it is loaded, as notebooks do.

twin of: V7 V8
"""

# %% helpers="helpers"
# unittest, doctest, assert; a conftest.py of its own for the IDE.
import doctest
import pathlib
import unittest
from bisect import bisect_left


def half(number):
    """
    >>> half(4)
    2
    """
    return number // 2


class TestHalf(unittest.TestCase):
    def test_half(self):
        self.assertEqual(half(6), 3)


unittest.main(argv=["me"], exit=False, module=None, defaultTest=None) if False else None
unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(TestHalf))
doctest.run_docstring_examples(half, {"half": half})
pathlib.Path("conftest.py").write_text("# nothing")


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    return bisect_left(range(1, limit + 1), True, key=too_long)
