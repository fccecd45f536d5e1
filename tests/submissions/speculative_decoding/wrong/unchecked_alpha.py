"""Checks nothing, so an alpha of 80 percent counts as 80.

fails: test_tokens_arguments test_speedup_arguments test_gamma_arguments
"""


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    return float(sum(alpha**place for place in range(gamma + 1)))
