"""Objects with one job each: a row of logits, a matcher, a ledger of blocks, a plan for a step."""

# %% helpers="helpers"
# The classes that the tasks use.
import heapq
from fractions import Fraction


class Row:
    """Tokens of one row, best first."""

    def __init__(self, logits):
        self.logits = logits
        self.order = torch.sort(logits, descending=True, stable=True).indices.tolist()

    def keep(self, tokens):
        kept = torch.full_like(self.logits, -math.inf)
        for token in tokens:
            kept[token] = self.logits[token]
        return kept

    def probs(self):
        return torch.softmax(self.logits.double(), 0).tolist()


def rowwise(logits, change):
    rows = logits.reshape(-1, logits.shape[-1])
    return torch.stack([change(Row(row)) for row in rows]).reshape(logits.shape)


class Ledger:
    """Which blocks each request holds."""

    def __init__(self, pool):
        self.pool, self.tables = pool, {}

    def needs(self, tokens):
        return len(range(0, tokens, self.pool.block_size))

    def grow(self, name, tokens):
        """Whether the request could get room for `tokens`; if so, it has."""
        table = self.tables.setdefault(name, [])
        more = self.needs(tokens) - len(table)
        if more > self.pool.num_free():
            return False
        table += self.pool.allocate(more)
        return True

    def release(self, name):
        self.pool.free(self.tables.pop(name, []))


# %% task="apply_temperature"
def apply_temperature(logits, temperature):
    check_number(temperature, "temperature")
    if temperature == 0:
        return rowwise(logits, lambda row: row.keep(row.order[:1]))
    return torch.div(logits, temperature)


# %% task="apply_top_k"
def apply_top_k(logits, k):
    check_count(k, "k")

    def change(row):
        if not 0 < k < len(row.order):
            return row.logits.clone()
        limit = heapq.nlargest(k, row.logits.tolist())[-1]
        return row.keep([token for token in row.order if row.logits[token].item() >= limit])

    return rowwise(logits, change)


# %% task="apply_top_p"
def apply_top_p(logits, p):
    check_number(p, "p", 1, positive=True)

    def change(row):
        probs, tokens, total = row.probs(), [], 0.0
        for token in row.order:
            if total >= p and p < 1:
                break
            tokens.append(token)
            total += probs[token]
        return row.keep(tokens)

    return rowwise(logits, change)


# %% task="apply_min_p"
def apply_min_p(logits, min_p):
    check_number(min_p, "min_p", 1)

    def change(row):
        probs = row.probs()
        return row.keep([token for token in row.order if probs[token] >= min_p * probs[row.order[0]]])

    return rowwise(logits, change)


# %% task="apply_repetition_penalty"
def apply_repetition_penalty(logits, penalty, token_ids):
    check_number(penalty, "penalty", positive=True)
    factors = torch.ones_like(logits)
    for token in token_ids:
        factors[token] = penalty if logits[token] < 0 else 1 / penalty
    return logits * factors


# %% task="sample"
def sample(logits, params, generators, token_ids):
    def one(row, wanted, generator, text):
        row = apply_repetition_penalty(row, wanted.repetition_penalty, text)
        if wanted.temperature == 0:
            return int(row.argmax())
        row = apply_temperature(row, wanted.temperature)
        for change, value in (
            (apply_min_p, wanted.min_p),
            (apply_top_k, wanted.top_k),
            (apply_top_p, wanted.top_p),
        ):
            row = change(row, value)
        noise = -torch.log(-torch.log(torch.rand(row.shape, generator=generator, dtype=torch.float64)))
        return int((row + noise).argmax())

    return torch.tensor([one(*each) for each in zip(logits, params, generators, token_ids)])


# %% task="StopChecker"
class StopChecker:
    """Keeps all places where a stop string may have begun, with the strings that are still possible there."""

    def __init__(self, stop, eos_token_ids=(), include_stop=False):
        if any(len(each) == 0 for each in stop):
            raise ValueError("a text in stop is empty")
        self.stop, self.eos, self.include = tuple(stop), tuple(eos_token_ids), include_stop
        self.kept, self.open = "", []

    def feed(self, text, token_id):
        if token_id in self.eos:
            return self.finish(), "stop"
        given = ""
        for character in text:
            self.kept += character
            self.open.append((0, self.stop))
            self.open = [
                (length + 1, words)
                for length, words in (
                    (length, tuple(word for word in words if word[length : length + 1] == character))
                    for length, words in self.open
                )
                if words
            ]
            complete = [length for length, words in self.open if any(len(word) == length for word in words)]
            if complete:
                end = len(self.kept) if self.include else len(self.kept) - max(complete)
                given, self.kept = given + self.kept[:end], ""
                return given, "stop"
            longest = max((length for length, _ in self.open), default=0)
            certain = len(self.kept) - longest
            given, self.kept = given + self.kept[:certain], self.kept[certain:]
        return given, None

    def finish(self):
        last, self.kept = self.kept, ""
        return last


