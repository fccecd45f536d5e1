"""Plain loops and lists: logits one by one, text character by character, the scheduler in dicts of dicts."""

# %% helpers="helpers"
# Rows as lists of numbers.


def each_row(logits, change):
    """A new tensor with every row changed."""
    flat = [change(row) for row in logits.reshape(-1, logits.shape[-1]).tolist()]
    return torch.tensor(flat, dtype=logits.dtype).reshape(logits.shape)


def chances(row):
    largest = max(row)
    weights = []
    for logit in row:
        weights.append(math.exp(logit - largest))
    return [weight / sum(weights) for weight in weights]


# %% task="apply_temperature"
def apply_temperature(logits, temperature):
    check_number(temperature, "temperature")

    def change(row):
        if temperature != 0:
            return [logit / temperature for logit in row]
        best = row.index(max(row))
        return [logit if place == best else -math.inf for place, logit in enumerate(row)]

    return each_row(logits, change)


# %% task="apply_top_k"
def apply_top_k(logits, k):
    check_count(k, "k")

    def change(row):
        if k == 0:
            return row
        smallest = sorted(row)[-min(k, len(row))]
        return [logit if logit >= smallest else -math.inf for logit in row]

    return each_row(logits, change)


# %% task="apply_top_p"
def apply_top_p(logits, p):
    check_number(p, "p", 1, positive=True)

    def change(row):
        if p == 1:
            return row
        probs = chances(row)
        left = [-math.inf] * len(row)
        total = 0.0
        for place in sorted(range(len(row)), key=probs.__getitem__, reverse=True):
            left[place] = row[place]
            total += probs[place]
            if total >= p:
                break
        return left

    return each_row(logits, change)


# %% task="apply_min_p"
def apply_min_p(logits, min_p):
    check_number(min_p, "min_p", 1)

    def change(row):
        probs = chances(row)
        limit = min_p * max(probs)
        return [logit if prob >= limit else -math.inf for logit, prob in zip(row, probs)]

    return each_row(logits, change)


# %% task="apply_repetition_penalty"
def apply_repetition_penalty(logits, penalty, token_ids):
    check_number(penalty, "penalty", positive=True)
    row = logits.tolist()
    done = []
    for token in token_ids:
        if token in done:
            continue
        done.append(token)
        if row[token] > 0:
            row[token] = row[token] / penalty
        else:
            row[token] = row[token] * penalty
    return torch.tensor(row, dtype=logits.dtype)


# %% task="sample"
def sample(logits, params, generators, token_ids):
    result = []
    for place in range(len(params)):
        mine = params[place]
        row = apply_repetition_penalty(logits[place], mine.repetition_penalty, token_ids[place])
        row = apply_temperature(row, mine.temperature)
        row = apply_top_p(apply_top_k(apply_min_p(row, mine.min_p), mine.top_k), mine.top_p)
        # Walk through the tokens until a random number is used up.
        u = torch.rand((), generator=generators[place], dtype=torch.float64).item()
        last = None
        for token, chance in enumerate(chances(row.tolist())):
            if chance > 0:
                last = token
                u -= chance
                if u < 0:
                    break
        result.append(last)
    return torch.tensor(result, dtype=torch.int64)


# %% task="StopChecker"
class StopChecker:
    def __init__(self, stop, eos_token_ids=(), include_stop=False):
        for each in stop:
            if not each:
                raise ValueError("stop has an empty string")
        self.stop = list(stop)
        self.eos = list(eos_token_ids)
        self.include = include_stop
        self.text = ""
        self.shown = 0

    def feed(self, text, token_id):
        if token_id in self.eos:
            return self.finish(), "stop"
        for character in text:
            self.text += character
            longest = ""
            for each in self.stop:
                if self.text.endswith(each) and len(each) > len(longest):
                    longest = each
            if longest:
                end = len(self.text) if self.include else len(self.text) - len(longest)
                now = self.text[self.shown : end]
                self.shown = len(self.text)
                return now, "stop"
        keep = 0
        for each in self.stop:
            for length in range(1, len(each)):
                if length > keep and self.text[self.shown :].endswith(each[:length]):
                    keep = length
        now = self.text[self.shown : len(self.text) - keep]
        self.shown = len(self.text) - keep
        return now, None

    def finish(self):
        now = self.text[self.shown :]
        self.shown = len(self.text)
        return now


