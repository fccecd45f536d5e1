"""NumPy and vectorised torch: masks by ranks, draws by the exponential race, the scheduler with queues and arrays of blocks."""

# %% helpers="helpers"
# Masks of rows; a scheduler's sequence.
from collections import OrderedDict, deque

import numpy as np


def masked(logits, keep):
    return torch.where(keep, logits, torch.tensor(-math.inf, dtype=logits.dtype))


class Sequence_:
    def __init__(self, name, prompt, most):
        self.name, self.prompt, self.most = name, tuple(prompt), most
        self.answer = np.zeros(0, dtype=np.int64)
        self.reset()

    def reset(self):
        self.computed, self.table = 0, []

    @property
    def known(self):
        return [*self.prompt, *self.answer.tolist()]


# %% task="apply_temperature"
def apply_temperature(logits, temperature):
    check_number(temperature, "temperature")
    if not temperature:
        places = torch.arange(logits.shape[-1])
        return masked(logits, places == logits.argmax(-1, keepdim=True))
    return logits * (1.0 / temperature)


# %% task="apply_top_k"
def apply_top_k(logits, k):
    check_count(k, "k")
    if not k:
        return logits + 0.0
    larger = (logits[..., None, :] > logits[..., :, None]).sum(-1)
    return masked(logits, larger < k)


# %% task="apply_top_p"
def apply_top_p(logits, p):
    check_number(p, "p", 1, positive=True)
    array = logits.numpy().astype(np.float64)
    if p >= 1:
        return logits.clone()
    weights = np.exp(array - array.max(-1, keepdims=True))
    probs = weights / weights.sum(-1, keepdims=True)
    order = np.argsort(-probs, axis=-1, kind="stable")
    ranked = np.take_along_axis(probs, order, -1)
    before = np.concatenate([np.zeros_like(ranked[..., :1]), ranked.cumsum(-1)[..., :-1]], -1)
    keep = np.empty(probs.shape, dtype=bool)
    np.put_along_axis(keep, order, before < p, -1)
    return masked(logits, torch.from_numpy(keep))


# %% task="apply_min_p"
def apply_min_p(logits, min_p):
    check_number(min_p, "min_p", 1)
    if min_p == 0:
        return logits.clone()
    return masked(logits, logits >= logits.max(-1, keepdim=True).values + math.log(min_p))


# %% task="apply_repetition_penalty"
def apply_repetition_penalty(logits, penalty, token_ids):
    check_number(penalty, "penalty", positive=True)
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[torch.tensor(list(token_ids), dtype=torch.int64)] = True
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


# %% task="sample"
def sample(logits, params, generators, token_ids):
    left = torch.stack([
        apply_top_p(
            apply_top_k(
                apply_min_p(
                    apply_temperature(apply_repetition_penalty(row, one.repetition_penalty, text), one.temperature),
                    one.min_p,
                ),
                one.top_k,
            ),
            one.top_p,
        )
        for row, one, text in zip(logits, params, token_ids)
    ])
    race = torch.stack([torch.empty(left.shape[1]).exponential_(generator=each) for each in generators])
    return (left.softmax(-1) / race).argmax(-1)


# %% task="StopChecker"
class StopChecker:
    """An automaton for each stop string: the failure function of Knuth, Morris and Pratt."""

    def __init__(self, stop, eos_token_ids=(), include_stop=False):
        if not all(stop):
            raise ValueError("each string of stop needs at least one character")
        self.words = [(word, self.failures(word)) for word in dict.fromkeys(stop)]
        self.states = [0] * len(self.words)
        self.ends = {*eos_token_ids}
        self.include = include_stop
        self.kept = ""

    @staticmethod
    def failures(word):
        table, length = [0], 0
        for character in word[1:]:
            while length and word[length] != character:
                length = table[length - 1]
            length += word[length] == character
            table.append(length)
        return table

    def feed(self, text, token_id):
        if token_id in self.ends:
            return self.finish(), "stop"
        self.kept += text
        for place in range(len(self.kept) - len(text), len(self.kept)):
            found = 0
            for number, (word, table) in enumerate(self.words):
                state = self.states[number]
                while state and word[state] != self.kept[place]:
                    state = table[state - 1]
                state += word[state] == self.kept[place]
                if state == len(word):
                    found = max(found, state)
                    state = table[-1]
                self.states[number] = state
            if found:
                shown = self.kept[: place + 1 - (0 if self.include else found)]
                self.kept = ""
                return shown, "stop"
        hold = max(self.states, default=0)
        shown, self.kept = self.kept[: len(self.kept) - hold], self.kept[len(self.kept) - hold :]
        return shown, None

    def finish(self):
        rest, self.kept = self.kept, ""
        return rest


