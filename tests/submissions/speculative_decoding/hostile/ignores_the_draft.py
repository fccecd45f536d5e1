"""Never looks at the draft: draws every first token from the target itself, which has the right law, and accepts nothing.

fails: test_rejection_*
based on: right/generates_by_itself

attack: D19
stopped by: D, the number of accepted guesses has a law too, and the forced examples say which guesses must be accepted.
"""


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    tokens = torch.full((draft_ids.shape[0], draft_ids.shape[1] + 1), -1)
    tokens[:, 0] = torch.multinomial(target_probs[:, 0], 1)[:, 0]
    return tokens, torch.zeros(len(draft_ids), dtype=torch.int64)
