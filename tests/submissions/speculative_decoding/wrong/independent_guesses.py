"""Takes alpha gamma + 1, as if guesses after a rejection counted.

fails: test_tokens_examples test_tokens_exact test_speedup_examples test_speedup_exact test_gamma_examples
fails: test_gamma_is_the_best test_adaptive_example test_adaptive_history
"""


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    check_number(alpha, "alpha", 0, 1)
    check_count(gamma, "gamma")
    return alpha * gamma + 1.0
