"""Does not check c and v.

fails: test_speedup_arguments test_gamma_arguments test_adaptive_arguments
"""


# %% task="speedup"
def speedup(alpha, gamma, c, v=1.0):
    return expected_tokens(alpha, gamma) / (gamma * c + v)
