"""Reads everything in each step, without a cache. (Batches have one.)

fails: test_greedy_example test_greedy_counts test_greedy_speed
"""

# %% helpers="helpers"
import statistics


def greedy_with_cache(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    max_new_tokens: int,
    eos_id: int | None,
    pad_id: int,
    use_cache: bool = True,
) -> torch.Tensor:
    check_count(max_new_tokens, "max_new_tokens")
    new = input_ids[:, :0]
    done = torch.zeros(len(input_ids), dtype=torch.bool)
    mask, read, past = attention_mask, input_ids, None
    with torch.inference_mode():
        while new.shape[1] < max_new_tokens and not done.all():
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -read.shape[1] :]
            out = model(
                input_ids=read,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=use_cache,
            )
            token = out.logits[:, -1].argmax(-1).masked_fill(done, pad_id)[:, None]
            new = torch.cat([new, token], 1)
            if eos_id is not None:
                done = done | (token[:, 0] == eos_id)
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            read = token if use_cache else torch.cat([input_ids, new], 1)
            past = out.past_key_values if use_cache else None
    return new



# %% task="greedy_generate"
def greedy_generate(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    max_new_tokens: int,
    eos_id: int | None,
    pad_id: int,
    use_cache: bool = True,
) -> torch.Tensor:
    check_count(max_new_tokens, "max_new_tokens")
    new = input_ids[:, :0]
    done = torch.zeros(len(input_ids), dtype=torch.bool)
    mask, read, past = attention_mask, input_ids, None
    with torch.inference_mode():
        while new.shape[1] < max_new_tokens and not done.all():
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -read.shape[1] :]
            out = model(
                input_ids=read,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=False,
            )
            token = out.logits[:, -1].argmax(-1).masked_fill(done, pad_id)[:, None]
            new = torch.cat([new, token], 1)
            if eos_id is not None:
                done = done | (token[:, 0] == eos_id)
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            read = torch.cat([input_ids, new], 1)
            past = None
    return new


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
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        input_ids, mask, _ = pad_batch([prompts[index] for index in chosen], pad_id)
        new = greedy_with_cache(model, input_ids, mask, max_new_tokens, eos_id, pad_id)
        for index, row in zip(chosen, new.tolist(), strict=True):
            results[index] = row[: row.index(eos_id) + 1] if eos_id in row else row
    return results
