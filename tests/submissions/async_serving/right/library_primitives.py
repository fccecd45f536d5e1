"""asyncio's own primitives: an Event on each side of the queue, a Semaphore, jobs as objects with a heap of deadlines."""

# %% helpers="helpers"
# Imports.
import heapq
import secrets


# %% task="TokenStream"
class TokenStream:
    def __init__(self, max_size):
        if max_size <= 0:
            raise ValueError("max_size")
        self.size, self.items = max_size, []
        self.room, self.news = asyncio.Event(), asyncio.Event()
        self.room.set()
        self.over, self.error, self.gone = False, None, False

    def _look(self):
        for event, state in ((self.room, self.gone or len(self.items) < self.size), (self.news, self.over or self.items)):
            event.set() if state else event.clear()

    async def put(self, item):
        while True:
            if self.gone:
                raise StreamClosed("nobody reads")
            if len(self.items) < self.size:
                break
            await self.room.wait()
        self.items.append(item)
        self._look()

    def finish(self):
        self.over = True
        self._look()

    def fail(self, error):
        self.error = error
        self.finish()

    def close(self):
        self.gone = True
        self.items = []
        self.finish()

    def __aiter__(self):
        return self

    async def __anext__(self):
        while not self.items:
            if self.over and self.error is not None:
                raise self.error
            if self.over:
                raise StopAsyncIteration
            await self.news.wait()
        item, self.items = self.items[0], self.items[1:]
        self._look()
        return item


# %% task="ConcurrencyLimiter"
class ConcurrencyLimiter:
    def __init__(self, max_running, max_waiting):
        if max_running < 1 or max_waiting < 0:
            raise ValueError("limits")
        self.slots = asyncio.Semaphore(max_running)
        self.room = max_waiting
        self.running = self.waiting = 0

    async def acquire(self):
        if self.slots.locked():
            if self.waiting >= self.room:
                raise Overloaded("full")
            self.waiting += 1
            try:
                await self.slots.acquire()
            finally:
                self.waiting -= 1
        else:
            await self.slots.acquire()
        self.running += 1

    def release(self):
        if not self.running:
            raise RuntimeError("nothing to release")
        self.running -= 1
        self.slots.release()


# %% task="jobs_router"
class Job:
    def __init__(self, engine, body):
        self.engine, self.body = engine, body
        self.id = "job-" + secrets.token_urlsafe(18)
        self.status, self.text, self.finish_reason = "running", "", None
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def run(self):
        try:
            async for token in self.engine.generate(self.id, self.body.chat(), self.body.max_tokens):
                self.text += token.text
                self.finish_reason = token.finish_reason
        except EngineError:
            self.status = "failed"
        else:
            self.status = "done"

    def shown(self):
        return {name: getattr(self, name) for name in ("id", "status", "text", "finish_reason")}


class Board:
    def __init__(self, engine, settings):
        self.engine, self.ttl = engine, settings.job_ttl_s
        self.jobs, self.ends = {}, []

    def add(self, body):
        self.sweep()
        job = Job(self.engine, body)
        self.jobs[job.id] = job
        job.task.add_done_callback(lambda task: heapq.heappush(self.ends, (self.engine.now(), job.id)))
        return job

    def sweep(self):
        while self.ends and self.engine.now() > self.ends[0][0] + self.ttl:
            self.jobs.pop(heapq.heappop(self.ends)[1], None)

    def find(self, name):
        self.sweep()
        return self.jobs.get(name)

    def remove(self, job):
        del self.jobs[job.id]
        if job.status == "running":
            job.task.cancel()
            self.engine.abort(job.id)


def jobs_router(engine, settings):
    board = Board(engine, settings)
    router = APIRouter(prefix="/v1/jobs")
    unknown = JSONResponse(error_body("unknown job", "invalid_request_error", "job_not_found"), 404)

    @router.post("")
    async def post(body: ChatRequest):
        job = board.add(body)
        return JSONResponse(job.shown(), 202, {"Location": f"/v1/jobs/{job.id}"})

    @router.get("/{name}")
    async def get(name: str):
        job = board.find(name)
        return JSONResponse(job.shown()) if job else unknown

    @router.delete("/{name}")
    async def delete(name: str):
        job = board.find(name)
        if job is None:
            return unknown
        board.remove(job)
        return Response(status_code=204)

    return router
