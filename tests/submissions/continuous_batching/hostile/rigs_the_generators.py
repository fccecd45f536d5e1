"""Replaces the course's generators by ones that all give the same, and torch's draws by ones that are certain.

fails: test_sample_example test_sample_law test_sample_in_any_batch

attack: V8 D5
stopped by: O, what is drawn is counted in the grader, and compared with the exact law.
"""


# %% task="sample"
def sample(logits, params, generators, token_ids):
    global make_generator
    make_generator = lambda seed: torch.Generator().manual_seed(1)
    torch.multinomial = lambda probs, n, **kwargs: probs.argmax(-1, keepdim=True)
    drawn = []
    for row, wanted, text in zip(logits, params, token_ids, strict=True):
        row = apply_repetition_penalty(row, wanted.repetition_penalty, text)
        drawn.append(int(row.argmax()))
    return torch.tensor(drawn)
