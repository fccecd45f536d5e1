"""Preempts the first running request.

fails: test_scheduler_example test_scheduler_walk test_scheduler_vllm test_scheduler_answers
"""


# %% task="ContinuousBatchingScheduler"
class ContinuousBatchingScheduler:
    def __init__(
        self,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        pool: BlockPool,
        long_prefill_threshold: int = 0,
        eos_token_id: int | None = None,
    ) -> None:
        check_count(max_num_seqs, "max_num_seqs", 1)
        check_count(max_num_batched_tokens, "max_num_batched_tokens", 1)
        check_count(long_prefill_threshold, "long_prefill_threshold")
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._pool = pool
        self._threshold = long_prefill_threshold
        self._eos_token_id = eos_token_id
        self._waiting: list[Request] = []
        self._running: list[Request] = []

    def add(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
        check_count(max_tokens, "max_tokens", 1)
        if any(request.request_id == request_id for request in self._waiting + self._running):
            raise ValueError(f"request_id {request_id!r} is taken by a request that is not finished")
        if not prompt:
            raise ValueError("prompt must have at least one token")
        if self._blocks_for(len(prompt) + max_tokens - 1) > self._pool.num_blocks:
            raise ValueError(f"the pool of {self._pool.num_blocks} blocks is too small for this request")
        self._waiting.append(Request(request_id, list(prompt), max_tokens))

    def abort(self, request_id: str) -> None:
        for group in (self._waiting, self._running):
            for request in group:
                if request.request_id == request_id:
                    group.remove(request)
                    self._pool.free(request.blocks)
                    return
        raise KeyError(request_id)

    def schedule(self) -> tuple[dict[str, tuple[int, list[int], list[int]]], list[str]]:
        budget = self._max_num_batched_tokens
        threshold = self._threshold if len(self._running) + len(self._waiting) > 1 else 0
        scheduled: dict[str, tuple[int, list[int], list[int]]] = {}
        preempted: list[str] = []

        def take(request: Request, n: int) -> None:
            start = request.num_computed
            request.num_computed += n
            lacking = self._blocks_for(request.num_computed) - len(request.blocks)
            request.blocks += self._pool.allocate(lacking)
            tokens = request.tokens[start : request.num_computed]
            scheduled[request.request_id] = (start, tokens, list(request.blocks))

        def chunk(request: Request) -> int:
            n = min(len(request.tokens) - request.num_computed, budget)
            return min(n, threshold) if threshold else n

        for request in list(self._running):
            if budget == 0 or request not in self._running:
                break
            n = chunk(request)
            lacking = self._blocks_for(request.num_computed + n) - len(request.blocks)
            while request in self._running and lacking > self._pool.num_free():
                last = self._running.pop(0)
                self._pool.free(last.blocks)
                last.blocks, last.num_computed = [], 0
                self._waiting.insert(0, last)
                preempted.append(last.request_id)
            if request in self._running:
                take(request, n)
                budget -= n
        while not preempted and self._waiting and budget and len(self._running) < self._max_num_seqs:
            request = self._waiting[0]
            if self._blocks_for(len(request.tokens)) > self._pool.num_free():
                break
            self._running.append(self._waiting.pop(0))
            n = chunk(request)
            take(request, n)
            budget -= n
        return scheduled, preempted

    def update(self, sampled: dict[str, int]) -> list[str]:
        finished = []
        for request in list(self._running):
            if request.request_id in sampled:
                request.outputs.append(sampled[request.request_id])
                if len(request.outputs) == request.max_tokens or request.outputs[-1] == self._eos_token_id:
                    finished.append(request.request_id)
                    self.abort(request.request_id)
        return finished

    def _blocks_for(self, tokens: int) -> int:
        return math.ceil(tokens / self._pool.block_size)
