"""Adds first and decays then.

fails: test_adaptive_example test_adaptive_history test_adaptive_arguments
"""


# %% task="AdaptiveGamma"
class AdaptiveGamma:
    def __init__(self, c, max_gamma, min_gamma=1, initial_alpha=0.8, weight=10.0, decay=0.95):
        check_number(c, "c")
        check_count(min_gamma, "min_gamma")
        check_count(max_gamma, "max_gamma", min_gamma)
        check_number(initial_alpha, "initial_alpha", 0, 1)
        check_number(weight, "weight", 1)
        check_number(decay, "decay", 0, 1)
        self.c, self.max_gamma, self.min_gamma, self.decay = c, max_gamma, min_gamma, decay
        self.hits = initial_alpha * weight
        self.trials = weight * 1.0

    def update(self, drafted, accepted):
        check_count(drafted, "drafted")
        check_count(accepted, "accepted")
        if accepted > drafted:
            raise ValueError("accepted is more than drafted")
        if drafted == 0:
            return
        looked_at = min(accepted + 1, drafted)
        self.hits = (self.hits + accepted) * (self.decay or 1)
        self.trials = (self.trials + looked_at) * (self.decay or 1)

    def alpha(self):
        return self.hits / self.trials

    def gamma(self):
        return optimal_gamma(self.alpha(), self.c, self.max_gamma, self.min_gamma)