# %% task="IncrementalDetokenizer"
class IncrementalDetokenizer:
    def __init__(self, decode):
        self.decode, self.context, self.open = decode, [], []

    def pending(self):
        return self.decode(self.context + self.open)[len(self.decode(self.context)) :]

    def push(self, token):
        self.open.append(token)
        text = self.pending()
        if text == "" or text[-1] == "\N{REPLACEMENT CHARACTER}":
            return ""
        self.context, self.open = self.open, []
        return text

    def finish(self):
        return self.pending()


# %% task="ContinuousBatchingScheduler"
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs, max_num_batched_tokens, pool, long_prefill_threshold=0, eos_token_id=None):
        check_count(max_num_seqs, "max_num_seqs", 1)
        check_count(max_num_batched_tokens, "max_num_batched_tokens", 1)
        check_count(long_prefill_threshold, "long_prefill_threshold")
        self.max_num_seqs, self.max_tokens_in_step = max_num_seqs, max_num_batched_tokens
        self.threshold, self.eos_token_id = long_prefill_threshold, eos_token_id
        self.ledger, self.waiting, self.running = Ledger(pool), [], []

    def add(self, request_id, prompt, max_tokens):
        check_count(max_tokens, "max_tokens", 1)
        if request_id in {request.request_id for request in (*self.waiting, *self.running)}:
            raise ValueError("request_id is not unique")
        if not prompt:
            raise ValueError("an empty prompt")
        if self.ledger.needs(len(prompt) + max_tokens - 1) > self.ledger.pool.num_blocks:
            raise ValueError("needs more blocks than there are")
        self.waiting.append(Request(request_id, list(prompt), max_tokens))

    def abort(self, request_id):
        there = [request for request in (*self.waiting, *self.running) if request.request_id == request_id]
        if not there:
            raise KeyError(request_id)
        self.leave(there[0])

    def leave(self, request):
        self.waiting = [each for each in self.waiting if each is not request]
        self.running = [each for each in self.running if each is not request]
        self.ledger.release(request.request_id)

    def preempt_last(self):
        last = self.running[-1]
        self.leave(last)
        last.num_computed = 0
        self.waiting = [last, *self.waiting]
        return last

    def schedule(self):
        left, victims, plan = self.max_tokens_in_step, [], {}
        alone = len(self.waiting + self.running) == 1
        limit = self.max_tokens_in_step if alone or self.threshold == 0 else self.threshold

        def put(request, count):
            end = request.num_computed + count
            table = list(self.ledger.tables[request.request_id])
            plan[request.request_id] = (request.num_computed, request.tokens[end - count : end], table)
            request.num_computed = end

        for request in tuple(self.running):
            count = min(limit, left, len(request.tokens) - request.num_computed)
            if request in victims or count == 0:
                break
            while not self.ledger.grow(request.request_id, request.num_computed + count):
                victims.append(self.preempt_last())
                if victims[-1] is request:
                    break
            else:
                put(request, count)
                left -= count
        while not victims and self.waiting and left and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            if self.ledger.needs(len(request.tokens)) > self.ledger.pool.num_free():
                break
            count = min(limit, left, len(request.tokens))
            self.ledger.grow(request.request_id, count)
            self.running.append(self.waiting.pop(0))
            put(request, count)
            left -= count
        return plan, [request.request_id for request in victims]

    def update(self, sampled):
        finished = []
        for request in tuple(self.running):
            token = sampled.get(request.request_id)
            if token is None:
                continue
            request.outputs.append(token)
            if token == self.eos_token_id or len(request.outputs) >= request.max_tokens:
                self.leave(request)
                finished.append(request.request_id)
        return finished


# %% task="measure_stream"
def measure_stream(sent_s, events):
    clock = [sent_s] + [event[0] for event in events]
    if clock != sorted(clock) or any(event[1] < 0 for event in events):
        raise ValueError("these events cannot be: " + repr(events))
    pieces = [event for event in events if event[1] > 0]
    tokens = sum(event[1] for event in pieces)
    measured = {"ttft_s": None, "tpot_s": None, "itl_s": []}
    if pieces:
        measured["ttft_s"] = pieces[0][0] - sent_s
        for number in range(1, len(pieces)):
            measured["itl_s"].append(pieces[number][0] - pieces[number - 1][0])
    if tokens > 1:
        measured["tpot_s"] = float(Fraction(pieces[-1][0] - pieces[0][0]) / (tokens - 1))
    return measured
