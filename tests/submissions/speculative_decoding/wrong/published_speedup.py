"""The formula of a published notebook, gamma / (1 + (1 - alpha) gamma): the draft's cost is not in it.

fails: test_speedup_examples test_speedup_exact test_gamma_examples test_gamma_is_the_best
fails: test_adaptive_example test_adaptive_history test_adaptive_arguments
"""


# %% task="speedup"
def speedup(alpha, gamma, c, v=1.0):
    check_number(c, "c")
    check_number(v, "v", 1)
    return (expected_tokens(alpha, gamma) and gamma) / (1 + (1 - alpha) * gamma)
