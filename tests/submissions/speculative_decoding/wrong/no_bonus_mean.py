"""Forgets the bonus token in the mean: the sum ends one term too early.

fails: test_tokens_examples test_tokens_exact test_speedup_examples test_speedup_exact test_gamma_examples
fails: test_gamma_is_the_best test_adaptive_example test_adaptive_history
"""


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    check_number(alpha, "alpha", 0, 1)
    check_count(gamma, "gamma")
    return float(sum(alpha**place for place in range(gamma)))
