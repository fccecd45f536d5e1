"""Remembers the mean of each (alpha, gamma), and looks the reasonable lengths up in a table.

twin of: D1 D3
"""

# %% helpers="helpers"
# Type and value are the key: True is not 1 here.
from functools import lru_cache


@lru_cache(maxsize=500, typed=True)
def mean(alpha, gamma):
    return 1.0 if gamma == 0 else 1.0 + alpha * mean(alpha, gamma - 1)


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    check_number(alpha, "alpha", 0, 1)
    check_count(gamma, "gamma")
    for shorter in range(0, gamma, 100):  # so that the recursion stays flat
        mean(alpha, shorter)
    return mean(alpha, gamma)
