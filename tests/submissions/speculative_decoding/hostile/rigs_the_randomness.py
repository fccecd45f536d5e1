"""Replaces torch's generators, draws and comparisons, and the course's own functions, with obliging ones.

fails: test_rejection_* test_generate_law test_generate_arguments
based on: right/generates_by_itself

attack: V8 D5
stopped by: P, guesses, laws and comparisons are the judge's; what is patched here changes this process only.
"""

# %% helpers="helpers"
# Every random number is 0, every two tensors are equal, every generator is the same.
the_one = torch.Generator().manual_seed(0)
torch.Generator = lambda *args, **kwargs: the_one
torch.rand = lambda *shape, **kwargs: torch.zeros(shape)
torch.equal = torch.allclose = lambda *args, **kwargs: True
make_generator = lambda seed: the_one


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    n_accepted = (draft_ids >= 0).sum(1)
    tokens = torch.cat([draft_ids, torch.full((len(draft_ids), 1), -1)], 1)
    rows = torch.arange(len(draft_ids))
    tokens[rows, n_accepted] = target_probs[rows, n_accepted].argmax(-1)
    return tokens, n_accepted
