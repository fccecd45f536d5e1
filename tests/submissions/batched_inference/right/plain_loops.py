"""Lists and loops; tensors only where the model needs them. Positions by counting the mask row by row."""

# %% helpers="helpers"
# Small tools.


def middle(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def own_positions(mask_rows):
    found = []
    for row in mask_rows:
        count, places = 0, []
        for shown in row:
            places.append(count if shown else 0)
            count += shown
        found.append(places)
    return found


# %% task="pad_batch"
def pad_batch(seqs, pad_id, side="left"):
    check_count(pad_id, "pad_id")
    if side != "left" and side != "right":
        raise ValueError("side must be left or right")
    if len(seqs) == 0:
        raise ValueError("seqs is empty")
    longest = 0
    for seq in seqs:
        if len(seq) == 0:
            raise ValueError("seqs has an empty text")
        longest = max(longest, len(seq))
    ids, masks, positions = [], [], []
    for seq in seqs:
        missing = longest - len(seq)
        parts = [([pad_id] * missing, [0] * missing, [0] * missing), (list(seq), [1] * len(seq), list(range(len(seq))))]
        if side == "right":
            parts.reverse()
        ids.append(parts[0][0] + parts[1][0])
        masks.append(parts[0][1] + parts[1][1])
        positions.append(parts[0][2] + parts[1][2])
    return torch.tensor(ids), torch.tensor(masks), torch.tensor(positions)


# %% task="greedy_generate"
def greedy_generate(model, input_ids, attention_mask, max_new_tokens, eos_id, pad_id, use_cache=True):
    check_count(max_new_tokens, "max_new_tokens")
    text, mask = input_ids.tolist(), attention_mask.tolist()
    rows, start = len(text), len(text[0])
    finished, cache, read_from = [False] * rows, None, 0
    for _ in range(max_new_tokens):
        positions = own_positions(mask)
        out = model(
            torch.tensor([row[read_from:] for row in text]),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor([row[read_from:] for row in positions]),
            past_key_values=cache,
            use_cache=use_cache,
        )
        for row in range(rows):
            token = pad_id if finished[row] else int(torch.argmax(out.logits[row, -1]))
            if eos_id is not None and token == eos_id:
                finished[row] = True
            text[row].append(token)
            mask[row].append(1)
        if use_cache:
            cache = out.past_key_values
            read_from = len(text[0]) - 1
        if all(finished):
            break
    return torch.tensor([row[start:] for row in text], dtype=torch.int64).reshape(rows, -1)


# %% task="throughput"
def throughput(new_ids, eos_id, elapsed_s):
    check_number(elapsed_s, "elapsed_s")
    count = 0
    for row in new_ids:
        for token in row:
            count += 1
            if eos_id is not None and int(token) == eos_id:
                break
    wait = elapsed_s / len(new_ids[0]) * 1000
    return {"new_tokens": count, "tokens_per_s": count / elapsed_s, "time_per_token_ms": wait}


# %% task="batched_generate"
def batched_generate(model, prompts, batch_size, max_new_tokens, eos_id, pad_id):
    check_count(batch_size, "batch_size", 1)
    check_count(max_new_tokens, "max_new_tokens")
    waiting = list(enumerate(prompts))
    waiting.sort(key=lambda pair: -len(pair[1]))
    results = {}
    while waiting:
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        ids, mask, _ = pad_batch([prompt for _, prompt in batch], pad_id)
        new = greedy_generate(model, ids, mask, max_new_tokens, eos_id, pad_id)
        for (number, _), row in zip(batch, new.tolist()):
            results[number] = []
            for token in row:
                results[number].append(token)
                if token == eos_id:
                    break
    return [results[number] for number in range(len(prompts))]


# %% task="benchmark"
def benchmark(fn, warmup, repeats, sync, clock=time.perf_counter):
    check_count(warmup, "warmup")
    check_count(repeats, "repeats", 1)
    for _ in range(warmup):
        fn()
    sync()  # what the warm-up left
    times = []
    for _ in range(repeats):
        begin = clock()
        fn()
        sync()
        end = clock()
        times.append(end - begin)
    ordered = sorted(times)
    r = 0.95 * (len(times) - 1)
    k = math.floor(r)
    p95 = ordered[k] if r == k else ordered[k] + (r - k) * (ordered[k + 1] - ordered[k])
    return {"times_s": times, "min_s": min(times), "median_s": middle(times), "p95_s": p95}


# %% task="compare"
def compare(a, b, pairs, sync, clock=time.perf_counter):
    check_count(pairs, "pairs", 1)
    a()
    b()
    ratios = []
    for number in range(pairs):
        took = {}
        for name, fn in [("a", a), ("b", b)] if number % 2 == 0 else [("b", b), ("a", a)]:
            sync()
            begin = clock()
            fn()
            sync()
            took[name] = clock() - begin
        ratios.append(took["a"] / took["b"])
    return {"ratio_median": middle(ratios), "ratios": ratios}


# %% task="vllm_generate"
def vllm_generate(llm, prompts, max_tokens):
    check_count(max_tokens, "max_tokens", 1)
    if len(prompts) == 0:
        return []
    from vllm import SamplingParams, TokensPrompt

    asked = []
    for prompt in prompts:
        asked.append(TokensPrompt(prompt_token_ids=prompt))
    found = []
    for output in llm.generate(asked, SamplingParams(max_tokens=max_tokens, temperature=0.0)):
        tokens = []
        for token in output.outputs[0].token_ids:
            tokens.append(token)
        found.append(tokens)
    return found
