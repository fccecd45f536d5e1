"""Solved by somebody who had nothing but the handout."""

# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.
from collections.abc import Coroutine


class Run:
    """One request at the engine, with its slot. `close` gives everything back, once, and needs no await."""

    def __init__(
        self, engine: Engine, limiter: Any, request_id: str, messages: list[dict[str, str]], max_tokens: int
    ) -> None:
        self.engine, self.limiter, self.request_id = engine, limiter, request_id
        self.messages, self.max_tokens = messages, max_tokens
        self.prompt_tokens, self.completion_tokens = 0, 0
        self.finish_reason: str | None = None
        self._held = self._asked = self._ended = False
        self._tokens: AsyncIterator[Token] | None = None

    async def start(self, count: bool = False) -> None:
        """Wait for a slot; count the prompt if that is wanted."""
        await self.limiter.acquire()
        self._held = True
        if count:
            self.prompt_tokens = await self.engine.count(self.messages)

    async def next(self) -> Token | None:
        """The next token, None after the last one."""
        if self._ended:
            return None
        if self._tokens is None:
            self._tokens = self.engine.generate(self.request_id, self.messages, self.max_tokens)
            self._asked = True
        try:
            token = await anext(self._tokens, None)
        except Exception:
            self._ended = True
            raise
        if token is None:
            self._ended = True
            return None
        self.completion_tokens += 1
        if token.finish_reason is not None:
            self.finish_reason = token.finish_reason
            self._ended = True
        return token

    def close(self) -> None:
        """Abort what runs still, and release the slot."""
        if self._asked and not self._ended:
            self._ended = True
            self.engine.abort(self.request_id)
        if self._held:
            self._held = False
            self.limiter.release()

    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """ASCII only, so that half a surrogate pair in a token's text breaks nothing (JSONResponse would raise)."""
    return Response(json.dumps(value), status, headers, "application/json")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns. If the client leaves first, `work` is cancelled, and this raises `ClientGone`."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientGone
    finally:
        await stop(*tasks)


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

# %% task="TokenStream"
class TokenStream:
    """A bounded queue with an end, for one producer and one reader."""

    def __init__(self, max_size: int) -> None:
        if max_size < 1:
            raise ValueError("max_size must be at least 1")
        self._max_size = max_size
        self._items: deque[Any] = deque()
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None
        self._sleepers: list[asyncio.Future[None]] = []

    async def _change(self) -> None:
        """Wait until something has changed; whoever waits must look again."""
        sleeper = asyncio.get_running_loop().create_future()
        self._sleepers.append(sleeper)
        try:
            await sleeper
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)

    def _changed(self) -> None:
        sleepers, self._sleepers = self._sleepers, []
        for sleeper in sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    async def put(self, item: Any) -> None:
        """Append `item`, as soon as there is room.

        Raises:
            StreamClosed: the reader has closed the stream.
        """
        while not self._closed and len(self._items) >= self._max_size:
            await self._change()
        if self._closed:
            raise StreamClosed("the reader is gone")
        self._items.append(item)
        self._changed()

    def finish(self) -> None:
        """The producer has nothing more."""
        self._ended = True
        self._changed()

    def fail(self, error: BaseException) -> None:
        """The producer has failed."""
        if not self._ended:
            self._ended, self._error = True, error
        self._changed()

    def close(self) -> None:
        """The reader wants nothing more."""
        self._closed = True
        self._items.clear()
        self._changed()

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> Any:
        """The next item. Raises `StopAsyncIteration` at the end, or the error that `fail` was given."""
        while not self._items and not self._ended and not self._closed:
            await self._change()
        if self._items:
            item = self._items.popleft()
            self._changed()
            return item
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

