"""Sets each generator back to its seed in every step.

fails: test_sample_in_any_batch
"""


# %% task="sample"
def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    generators: Sequence[torch.Generator],
    token_ids: Sequence[Sequence[int]],
) -> torch.Tensor:
    drawn = []
    for row, wanted, generator, text in zip(logits, params, generators, token_ids, strict=True):
        generator.manual_seed(generator.initial_seed())
        row = apply_repetition_penalty(row, wanted.repetition_penalty, text)
        row = apply_temperature(row, wanted.temperature)
        row = apply_min_p(row, wanted.min_p)
        row = apply_top_k(row, wanted.top_k)
        row = apply_top_p(row, wanted.top_p)
        drawn.append(torch.multinomial(torch.softmax(row, -1), 1, generator=generator))
    return torch.cat(drawn)
