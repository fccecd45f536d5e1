"""Says that a request which it preempted is finished, with the tokens that it has, so that nothing is computed twice.

fails: test_scheduler_example test_scheduler_walk test_scheduler_vllm test_scheduler_answers
based on: right/objects

attack: S2 S3
stopped by: O, the grader counts tokens itself, and compares each answer with the one that the request gets alone.
"""


# %% task="ContinuousBatchingScheduler"
class ContinuousBatchingScheduler:
    def __init__(self, max_num_seqs, max_num_batched_tokens, pool, long_prefill_threshold=0, eos_token_id=None):
        check_count(max_num_seqs, "max_num_seqs", 1)
        check_count(max_num_batched_tokens, "max_num_batched_tokens", 1)
        check_count(long_prefill_threshold, "long_prefill_threshold")
        self.max_num_seqs, self.max_tokens_in_step = max_num_seqs, max_num_batched_tokens
        self.threshold, self.eos_token_id = long_prefill_threshold, eos_token_id
        self.ledger, self.waiting, self.running, self.cut_short = Ledger(pool), [], [], []

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
                if victims[-1].outputs:
                    self.cut_short.append(victims[-1])
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
        finished = [request.request_id for request in self.cut_short if request in self.waiting]
        for request in self.cut_short:
            self.leave(request)
        self.cut_short = []
        for request in tuple(self.running):
            token = sampled.get(request.request_id)
            if token is None:
                continue
            request.outputs.append(token)
            if token == self.eos_token_id or len(request.outputs) >= request.max_tokens:
                self.leave(request)
                finished.append(request.request_id)
        return finished