# %% task="ConcurrencyLimiter"
class ConcurrencyLimiter:
    """At most `max_running` callers have a slot, at most `max_waiting` more wait for one, first come first served."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        if max_running < 1 or max_waiting < 0:
            raise ValueError("max_running must be at least 1, max_waiting at least 0")
        self._max_running, self._max_waiting = max_running, max_waiting
        self._queue: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def waiting(self) -> int:
        """Callers that wait; one that was cancelled, and has not run since, does not count."""
        return sum(not turn.done() for turn in self._queue)

    async def acquire(self) -> None:
        """Take a slot, now or when its turn has come.

        Raises:
            Overloaded: all slots are taken and `max_waiting` callers wait already.
        """
        if self.running < self._max_running:
            self.running += 1
            return
        if self.waiting >= self._max_waiting:
            raise Overloaded("no slot, and no room to wait")
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # the slot was ours already
            raise
        finally:
            if turn in self._queue:
                self._queue.remove(turn)

    def release(self) -> None:
        """Give a slot back. Raises `RuntimeError` if none is taken."""
        if self.running < 1:
            raise RuntimeError("no slot is taken")
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)  # the slot changes hands, and stays taken
                return
        self.running -= 1

# %% task="chat_router"
def chat_router(engine: Engine, settings: Settings, limiter: Any) -> APIRouter:
    """The endpoint `POST /v1/chat/completions`."""
    router = APIRouter()
    failed = error_body("The server failed to answer this request.", code="internal_error")
    overloaded = error_body("The server is overloaded. Try again later.", code="overloaded")

    class Events(StreamingResponse):
        """A stream which cleans up even if its generator has never run."""

        def __init__(self, run: Run, events: AsyncIterator[str]) -> None:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            super().__init__(events, headers=headers, media_type="text/event-stream")
            self.run = run

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                await super().__call__(scope, receive, send)
            finally:
                self.run.close()

    async def first_of(run: Run, count: bool) -> Token | None:
        await run.start(count)
        return await run.next()

    async def all_of(run: Run) -> str:
        await run.start(count=True)
        texts = []
        while (token := await run.next()) is not None:
            texts.append(token.text)
        return "".join(texts)

    async def events(run: Run, token: Token | None, about: dict[str, Any], with_usage: bool) -> AsyncIterator[str]:
        def chunk(delta: dict[str, str], reason: str | None = None) -> str:
            return event({**about, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

        def event(value: dict[str, Any]) -> str:
            return f"data: {json.dumps(value)}\n\n"

        yield chunk({"role": "assistant", "content": ""})
        try:
            while token is not None:
                if token.text:
                    yield chunk({"content": token.text})
                token = await run.next()
        except EngineError:
            yield event(failed)
        else:
            yield chunk({}, run.finish_reason)
            if with_usage:
                yield event({**about, "choices": [], "usage": run.usage()})
        yield "data: [DONE]\n\n"

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        about = {"id": request_id, "object": kind, "created": int(time.time()), "model": settings.model}
        run = Run(engine, limiter, request_id, body.chat(), body.max_tokens)
        streaming = False
        try:
            if body.stream:
                with_usage = body.stream_options is not None and body.stream_options.include_usage
                token = await unless_gone(request, first_of(run, with_usage))
                response = Events(run, events(run, token, about, with_usage))
                streaming = True
                return response
            text = await unless_gone(request, all_of(run))
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": run.finish_reason}
            return as_json({**about, "choices": [choice], "usage": run.usage()})
        except Overloaded:
            return as_json(overloaded, 503, {"Retry-After": "1"})
        except EngineError:
            return as_json(failed, 500)
        except ClientGone:
            return Response(status_code=499)  # nobody reads it
        finally:
            if not streaming:
                run.close()

    return router

# %% task="ws_router"
class Start(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["start"]
    messages: list[Message] = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    credits: int = Field(0, ge=0)


class Credit(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["credit"]
    n: int = Field(ge=1)


class Cancel(BaseModel):
    type: Literal["cancel"]


FRAME: TypeAdapter[Start | Credit | Cancel] = TypeAdapter(Start | Credit | Cancel)


class BadFrame(Exception):
    """The client does not keep to the protocol."""


def ws_router(engine: Engine, settings: Settings, limiter: Any) -> APIRouter:
    """The endpoint `WS /v1/stream`."""
    router = APIRouter()

    async def read(ws: WebSocket) -> Start | Credit | Cancel:
        message = await ws.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        text = message.get("text")
        if text is None:
            raise BadFrame
        try:
            return FRAME.validate_python(json.loads(text))
        except (ValueError, RecursionError):  # pydantic's ValidationError and json's error are ValueErrors
            raise BadFrame from None

    @router.websocket("/v1/stream")
    async def stream(ws: WebSocket) -> None:
        await ws.accept()
        credits = 0
        more = asyncio.Event()

        async def listen() -> None:
            """Returns when the client cancels."""
            nonlocal credits
            while True:
                frame = await read(ws)
                if isinstance(frame, Cancel):
                    return
                if isinstance(frame, Start):
                    raise BadFrame
                credits += frame.n
                more.set()

        async def send(value: dict[str, Any]) -> None:
            await ws.send_text(json.dumps(value))

        async def work(run: Run) -> None:
            nonlocal credits
            try:
                await run.start()
                while (token := await run.next()) is not None:
                    if not token.text:
                        continue
                    while credits < 1:
                        more.clear()
                        await more.wait()
                    credits -= 1
                    await send({"type": "token", "text": token.text})
            finally:
                run.close()
            await send({"type": "done", "finish_reason": run.finish_reason})

        try:
            start = await read(ws)
            if not isinstance(start, Start):
                raise BadFrame
            credits = start.credits
            messages = [message.model_dump() for message in start.messages]
            run = Run(engine, limiter, f"ws-{uuid.uuid4().hex}", messages, start.max_tokens)
            working, listening = asyncio.create_task(work(run)), asyncio.create_task(listen())
            try:
                await asyncio.wait([working, listening], return_when=asyncio.FIRST_COMPLETED)
            finally:
                was_done = working.done()
                await stop(working, listening)
            if was_done:
                working.result()
            else:
                listening.result()
                await send({"type": "cancelled"})
            await ws.close(1000)
        except WebSocketDisconnect:
            pass
        except BadFrame:
            await leave(ws, 1008)
        except Overloaded:
            await leave(ws, 1013)
        except EngineError:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await send({"type": "error", "message": "The engine failed."})
            await leave(ws, 1011)

    async def leave(ws: WebSocket, code: int) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await ws.close(code)

    return router

# %% task="jobs_router"
def jobs_router(engine: Engine, settings: Settings) -> APIRouter:
    """The endpoints `POST /v1/jobs`, `GET` and `DELETE /v1/jobs/{id}`."""
    router = APIRouter()

    @dataclass
    class Job:
        id: str
        status: str = "running"
        text: str = ""
        finish_reason: str | None = None
        ended_at: float = 0.0
        task: asyncio.Task[None] | None = None

        def shown(self) -> dict[str, Any]:
            return {
                "id": self.id,
                "status": self.status,
                "text": self.text,
                "finish_reason": self.finish_reason,
            }

    jobs: dict[str, Job] = {}

    async def work(job: Job, body: ChatRequest) -> None:
        run = Run(engine, NoLimit(), job.id, body.chat(), body.max_tokens)
        try:
            while (token := await run.next()) is not None:
                job.text += token.text
            job.status, job.finish_reason = "done", run.finish_reason
        except Exception:
            job.status = "failed"
        finally:
            job.ended_at = engine.now()
            run.close()

    def forget_old() -> None:
        now = engine.now()
        for job in list(jobs.values()):
            if job.status != "running" and now - job.ended_at > settings.job_ttl_s:
                del jobs[job.id]

    def unknown(id: str) -> Response:
        return as_json(error_body("There is no such job.", "invalid_request_error", "job_not_found"), 404)

    @router.post("/v1/jobs", status_code=202)
    async def create(body: ChatRequest) -> Response:
        forget_old()
        job = Job(f"job-{uuid.uuid4().hex}")
        jobs[job.id] = job
        job.task = asyncio.create_task(work(job, body))
        return as_json(job.shown(), 202, {"Location": f"/v1/jobs/{job.id}"})

    @router.get("/v1/jobs/{id}")
    async def look(id: str) -> Response:
        forget_old()
        return as_json(jobs[id].shown()) if id in jobs else unknown(id)

    @router.delete("/v1/jobs/{id}")
    async def delete(id: str) -> Response:
        forget_old()
        job = jobs.pop(id, None)
        if job is None:
            return unknown(id)
        if job.task is not None:
            await stop(job.task)
        return Response(status_code=204)

    return router
