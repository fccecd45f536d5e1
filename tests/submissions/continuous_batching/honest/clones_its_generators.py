"""Works on a copy of each generator, and puts the state back after the draw: as if it played with the random numbers.

twin of: D5
"""


# %% task="sample"
def sample(logits, params, generators, token_ids):
    tokens = torch.zeros(len(params), dtype=torch.int64)
    for place, (row, wanted, generator, text) in enumerate(zip(logits, params, generators, token_ids)):
        mine = torch.Generator()
        mine.set_state(generator.get_state())
        row = apply_temperature(apply_repetition_penalty(row, wanted.repetition_penalty, text), wanted.temperature)
        row = apply_top_p(apply_top_k(apply_min_p(row, wanted.min_p), wanted.top_k), wanted.top_p)
        sums = torch.softmax(row.double(), -1).cumsum(-1)
        u = torch.rand(1, dtype=torch.float64, generator=mine) * sums[-1]
        tokens[place] = torch.searchsorted(sums, u, right=True)[0]
        generator.set_state(mine.get_state())
    return tokens