# %% task="IncrementalDetokenizer"
class IncrementalDetokenizer:
    """Gives what is certain of an incomplete text as well: all before the replacement characters at its end."""

    def __init__(self, decode):
        self.decode = decode
        self.window = []
        self.fresh = 0
        self.given = ""

    def push(self, token):
        self.window.append(token)
        self.fresh += 1
        text = self.decode(self.window)
        certain = text.rstrip("\ufffd")
        new = certain[len(self.given) :]
        self.given = max(self.given, certain, key=len)
        if certain == text and new:
            self.window = self.window[-self.fresh :]
            self.fresh = 0
            self.given = self.decode(self.window)
        return new

    def finish(self):
        return self.decode(self.window)[len(self.given) :]


# %% task="ContinuousBatchingScheduler"
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs, max_num_batched_tokens, pool, long_prefill_threshold=0, eos_token_id=None):
        check_count(max_num_seqs, "max_num_seqs", 1)
        check_count(max_num_batched_tokens, "max_num_batched_tokens", 1)
        check_count(long_prefill_threshold, "long_prefill_threshold")
        self.config = max_num_seqs, max_num_batched_tokens, long_prefill_threshold
        self.pool, self.eos = pool, eos_token_id
        self.queue, self.running = deque(), OrderedDict()

    def blocks(self, n):
        return int(np.ceil(n / self.pool.block_size))

    def find(self, name):
        return self.running.get(name) or next((each for each in self.queue if each.name == name), None)

    def add(self, request_id, prompt, max_tokens):
        check_count(max_tokens, "max_tokens", 1)
        if self.find(request_id):
            raise ValueError(f"request_id: {request_id} is here already")
        if not len(prompt):
            raise ValueError("prompt: at least one token")
        if self.blocks(len(prompt) + max_tokens - 1) > self.pool.num_blocks:
            raise ValueError("not even alone")
        self.queue.append(Sequence_(request_id, prompt, max_tokens))

    def abort(self, request_id):
        one = self.find(request_id)
        if one is None:
            raise KeyError(request_id)
        if self.running.pop(request_id, None) is None:
            self.queue.remove(one)
        self.pool.free(one.table)

    def schedule(self):
        seqs, budget, threshold = self.config
        cap = threshold if threshold and len(self.running) + len(self.queue) > 1 else budget
        plan, out = {}, []

        def compute(one, n):
            nonlocal budget
            one.table = one.table + self.pool.allocate(self.blocks(one.computed + n) - len(one.table))
            plan[one.name] = (one.computed, one.known[one.computed : one.computed + n], one.table)
            one.computed += n
            budget -= n

        for name, one in tuple(self.running.items()):
            if name in out or not budget:
                break
            n = min(len(one.known) - one.computed, cap, budget)
            while name not in out:
                try:
                    compute(one, n)
                    break
                except OutOfBlocksError:
                    last, victim = self.running.popitem()
                    self.pool.free(victim.table)
                    victim.reset()
                    self.queue.appendleft(victim)
                    out.append(last)
        while self.queue and not out and budget and len(self.running) < seqs:
            if self.blocks(len(self.queue[0].known)) > self.pool.num_free():
                break
            one = self.queue.popleft()
            self.running[one.name] = one
            compute(one, min(len(one.known), cap, budget))
        return plan, out

    def update(self, sampled):
        for name in sampled.keys() & self.running.keys():
            self.running[name].answer = np.append(self.running[name].answer, sampled[name])
        done = [
            one.name
            for one in self.running.values()
            if len(one.answer) == one.most or (one.name in sampled and sampled[one.name] == self.eos)
        ]
        for name in done:
            self.abort(name)
        return done


# %% task="measure_stream"
def measure_stream(sent_s, events):
    times = np.array([sent_s, *(when for when, _ in events)], dtype=float)
    counts = np.array([0, *(count for _, count in events)], dtype=int)
    if (np.diff(times) < 0).any() or (counts < 0).any():
        raise ValueError("events must be sorted and have counts")
    with_tokens = times[counts > 0]
    total = int(counts.sum())
    return {
        "ttft_s": float(with_tokens[0] - sent_s) if total else None,
        "tpot_s": float((with_tokens[-1] - with_tokens[0]) / (total - 1)) if total > 1 else None,
        "itl_s": np.diff(with_tokens).tolist(),
    }