# %% task="IncrementalDetokenizer"
class IncrementalDetokenizer:
    def __init__(self, decode):
        self.decode = decode
        self.before = []
        self.pending = []

    def push(self, token):
        self.pending.append(token)
        old = self.decode(self.before)
        new = self.decode(self.before + self.pending)
        if new == old or new.endswith("\ufffd"):
            return ""
        self.before = self.pending
        self.pending = []
        return new[len(old) :]

    def finish(self):
        old = self.decode(self.before)
        return self.decode(self.before + self.pending)[len(old) :]


# %% task="ContinuousBatchingScheduler"
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs, max_num_batched_tokens, pool, long_prefill_threshold=0, eos_token_id=None):
        check_count(max_num_seqs, "max_num_seqs", 1)
        check_count(max_num_batched_tokens, "max_num_batched_tokens", 1)
        check_count(long_prefill_threshold, "long_prefill_threshold")
        self.places = max_num_seqs
        self.most = max_num_batched_tokens
        self.pool = pool
        self.threshold = long_prefill_threshold
        self.eos = eos_token_id
        self.requests = {}
        self.queue = []
        self.active = []

    def add(self, request_id, prompt, max_tokens):
        check_count(max_tokens, "max_tokens", 1)
        if request_id in self.requests:
            raise ValueError("request_id is in use")
        if len(prompt) == 0:
            raise ValueError("prompt is empty")
        size = self.pool.block_size
        if (len(prompt) + max_tokens - 1 + size - 1) // size > self.pool.num_blocks:
            raise ValueError("this can never fit")
        self.requests[request_id] = {
            "text": list(prompt),
            "end": len(prompt) + max_tokens,
            "done": 0,
            "blocks": [],
        }
        self.queue.append(request_id)

    def abort(self, request_id):
        gone = self.requests.pop(request_id)
        self.pool.free(gone["blocks"])
        if request_id in self.queue:
            self.queue.remove(request_id)
        else:
            self.active.remove(request_id)

    def schedule(self):
        size = self.pool.block_size
        left = self.most
        limit = self.threshold
        if limit == 0 or len(self.requests) == 1:
            limit = self.most
        plan = {}
        victims = []
        place = 0
        while place < len(self.active) and left > 0:
            name = self.active[place]
            one = self.requests[name]
            count = min(len(one["text"]) - one["done"], limit, left)
            need = (one["done"] + count + size - 1) // size - len(one["blocks"])
            while self.pool.num_free() < need:
                victim = self.active.pop()
                other = self.requests[victim]
                self.pool.free(other["blocks"])
                other["blocks"] = []
                other["done"] = 0
                self.queue = [victim] + self.queue
                victims.append(victim)
                if victim == name:
                    break
            if name in victims:
                break
            one["blocks"] = one["blocks"] + self.pool.allocate(need)
            plan[name] = (one["done"], one["text"][one["done"] : one["done"] + count], one["blocks"])
            one["done"] += count
            left -= count
            place += 1
        if len(victims) == 0:
            while len(self.queue) > 0 and left > 0 and len(self.active) < self.places:
                name = self.queue[0]
                one = self.requests[name]
                if (len(one["text"]) + size - 1) // size > self.pool.num_free():
                    break
                count = min(len(one["text"]), limit, left)
                one["blocks"] = self.pool.allocate((count + size - 1) // size)
                plan[name] = (0, one["text"][:count], one["blocks"])
                one["done"] = count
                left -= count
                self.active.append(name)
                self.queue = self.queue[1:]
        return plan, victims

    def update(self, sampled):
        finished = []
        for name, token in sampled.items():
            if name not in self.active:
                continue
            one = self.requests[name]
            one["text"].append(token)
            if len(one["text"]) == one["end"] or token == self.eos:
                finished.append(name)
        for name in finished:
            self.abort(name)
        return finished


# %% task="measure_stream"
def measure_stream(sent_s, events):
    previous = sent_s
    for when, count in events:
        if when < previous:
            raise ValueError("events go back in time")
        if count < 0:
            raise ValueError("events have a negative count")
        previous = when
    first = None
    last = None
    tokens = 0
    gaps = []
    for when, count in events:
        if count == 0:
            continue
        if first is None:
            first = when
        else:
            gaps.append(when - last)
        last = when
        tokens += count
    result = {"ttft_s": None, "tpot_s": None, "itl_s": gaps}
    if first is not None:
        result["ttft_s"] = first - sent_s
    if tokens > 1:
        result["tpot_s"] = (last - first) / (tokens - 1)
    return result
