"""Draws the token after a rejection with the u that led to the rejection.

fails: test_rejection_first_token test_rejection_law test_rejection_lengths test_rejection_one_hot
fails: test_rejection_two_guesses
based on: right/generates_by_itself
"""


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    batch, gamma = draft_ids.shape
    size = target_probs.shape[-1]
    numbers = torch.rand(batch, gamma, generator=generator).tolist()
    tokens = torch.full((batch, gamma + 1), -1)
    n_accepted = torch.zeros(batch, dtype=torch.int64)
    last = torch.empty(batch, size)
    p_of = target_probs.tolist()
    q_of = None if draft_probs is None else draft_probs.tolist()
    for b, guesses in enumerate(draft_ids.tolist()):
        count = 0
        final = None
        for i, x in enumerate(guesses):
            if x < 0:
                break
            q = 1.0 if q_of is None else q_of[b][i][x]
            if numbers[b][i] * q < p_of[b][i][x]:
                tokens[b, i] = x
                count += 1
            else:
                q_row = draft_probs[b, i] if draft_probs is not None else torch.eye(size)[x]
                missing = (target_probs[b, i] - q_row).clamp(min=0)
                final = missing / missing.sum()
                token = int((final.cumsum(0) <= numbers[b][i]).sum().clamp(max=size - 1))
                final = torch.eye(size)[token]
                break
        if final is None:
            final = target_probs[b, count]
        last[b] = final
        n_accepted[b] = count
    drawn = torch.multinomial(last, 1, generator=generator)[:, 0]
    tokens[torch.arange(batch), n_accepted] = drawn
    return tokens, n_accepted
