"""Stops when the first text ends.

fails: test_greedy_example test_greedy_transformers test_greedy_counts test_greedy_ends test_batched_example
fails: test_batched_rows test_batched_counts test_batched_smollm
"""


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
        while new.shape[1] < max_new_tokens and not done.any():
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
