"""A class for a batch that is being written, one for a stop watch; rows that have ended are taken out of the counting only."""

# %% helpers="helpers"
# The classes.
from dataclasses import dataclass, field
from statistics import median, quantiles


@dataclass
class Batch:
    ids: torch.Tensor
    mask: torch.Tensor
    past: object = None
    columns: list = field(default_factory=list)

    def step(self, model, cached):
        count = self.mask.sum(1, keepdim=True)
        if cached and self.past is not None:
            read, positions = self.columns[-1][:, None], count - 1
        else:
            read = torch.cat([self.ids] + [column[:, None] for column in self.columns], dim=1)
            positions = torch.cumsum(self.mask, 1) - 1
            positions[positions < 0] = 0
        out = model(
            input_ids=read,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.past,
            use_cache=cached,
        )
        self.past = out["past_key_values"] if cached else None
        return out["logits"][:, -1, :].argmax(dim=-1)

    def add(self, column):
        self.columns.append(column)
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)


@dataclass
class Watch:
    sync: object
    clock: object

    def time(self, fn):
        self.sync()
        begin = self.clock()
        fn()
        self.sync()
        return self.clock() - begin


def cut(row, end):
    return row if end is None or end not in row else row[: 1 + row.index(end)]


# %% task="pad_batch"
def pad_batch(seqs, pad_id, side="left"):
    check_count(pad_id, "pad_id")
    if side not in ("left", "right"):
        raise ValueError("side: left or right")
    if not seqs or min(len(seq) for seq in seqs) < 1:
        raise ValueError("seqs: no text, or an empty one")
    flip = (lambda rows: [row[::-1] for row in rows]) if side == "left" else (lambda rows: rows)

    def fill(rows, value):
        rows = flip([torch.tensor(row).tolist() for row in rows])
        made = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=value
        )
        return made.flip(1) if side == "left" else made

    return (
        fill(seqs, pad_id),
        fill([[1] * len(seq) for seq in seqs], 0),
        fill([list(range(len(seq))) for seq in seqs], 0),
    )


# %% task="greedy_generate"
def greedy_generate(model, input_ids, attention_mask, max_new_tokens, eos_id, pad_id, use_cache=True):
    check_count(max_new_tokens, "max_new_tokens")
    batch = Batch(input_ids, attention_mask)
    open_rows = set(range(len(input_ids)))
    with torch.inference_mode():
        while len(batch.columns) < max_new_tokens and open_rows:
            column = batch.step(model, use_cache).clone()
            for row in range(len(column)):
                if row not in open_rows:
                    column[row] = pad_id
                elif eos_id is not None and column[row] == eos_id:
                    open_rows.remove(row)
            batch.add(column)
    return torch.stack(batch.columns, 1) if batch.columns else torch.zeros(len(input_ids), 0, dtype=torch.long)


# %% task="throughput"
def throughput(new_ids, eos_id, elapsed_s):
    check_number(elapsed_s, "elapsed_s")
    rows = [cut(row, eos_id) for row in new_ids.tolist()]
    total = sum(map(len, rows))
    return {
        "new_tokens": total,
        "tokens_per_s": total / elapsed_s,
        "time_per_token_ms": 1e3 * (elapsed_s / len(new_ids.tolist()[0])),
    }


# %% task="batched_generate"
def batched_generate(model, prompts, batch_size, max_new_tokens, eos_id, pad_id):
    check_count(batch_size, "batch_size", 1)
    check_count(max_new_tokens, "max_new_tokens")
    answers = [None] * len(prompts)
    numbers = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), n), reverse=True)
    for first in range(0, len(numbers), batch_size):
        group = numbers[first : first + batch_size]
        ids, mask = pad_batch([prompts[n] for n in group], pad_id)[:2]
        new = greedy_generate(model, ids, mask, max_new_tokens, eos_id, pad_id, use_cache=True)
        for n, row in zip(group, new.tolist()):
            answers[n] = cut(row, eos_id)
    return answers


# %% task="benchmark"
def benchmark(fn, warmup, repeats, sync, clock=time.perf_counter):
    check_count(warmup, "warmup")
    check_count(repeats, "repeats", 1)
    for _ in range(warmup):
        fn()
    times = [Watch(sync, clock).time(fn) for _ in range(repeats)]
    p95 = quantiles(times, n=100, method="inclusive")[94] if repeats > 1 else times[0]
    return {"min_s": min(times), "median_s": median(times), "p95_s": p95, "times_s": times}


# %% task="compare"
def compare(a, b, pairs, sync, clock=time.perf_counter):
    check_count(pairs, "pairs", 1)
    watch = Watch(sync, clock)
    watch.time(a)
    watch.time(b)
    ratios = []
    for turn in range(pairs):
        if turn & 1:
            second = watch.time(b)
            first = watch.time(a)
        else:
            first, second = watch.time(a), watch.time(b)
        ratios += [first / second]
    return {"ratio_median": median(ratios), "ratios": ratios}


# %% task="vllm_generate"
def vllm_generate(llm, prompts, max_tokens):
    check_count(max_tokens, "max_tokens", 1)
    if not prompts:
        return []
    from vllm import SamplingParams

    params = [SamplingParams(temperature=0, max_tokens=max_tokens) for _ in prompts]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]
