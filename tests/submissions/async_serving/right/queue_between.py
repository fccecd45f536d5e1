"""A task of its own produces each answer into the queue of task 1, and the response only reads from there."""

# %% helpers="helpers"
# A pump from the engine into a TokenStream.
class Pump:
    def __init__(self, engine, limiter, name, body):
        self.engine, self.limiter, self.name, self.body = engine, limiter, name, body
        self.stream = TokenStream(2)
        self.prompt = 0
        self.task = asyncio.create_task(self.run())

    async def run(self):
        try:
            await self.limiter.acquire()
        except Overloaded as error:
            self.stream.fail(error)
            return
        ended = False
        try:
            self.prompt = await self.engine.count(self.body.chat())
            async for token in self.engine.generate(self.name, self.body.chat(), self.body.max_tokens):
                ended = token.finish_reason is not None
                if not ended:
                    await self.stream.put(token)
                else:
                    self.limiter.release()
                    await self.stream.put(token)
                    self.stream.finish()
                    return
        except EngineError as error:
            self.limiter.release()
            self.stream.fail(error)
        except BaseException:
            if not ended:
                self.engine.abort(self.name)
                self.limiter.release()
            raise

    def stop(self):
        self.stream.close()
        self.task.cancel()


async def gone(request):
    message = await request.receive()
    while message["type"] != "http.disconnect":
        message = await request.receive()


async def either(request, coroutine):
    """The result of the coroutine, or None if the client leaves first."""
    work, leaving = asyncio.ensure_future(coroutine), asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        leaving.cancel()


# %% task="chat_router"
def chat_router(engine, settings, limiter):
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request):
        name, created = f"chatcmpl-{uuid.uuid4()}", int(time.time())
        pump = Pump(engine, limiter, name, body)
        about = {"id": name, "created": created, "model": settings.model}

        def usage(count):
            return {
                "prompt_tokens": pump.prompt, "completion_tokens": count, "total_tokens": pump.prompt + count,
            }

        async def everything():
            return [token async for token in pump.stream]

        kept = False
        try:
            if not body.stream:
                tokens = await either(request, everything())
                if tokens is None:
                    return Response(status_code=499)
                text = "".join(token.text for token in tokens)
                message = {"role": "assistant", "content": text}
                choice = {"index": 0, "message": message, "finish_reason": tokens[-1].finish_reason}
                answer = {**about, "object": "chat.completion", "choices": [choice], "usage": usage(len(tokens))}
                return JSONResponse(answer)
            first = await either(request, anext(pump.stream))
            if first is None:
                return Response(status_code=499)
            kept = True
            return Events(pump, first, about, usage)
        except Overloaded:
            return JSONResponse(error_body("busy", code="overloaded"), 503, {"Retry-After": "1"})
        except EngineError:
            return JSONResponse(error_body("failed", code="internal_error"), 500)
        finally:
            if not kept:
                pump.stop()

    return router


class Events(StreamingResponse):
    def __init__(self, pump, first, about, usage):
        super().__init__(
            self.lines(pump, first, {**about, "object": "chat.completion.chunk"}, usage),
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
            media_type="text/event-stream",
        )
        self.pump = pump

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.pump.stop()

    async def lines(self, pump, token, about, usage):
        def line(delta, reason=None):
            return "data: " + json.dumps(
                {**about, "usage": None, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            )

        yield line({"role": "assistant", "content": ""}) + "\n\n"
        count = 0
        try:
            while True:
                count += 1
                if token.text:
                    yield line({"content": token.text}) + "\n\n"
                reason = token.finish_reason
                try:
                    token = await anext(pump.stream)
                except StopAsyncIteration:
                    break
            yield line({}, reason) + "\n\n"
            if pump.body.stream_options and pump.body.stream_options.include_usage:
                yield "data: " + json.dumps({**about, "choices": [], "usage": usage(count)}) + "\n\n"
        except EngineError:
            yield "data: " + json.dumps(error_body("failed", code="internal_error")) + "\n\n"
        yield "data: [DONE]\n\n"
