"""Counts gamma + 1 runs of the draft.

fails: test_speedup_examples test_speedup_exact test_gamma_examples test_gamma_is_the_best
fails: test_adaptive_history
"""


# %% task="speedup"
def speedup(alpha, gamma, c, v=1.0):
    check_number(c, "c")
    check_number(v, "v", 1)
    return expected_tokens(alpha, gamma) / ((gamma + 1) * c + v)
