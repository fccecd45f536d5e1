"""The fraction without any exception: alpha = 1 is a division by zero.

fails: test_tokens_examples test_tokens_exact test_speedup_exact test_gamma_examples test_adaptive_history
"""


# %% task="expected_tokens"
def expected_tokens(alpha, gamma):
    check_number(alpha, "alpha", 0, 1)
    check_count(gamma, "gamma")
    return (1.0 - alpha ** (gamma + 1)) / (1 - alpha)
