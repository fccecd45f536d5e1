"""Draws from the target and claims that a guess was accepted where it happens to be the same: the text's law is right.

fails: test_rejection_law test_rejection_lengths test_rejection_first_token test_rejection_two_guesses
based on: right/generates_by_itself

attack: D19
stopped by: D, tokens and the number of accepted guesses are compared with their joint law; far fewer guesses agree.
"""


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    batch, width = target_probs.shape[:2]
    drawn = torch.multinomial(target_probs.flatten(0, 1), 1, generator=generator).reshape(batch, width)
    same = (drawn[:, :-1] == draft_ids).long().cumprod(1)
    n_accepted = same.sum(1)
    drawn[torch.arange(width) > n_accepted[:, None]] = -1
    return drawn, n_accepted
