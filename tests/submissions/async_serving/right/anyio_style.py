"""anyio's memory streams under the queue, a list of waiting futures under the limit, a set of tasks under the jobs."""

# %% helpers="helpers"
# Imports.
import anyio


# %% task="TokenStream"
class TokenStream:
    def __init__(self, max_size):
        if not max_size >= 1:
            raise ValueError("max_size must be positive")
        self.inlet, self.outlet = anyio.create_memory_object_stream(max_size)
        self.error = None

    async def put(self, item):
        try:
            await self.inlet.send(item)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise StreamClosed from None

    def finish(self):
        self.inlet.close()

    def fail(self, error):
        self.error = error
        self.inlet.close()

    def close(self):
        self.outlet.close()

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return await self.outlet.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            if self.error is not None:
                raise self.error from None
            raise StopAsyncIteration from None


# %% task="ConcurrencyLimiter"
class ConcurrencyLimiter:
    def __init__(self, max_running, max_waiting):
        for value, least, name in ((max_running, 1, "max_running"), (max_waiting, 0, "max_waiting")):
            if value < least:
                raise ValueError(name)
        self.free, self.taken, self.room = max_running, 0, max_waiting
        self.line = []

    running = property(lambda self: self.taken)
    waiting = property(lambda self: len(self.line))

    async def acquire(self):
        if self.free:
            self.free -= 1
            self.taken += 1
        elif len(self.line) >= self.room:
            raise Overloaded
        else:
            mine = asyncio.Event()
            self.line.append(mine)
            try:
                await mine.wait()
            except asyncio.CancelledError:
                if mine.is_set():
                    self.release()
                else:
                    self.line.remove(mine)
                raise

    def release(self):
        if not self.taken:
            raise RuntimeError("no slot")
        if self.line:
            self.line.pop(0).set()
        else:
            self.free += 1
            self.taken -= 1


# %% task="jobs_router"
def jobs_router(engine, settings):
    router = APIRouter()
    everything = {}

    @dataclass
    class Record:
        shown: dict
        task: Any = None
        over: float | None = None

    def here(name):
        for key, record in list(everything.items()):
            if record.over is not None and not engine.now() <= record.over + settings.job_ttl_s:
                everything.pop(key)
        return everything.get(name)

    async def work(record, body):
        shown = record.shown
        shown["status"] = "running"
        try:
            async for token in engine.generate(shown["id"], body.chat(), body.max_tokens):
                shown.update(text=shown["text"] + token.text, finish_reason=token.finish_reason)
            shown["status"] = "done"
        except EngineError:
            shown["status"] = "failed"
        record.over = engine.now()

    def no_such_job():
        return JSONResponse(error_body("no such job", kind="invalid_request_error", code="job_not_found"), status_code=404)

    async def create(body: ChatRequest):
        name = f"job-{uuid.uuid4().hex}"
        here(name)
        record = everything[name] = Record({"id": name, "status": "running", "text": "", "finish_reason": None})
        record.task = asyncio.create_task(work(record, body))
        return JSONResponse(record.shown, status_code=202, headers={"Location": f"/v1/jobs/{name}"})

    async def show(name: str):
        record = here(name)
        return JSONResponse(record.shown) if record else no_such_job()

    async def remove(name: str):
        if not (record := here(name)):
            return no_such_job()
        if not record.task.done():
            record.task.cancel()
            engine.abort(name)
        everything.pop(name)
        return Response(status_code=204)

    router.add_api_route("/v1/jobs", create, methods=["POST"])
    router.add_api_route("/v1/jobs/{name}", show, methods=["GET"])
    router.add_api_route("/v1/jobs/{name}", remove, methods=["DELETE"])
    return router
