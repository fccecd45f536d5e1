"""Batches as the prompts come.

fails: test_batched_example test_batched_counts
"""


# %% task="batched_generate"
def batched_generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    max_new_tokens: int,
    eos_id: int | None,
    pad_id: int,
) -> list[list[int]]:
    check_count(batch_size, "batch_size", 1)
    check_count(max_new_tokens, "max_new_tokens")
    order = list(range(len(prompts)))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        input_ids, mask, _ = pad_batch([prompts[index] for index in chosen], pad_id)
        new = greedy_generate(model, input_ids, mask, max_new_tokens, eos_id, pad_id)
        for index, row in zip(chosen, new.tolist(), strict=True):
            results[index] = row[: row.index(eos_id) + 1] if eos_id in row else row
    return results
