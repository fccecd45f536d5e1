"""Aborts at a cancel what the engine has ended already.

fails: test_ws_never_without_credit
"""


# %% task="ws_router"
def ws_router(engine: Engine, settings: Settings, limiter: Any) -> APIRouter:
    """The endpoint `WS /v1/stream`."""
    router = APIRouter()

    @router.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        request_id, credits, granted = f"ws-{uuid.uuid4().hex}", 0, asyncio.Event()
        active = False

        async def frame() -> Any:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            return _FRAMES.validate_json(message.get("text") or "")

        async def read() -> None:
            nonlocal credits
            while True:
                match await frame():
                    case _Credit(n=n):
                        credits += n
                        granted.set()
                    case _Cancel():
                        return
                    case _Start():
                        raise ValueError("a second start")

        async def send(start: "_Start") -> None:
            nonlocal credits, active
            await limiter.acquire()
            try:
                active = True
                messages = [message.model_dump() for message in start.messages]
                async for token in engine.generate(request_id, messages, start.max_tokens):
                    if token.text:
                        while not credits:
                            granted.clear()
                            await granted.wait()
                        credits -= 1
                        await socket.send_json({"type": "token", "text": token.text})
                    if token.finish_reason:
                        active = False
                        await socket.send_json({"type": "done", "finish_reason": token.finish_reason})
            except EngineError:
                active = False
                raise
            finally:
                if active:
                    engine.abort(request_id)
                limiter.release()

        tasks: set[asyncio.Task[None]] = set()
        try:
            start = await frame()
            if not isinstance(start, _Start):
                raise ValueError("no start")
            credits = start.credits
            sending, reading = asyncio.create_task(send(start)), asyncio.create_task(read())
            tasks = {sending, reading}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                reading.result()
                await _stop({sending})
                await socket.send_json({"type": "cancelled"})
            await socket.close(1000)
        except ValueError:
            await _stop(tasks)
            await socket.close(1008)
        except Overloaded:
            await socket.close(1013)
        except EngineError:
            await socket.send_json({"type": "error", "message": "The engine failed."})
            await socket.close(1011)
        except WebSocketDisconnect:
            pass
        finally:
            await _stop(tasks)

    return router


async def _stop(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Start(BaseModel):
    type: Literal["start"]
    messages: list[Message] = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    credits: int = Field(0, ge=0)


class _Credit(BaseModel):
    type: Literal["credit"]
    n: int = Field(ge=1)


class _Cancel(BaseModel):
    type: Literal["cancel"]


_FRAMES: TypeAdapter[Any] = TypeAdapter(_Start | _Credit | _Cancel)
