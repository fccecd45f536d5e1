"""Ignores v: checking a draft costs as much as one token.

fails: test_speedup_examples test_speedup_exact
"""


# %% task="speedup"
def speedup(alpha, gamma, c, v=1.0):
    check_number(c, "c")
    check_number(v, "v", 1)
    return expected_tokens(alpha, gamma) / (gamma * c + 1)
