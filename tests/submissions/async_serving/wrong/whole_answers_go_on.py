"""Does not notice that the client of an answer as a whole has left.

fails: test_chat_client_leaves test_chat_leaves_at_any_time test_chat_slots test_chat_under_load
"""


# %% task="chat_router"
def chat_router(engine: Engine, settings: Settings, limiter: Any) -> APIRouter:
    """The endpoint `POST /v1/chat/completions`."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        answer = _Answer(engine, settings, limiter, body)
        try:
            if body.stream:
                await _unless_gone(request, answer.begin())
                return _Stream(answer)
            return JSONResponse(await answer.whole())
        except Overloaded:
            error = error_body("All slots are taken. Try again later.", code="overloaded")
            return JSONResponse(error, 503, {"Retry-After": "1"})
        except EngineError:
            return JSONResponse(error_body("The engine failed.", code="internal_error"), 500)
        except _Gone:
            return Response(status_code=499)

    return router


class _Gone(Exception):
    pass


async def _unless_gone(request: Request, work: Any) -> Any:
    """What `work` returns; `_Gone` if the client leaves before."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.create_task(work), asyncio.create_task(leaves())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise _Gone
    return task.result()


class _Answer:
    """One request, from its slot to its end."""

    def __init__(self, engine: Engine, settings: Settings, limiter: Any, body: ChatRequest) -> None:
        self.engine, self.limiter, self.body = engine, limiter, body
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.about = {"id": self.id, "created": int(time.time()), "model": settings.model}
        self.held = self.asked = False
        self.count = 0
        self.reason: str | None = None

    def end(self) -> None:
        if self.asked and self.reason is None:
            self.engine.abort(self.id)
        if self.held:
            self.held = False
            self.limiter.release()

    async def next(self) -> Token:
        try:
            token = await anext(self.tokens)
        except EngineError:
            self.asked = False
            raise
        self.count += 1
        self.reason = token.finish_reason
        return token

    async def begin(self) -> None:
        try:
            await self.limiter.acquire()
            self.held = True
            self.prompt = await self.engine.count(self.body.chat())
            self.tokens = self.engine.generate(self.id, self.body.chat(), self.body.max_tokens)
            self.asked = True
            self.first = await self.next()
        except BaseException:
            self.end()
            raise

    def usage(self) -> dict[str, int]:
        total = self.prompt + self.count
        return {"prompt_tokens": self.prompt, "completion_tokens": self.count, "total_tokens": total}

    async def whole(self) -> dict[str, Any]:
        await self.begin()
        try:
            text = self.first.text
            while self.reason is None:
                text += (await self.next()).text
        finally:
            self.end()
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.reason}
        return {**self.about, "object": "chat.completion", "choices": [choice], "usage": self.usage()}

    async def events(self) -> AsyncIterator[str]:
        def event(delta: dict[str, str] | None, reason: str | None = None, **more: Any) -> str:
            choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
            return (
                f"data: {json.dumps({**self.about, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"
            )

        yield event({"role": "assistant", "content": ""})
        token = self.first
        try:
            while True:
                if token.text:
                    yield event({"content": token.text})
                if self.reason is not None:
                    break
                token = await self.next()
            yield event({}, self.reason)
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield event(None, usage=self.usage())
        except EngineError:
            yield f"data: {json.dumps(error_body('The engine failed.', code='internal_error'))}\n\n"
        yield "data: [DONE]\n\n"


class _Stream(StreamingResponse):
    def __init__(self, answer: _Answer) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(answer.events(), media_type="text/event-stream", headers=headers)
        self.answer = answer

    async def __call__(self, *connection: Any) -> None:
        try:
            await super().__call__(*connection)
        finally:
            self.answer.end()
