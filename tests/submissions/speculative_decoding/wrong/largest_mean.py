"""Looks for the most tokens per step, not for the largest speed-up.

fails: test_gamma_examples test_gamma_is_the_best test_adaptive_example test_adaptive_history
fails: test_adaptive_arguments
"""


# %% task="optimal_gamma"
def optimal_gamma(alpha, c, max_gamma, min_gamma=0):
    check_count(min_gamma, "min_gamma")
    check_count(max_gamma, "max_gamma", min_gamma)
    best = min_gamma
    best_speed = speedup(alpha, min_gamma, c)
    for gamma in range(min_gamma + 1, max_gamma + 1):
        if expected_tokens(alpha, gamma) > expected_tokens(alpha, best):
            best, best_speed = gamma, speedup(alpha, gamma, c)
    return best
