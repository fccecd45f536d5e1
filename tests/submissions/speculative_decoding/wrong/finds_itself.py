"""Finds the end of the text as its own match, after which nothing follows.

fails: test_lookup_examples test_lookup_any_text test_lookup_arguments
"""


# %% task="PromptLookupProposer"
class PromptLookupProposer:
    def __init__(self, ngram_max, ngram_min=1):
        check_count(ngram_min, "ngram_min", 1)
        check_count(ngram_max, "ngram_max", ngram_min)
        self.ngram_max = ngram_max
        self.ngram_min = ngram_min

    def propose(self, ids, k):
        check_count(k, "k")
        for n in range(self.ngram_max, self.ngram_min - 1, -1):
            last = ids[-n:]
            for start in reversed(range(0, len(ids) - n + 1)):
                if ids[start : start + n] == last:
                    return ids[start + n : start + n + k]
        return []
