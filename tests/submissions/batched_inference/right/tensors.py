"""No loop over rows: index arithmetic, scatter and cumulative sums. Keeps only the last column's logits."""

# %% helpers="helpers"
# Tensor tools.
import numpy as np


def lengths_to(end, new):
    """Tokens of each row up to and with the first `end`."""
    columns = new.shape[1]
    if end is None:
        return torch.full((len(new),), columns)
    hit = new == end
    return torch.where(hit.any(1), hit.int().argmax(1) + 1, columns)


# %% task="pad_batch"
def pad_batch(seqs, pad_id, side="left"):
    check_count(pad_id, "pad_id")
    if side not in {"left", "right"}:
        raise ValueError(f"no such side: {side}")
    lengths = torch.tensor([len(seq) for seq in seqs], dtype=torch.int64)
    if not len(seqs) or int(lengths.min()) == 0:
        raise ValueError("seqs: there must be a text, and a token in each")
    width = int(lengths.max())
    places = torch.arange(width).expand(len(seqs), width)
    if side == "left":
        places = places - (width - lengths)[:, None]
    real = (places >= 0) & (places < lengths[:, None])
    ids = torch.full((len(seqs), width), pad_id)
    ids[real] = torch.cat([torch.tensor(seq) for seq in seqs])
    return ids, real.long(), places * real


# %% task="greedy_generate"
@torch.no_grad()
def greedy_generate(model, input_ids, attention_mask, max_new_tokens, eos_id, pad_id, use_cache=True):
    check_count(max_new_tokens, "max_new_tokens")
    rows, width = input_ids.shape
    ids = torch.cat([input_ids, input_ids.new_full((rows, max_new_tokens), pad_id)], 1)
    mask = torch.cat([attention_mask, attention_mask.new_ones((rows, max_new_tokens))], 1)
    positions = (mask.cumsum(1) - mask).clamp(max=mask.sum(1, keepdim=True))
    alive, past, begin = torch.ones(rows, dtype=torch.bool), None, 0
    end = width
    while end < ids.shape[1] and bool(alive.any()):
        given = {"past_key_values": past} if use_cache else {}
        out = model(
            input_ids=ids[:, begin:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, begin:end],
            use_cache=use_cache,
            logits_to_keep=1,
            **given,
        )
        best = out.logits[:, 0].max(-1).indices
        ids[alive, end] = best[alive]
        if eos_id is not None:
            alive &= best != eos_id
        if use_cache:
            past, begin = out.past_key_values, end
        end += 1
    return ids[:, width:end]


# %% task="throughput"
def throughput(new_ids, eos_id, elapsed_s):
    check_number(elapsed_s, "elapsed_s")
    count = lengths_to(eos_id, new_ids).sum().item()
    return dict(
        new_tokens=count,
        tokens_per_s=count / elapsed_s,
        time_per_token_ms=elapsed_s * 1e3 / new_ids.size(1),
    )


# %% task="batched_generate"
def batched_generate(model, prompts, batch_size, max_new_tokens, eos_id, pad_id):
    check_count(batch_size, "batch_size", 1)
    check_count(max_new_tokens, "max_new_tokens")
    order = torch.argsort(torch.tensor([len(prompt) for prompt in prompts]), stable=True)
    found = []
    for part in order.split(batch_size) if len(prompts) else ():
        ids, mask, _ = pad_batch([prompts[i] for i in part], pad_id)
        new = greedy_generate(model, ids, mask, max_new_tokens, eos_id, pad_id)
        found += [row[:n].tolist() for row, n in zip(new, lengths_to(eos_id, new) if new.shape[1] else [0] * len(new))]
    back = torch.argsort(order).tolist()
    return [found[i] for i in back]


# %% task="benchmark"
def benchmark(fn, warmup, repeats, sync, clock=time.perf_counter):
    check_count(repeats, "repeats", minimum=1)
    check_count(warmup, "warmup")
    stamps = np.empty((repeats, 2))
    for i in range(-warmup, repeats):
        if i < 0:
            fn()
            continue
        sync()
        stamps[i, 0] = clock()
        fn()
        sync()
        stamps[i, 1] = clock()
    times = stamps[:, 1] - stamps[:, 0]
    return {
        "min_s": float(times.min()),
        "median_s": float(np.median(times)),
        "p95_s": float(np.percentile(times, 95)),
        "times_s": times.tolist(),
    }


# %% task="compare"
def compare(a, b, pairs, sync, clock=time.perf_counter):
    check_count(pairs, "pairs", 1)
    for fn in (a, b):
        fn()
    sync()
    order = np.tile([0, 1, 1, 0], pairs)[: 2 * pairs].reshape(pairs, 2)
    took = np.zeros((pairs, 2))
    for pair, both in enumerate(order):
        for who in both:
            began = clock()
            (a, b)[who]()
            sync()
            took[pair, who] = clock() - began
    ratios = took[:, 0] / took[:, 1]
    return {"ratio_median": float(np.median(ratios)), "ratios": ratios.tolist()}


# %% task="vllm_generate"
def vllm_generate(llm, prompts, max_tokens):
    check_count(max_tokens, "max_tokens", 1)
    import vllm

    if not prompts:
        return []
    greedy = vllm.SamplingParams(temperature=0, max_tokens=max_tokens)
    outputs = llm.generate(list(map(list, prompts)), greedy, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]
