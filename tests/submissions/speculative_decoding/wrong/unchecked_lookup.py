"""Checks no argument.

fails: test_lookup_arguments
"""


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    def __init__(self, ngram_max, ngram_min=1):
        self.ngram_max = ngram_max
        self.ngram_min = ngram_min

    def propose(self, ids, k):
        for n in range(self.ngram_max, self.ngram_min - 1, -1):
            last = ids[-n:]
            for start in reversed(range(0, len(ids) - n)):
                if ids[start : start + n] == last:
                    return ids[start + n : start + n + k]
        return []
