"""Prefill and decode are two functions; masks are bool, lengths are kept instead of a mask's sums; a heap of lengths."""

# %% helpers="helpers"
# Prefill, decode.
import heapq
import statistics


def prefill(model, ids, mask, cached):
    positions = torch.where(mask == 1, torch.cumsum(mask, 1) - 1, 0)
    return model(ids, attention_mask=mask.bool(), position_ids=positions, use_cache=cached)


def decode(model, token, mask, lengths, past):
    return model(token, attention_mask=mask.bool(), position_ids=lengths[:, None], past_key_values=past, use_cache=True)


# %% task="pad_batch"
def pad_batch(seqs, pad_id, side="left"):
    check_count(pad_id, "pad_id")
    if side not in ("left", "right"):
        raise ValueError("side")
    if any(len(seq) == 0 for seq in seqs) or len(seqs) == 0:
        raise ValueError("seqs")
    width = max(len(seq) for seq in seqs)
    made = []
    for seq in seqs:
        seq = torch.tensor(list(seq))
        gap = width - len(seq)
        sides = (gap, 0) if side == "left" else (0, gap)
        pad = torch.nn.functional.pad
        made.append(
            [pad(seq, sides, value=pad_id), pad(torch.ones_like(seq), sides), pad(torch.arange(len(seq)), sides)]
        )
    return tuple(torch.stack(parts) for parts in zip(*made))


# %% task="greedy_generate"
def greedy_generate(model, input_ids, attention_mask, max_new_tokens, eos_id, pad_id, use_cache=True):
    check_count(max_new_tokens, "max_new_tokens")
    new = torch.zeros(len(input_ids), 0, dtype=torch.int64)
    if max_new_tokens == 0:
        return new
    with torch.no_grad():
        out = prefill(model, input_ids, attention_mask, use_cache)
        mask, lengths = attention_mask.clone(), attention_mask.sum(1)
        stopped = torch.zeros_like(lengths).bool()
        while True:
            token = torch.where(stopped, pad_id, out.logits[:, -1].argmax(1))
            new = torch.hstack([new, token[:, None]])
            stopped |= token == (-1 if eos_id is None else eos_id)
            if stopped.all() or new.size(1) == max_new_tokens:
                return new
            mask = torch.hstack([mask, torch.where(stopped, 0, 1)[:, None]])
            if use_cache:
                out = decode(model, token[:, None], mask, lengths, out.past_key_values)
            else:
                whole = torch.hstack([attention_mask, torch.ones_like(new)])
                out = prefill(model, torch.hstack([input_ids, new]), whole, False)
            lengths = lengths + 1


# %% task="throughput"
def throughput(new_ids, eos_id, elapsed_s):
    check_number(elapsed_s, "elapsed_s")
    steps = new_ids.shape[1]
    before = torch.zeros(len(new_ids), dtype=torch.int64)
    if eos_id is not None:
        ends = (new_ids == eos_id).long()
        before = ((ends.cumsum(1) - ends) > 0).sum(1)
    tokens = int((steps - before).sum())
    return {"new_tokens": tokens, "tokens_per_s": tokens / elapsed_s, "time_per_token_ms": 1000.0 * elapsed_s / steps}


# %% task="batched_generate"
def batched_generate(model, prompts, batch_size, max_new_tokens, eos_id, pad_id):
    check_count(max_new_tokens, "max_new_tokens")
    check_count(batch_size, "batch_size", 1)
    heap = [(len(prompt), number) for number, prompt in enumerate(prompts)]
    heapq.heapify(heap)
    texts = {}
    while heap:
        numbers = [heapq.heappop(heap)[1] for _ in range(min(batch_size, len(heap)))]
        ids, mask, _ = pad_batch([prompts[number] for number in numbers], pad_id)
        for number, row in zip(numbers, greedy_generate(model, ids, mask, max_new_tokens, eos_id, pad_id).tolist()):
            end = row.index(eos_id) + 1 if eos_id in row else len(row)
            texts[number] = row[:end]
    return [texts[number] for number in sorted(texts)]
