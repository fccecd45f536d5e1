"""One ASGI response that does it all: it takes the slot, reads the engine, writes the events and listens for the client.

based on: right/library_primitives
"""

# %% helpers="helpers"
# Imports.
import heapq
import secrets


# %% task="chat_router"
class Exchange(Response):
    def __init__(self, engine, settings, limiter, body):
        self.engine, self.settings, self.limiter, self.body = engine, settings, limiter, body
        self.name, self.created = f"chatcmpl-{secrets.token_hex(8)}", int(time.time())
        self.background = None

    async def __call__(self, scope, receive, send):
        work = asyncio.create_task(self.work(scope, receive, send))
        ear = asyncio.create_task(self.listen(receive))
        try:
            await asyncio.wait([work, ear], return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            ear.cancel()
            done = await asyncio.gather(work, ear, return_exceptions=True)
        if isinstance(done[0], Exception):
            raise done[0]

    async def listen(self, receive):
        while True:
            if (await receive())["type"] == "http.disconnect":
                return

    async def work(self, scope, receive, send):
        try:
            await self.limiter.acquire()
        except Overloaded:
            await JSONResponse(error_body("full", code="overloaded"), 503, {"Retry-After": "1"})(scope, receive, send)
            return
        state = "new"
        try:
            prompt = await self.engine.count(self.body.chat())
            tokens = self.engine.generate(self.name, self.body.chat(), self.body.max_tokens)
            state = "asked"
            try:
                if self.body.stream:
                    await self.stream(send, tokens, prompt)
                else:
                    await self.whole(tokens, prompt, (scope, receive, send))
                state = "over"
            except EngineError:
                state = "over"
                error = error_body("the engine failed", code="internal_error")
                if self.started:
                    await self.event(send, error)
                    await self.event(send, "[DONE]", last=True)
                else:
                    await JSONResponse(error, 500)(scope, receive, send)
        finally:
            if state == "asked" and not self.ended:
                self.engine.abort(self.name)
            self.limiter.release()

    started = ended = False

    async def event(self, send, data, last=False):
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=True)
        await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": not last})

    async def stream(self, send, tokens, prompt):
        about = {"id": self.name, "object": "chat.completion.chunk", "created": self.created, "model": self.settings.model}

        async def delta(delta, reason=None):
            await self.event(send, {**about, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

        count, reason = 0, None
        async for token in tokens:
            count += 1
            self.ended = token.finish_reason is not None
            if not self.started:
                self.started = True
                headers = [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                ]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await delta({"role": "assistant", "content": ""})
            if token.text:
                await delta({"content": token.text})
            reason = token.finish_reason
        await delta({}, reason)
        options = self.body.stream_options
        if options is not None and options.include_usage:
            await self.event(send, {**about, "choices": [], "usage": self.usage(prompt, count)})
        await self.event(send, "[DONE]", last=True)

    async def whole(self, tokens, prompt, connection):
        heard = []
        async for token in tokens:
            heard.append(token)
            self.ended = token.finish_reason is not None
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(token.text for token in heard)},
            "finish_reason": heard[-1].finish_reason,
        }
        answer = {"id": self.name, "object": "chat.completion", "created": self.created, "model": self.settings.model}
        await JSONResponse({**answer, "choices": [choice], "usage": self.usage(prompt, len(heard))})(*connection)

    def usage(self, prompt, count):
        return {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}


def chat_router(engine, settings, limiter):
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest):
        return Exchange(engine, settings, limiter, body)

    return router


# %% task="ws_router"
def ws_router(engine, settings, limiter):
    router = APIRouter()

    @router.websocket("/v1/stream")
    async def stream(ws: WebSocket):
        await ws.accept()
        code = await Conversation(engine, limiter, ws).run()
        if code is not None:
            await ws.close(code)

    return router


class Gone(Exception):
    pass


class Conversation:
    def __init__(self, engine, limiter, ws):
        self.engine, self.limiter, self.ws = engine, limiter, ws
        self.name = f"ws-{secrets.token_hex(8)}"
        self.credits = 0

    async def frame(self):
        message = await self.ws.receive()
        if message["type"] == "websocket.disconnect":
            raise Gone
        frame = json.loads(message["text"]) if message.get("text") is not None else None
        if type(frame) is not dict:
            raise ValueError
        return frame

    @staticmethod
    def number(frame, name, default, least):
        value = frame.get(name, default)
        if type(value) is not int or value < least:
            raise ValueError(name)
        return value

    async def run(self):
        """The close code, None if there is nobody to hear it."""
        slot = engine_busy = False
        frame = asyncio.create_task(self.frame())
        other = None
        try:
            start = await frame
            if start.get("type") != "start":
                return 1008
            messages = TypeAdapter(list[Message]).validate_python(start.get("messages"))
            most, self.credits = self.number(start, "max_tokens", 16, 1), self.number(start, "credits", 0, 0)
            if not messages:
                return 1008
            frame = asyncio.create_task(self.frame())
            other = asyncio.create_task(self.limiter.acquire())
            tokens, held = None, None
            while True:
                waiting = {frame} | ({other} if other else set())
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if other and other.done():
                    try:
                        got = other.result()
                    except Overloaded:
                        return 1013
                    except EngineError:
                        engine_busy = False
                        await self.ws.send_json({"type": "error", "message": "failed"})
                        return 1011
                    other = None
                    if not slot:
                        slot = engine_busy = True
                        chat = [message.model_dump() for message in messages]
                        tokens = self.engine.generate(self.name, chat, most)
                        other = asyncio.create_task(anext(tokens))
                    else:
                        held = got
                        engine_busy = held.finish_reason is None
                elif frame.done():
                    said = frame.result()
                    if said.get("type") == "cancel":
                        if engine_busy:
                            self.engine.abort(self.name)
                            engine_busy = False
                        await self.ws.send_json({"type": "cancelled"})
                        return 1000
                    if said.get("type") != "credit":
                        return 1008
                    self.credits += self.number(said, "n", None, 1)
                    frame = asyncio.create_task(self.frame())
                if held is not None and (self.credits or not held.text):
                    if held.text:
                        self.credits -= 1
                        await self.ws.send_json({"type": "token", "text": held.text})
                    if held.finish_reason:
                        await self.ws.send_json({"type": "done", "finish_reason": held.finish_reason})
                        return 1000
                    held, other = None, asyncio.create_task(anext(tokens))
        except Gone:
            return None
        except ValueError:
            return 1008
        finally:
            tasks = [task for task in (frame, other) if task]
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            if other and not slot and results[-1] is None:
                slot = True
            if engine_busy:
                self.engine.abort(self.name)
            if slot:
                self.limiter.release()
