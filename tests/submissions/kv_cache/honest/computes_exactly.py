"""Uses fractions, decimals with a context of their own, and enormous integers.

twin of: D11 T8
"""

# %% helpers="helpers"
# NaN and infinity too, for bounds.
import decimal
import math
import sys
from bisect import bisect_left
from fractions import Fraction

decimal.getcontext().prec = 60
sys.set_int_max_str_digits(100_000)
assert Fraction(1, 3) + Fraction(2, 3) == 1 and len(str(10**20_000)) == 20_001
UNLIMITED, UNKNOWN = math.inf, math.nan
assert UNKNOWN != UNKNOWN and min(UNLIMITED, 5) == 5 and decimal.Decimal("0.1") * 3 == decimal.Decimal("0.3")


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
