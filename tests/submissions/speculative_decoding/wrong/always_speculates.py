"""Never answers 0: looks from 1 on.

fails: test_gamma_examples test_gamma_is_the_best test_adaptive_history
"""


# %% task="optimal_gamma"
def optimal_gamma(alpha, c, max_gamma, min_gamma=0):
    check_count(min_gamma, "min_gamma")
    check_count(max_gamma, "max_gamma", min_gamma)
    min_gamma = max(min_gamma, 1)
    best = min_gamma
    best_speed = speedup(alpha, min_gamma, c)
    for gamma in range(min_gamma + 1, max_gamma + 1):
        if speedup(alpha, gamma, c) > best_speed:
            best, best_speed = gamma, speedup(alpha, gamma, c)
    return best
