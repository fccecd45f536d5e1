"""Validators written by hand on a schema without types' help; plain dicts as answers; readiness as ASGI middleware."""

# %% helpers="helpers"
# Checks in plain Python.
import math
from secrets import token_hex

from pydantic import field_validator, model_validator


def whole(value, low, high, name):
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}")
    return value


def number(value, low, high, name, open_low=False):
    if value is None:
        return None
    if type(value) not in (int, float) or math.isnan(value) or not low <= value <= high or (open_low and value == low):
        raise ValueError(f"{name} must be a number between {low} and {high}")
    return value


def made(outputs, what):
    return [what(i, o) | {"index": i, "finish_reason": o.finish_reason, "logprobs": None} for i, o in enumerate(outputs)]


def counted(asked, outputs):
    made = sum(len(o.token_ids) for o in outputs)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def refuse_other(request, settings):
    if request.model != settings.model:
        raise APIError(404, "no such model", param="model", code="model_not_found")
    if request.stream:
        raise APIError(400, "streaming comes with the next version", param="stream")


# %% task="ChatCompletionRequest"
class Request_(BaseModel):
    model: Any
    max_tokens: Any = None
    n: Any = None
    temperature: Any = None
    top_p: Any = None
    stop: Any = None
    seed: Any = None
    stream: Any = None

    @field_validator("model", "stream", "seed", "n", "max_tokens", "temperature", "top_p", "stop", mode="plain")
    @classmethod
    def fits(cls, value, info):
        name = info.field_name
        if name == "model" and type(value) is not str:
            raise ValueError("model must be a string")
        if name == "stream" and type(value) not in (bool, type(None)):
            raise ValueError("stream must be true or false")
        if name == "stop":
            items = [value] if type(value) is str else [] if value is None else value
            if type(items) is not list or len(items) > 4 or any(type(item) is not str for item in items):
                raise ValueError("stop must be a string or up to four of them")
            return items
        if name == "n":
            return whole(value, 1, 8, name)
        if name == "max_tokens":
            return whole(value, 1, 2**62, name)
        if name == "seed":
            return whole(value, -(2**63), 2**63 - 1, name)
        if name == "temperature":
            return number(value, 0, 2, name)
        if name == "top_p":
            return number(value, 0, 1, name, open_low=True)
        return value

    def _params(self, most, room, param):
        if room < most:
            raise APIError(400, "the context is too short", param=param, code="context_length_exceeded")
        t, p = self.temperature, self.top_p
        return SamplingParams(
            n=self.n or 1,
            max_tokens=most,
            temperature=1.0 if t is None else float(t),
            top_p=1.0 if p is None else float(p),
            stop=tuple(self.stop or []),
            seed=self.seed,
        )


class CompletionRequest(Request_):
    prompt: Any

    @field_validator("prompt", mode="plain")
    @classmethod
    def is_text(cls, value):
        items = [value] if type(value) is str else value
        if type(items) is not list or not 1 <= len(items) <= 16 or any(type(item) is not str for item in items):
            raise ValueError("prompt must be a string or 1 to 16 of them")
        return items

    def sampling_params(self, room):
        return self._params(self.max_tokens or 16, room, "prompt")


class ChatCompletionRequest(Request_):
    messages: Any
    max_completion_tokens: Any = None

    @field_validator("messages", mode="plain")
    @classmethod
    def is_chat(cls, value):
        if type(value) is not list or not value:
            raise ValueError("messages must be a list of messages")
        chat = []
        for message in value:
            if type(message) is not dict or message.get("role") not in ("system", "user", "assistant"):
                raise ValueError("a message has a role")
            if type(message.get("content")) is not str:
                raise ValueError("a message has a content")
            chat.append({"role": message["role"], "content": message["content"]})
        return chat

    @field_validator("max_completion_tokens", mode="plain")
    @classmethod
    def is_count(cls, value):
        return whole(value, 1, 2**62, "max_completion_tokens")

    def sampling_params(self, room):
        most = self.max_completion_tokens or self.max_tokens
        return self._params(most if most else max(room, 1), room, "messages")


# %% task="add_error_handlers"
def add_error_handlers(app):
    async def handle(request, error):
        status, param, code, headers = 500, None, "internal_error", None
        message = "Internal error"
        if isinstance(error, HTTPException):
            status, message, headers = error.status_code, error.detail, error.headers
            param, code = getattr(error, "param", None), getattr(error, "code", None)
        elif isinstance(error, RequestValidationError):
            loc = error.errors()[0]["loc"]
            status, message, code = 400, "Invalid request", None
            param = loc[1] if len(loc) > 1 and type(loc[1]) is str else None
        elif isinstance(error, ChatTemplateError):
            status, message, param, code = 400, error.args[0], "messages", None
        elif isinstance(error, EngineOverloadedError):
            status, message, code = 503, "Overloaded", "overloaded"
            headers = {"Retry-After": str(error.retry_after_s)}
        kind = ("invalid_request_error", "server_error")[status >= 500]
        text = json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
        text = text.encode("ascii")
        from fastapi import Response

        return Response(text, status, headers=headers, media_type="application/json")

    for kind in (HTTPException, RequestValidationError, ChatTemplateError, EngineOverloadedError, Exception):
        app.exception_handler(kind)(handle)


# %% task="models_router"
def models_router(settings):
    router = APIRouter()

    @router.get("/v1/models", response_model=ModelList)
    async def index():
        return {"data": [{"id": settings.model, "created": settings.created}]}

    @router.get("/v1/models/{owner_and_name:path}", response_model=ModelCard)
    async def show(owner_and_name: str):
        found = [card for card in (await index())["data"] if card["id"] == owner_and_name]
        if not found:
            raise APIError(404, "no such model", param="model", code="model_not_found")
        return found[0]

    return router


# %% task="completions_router"
def completions_router(engine, settings):
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion)
    async def answer(body: CompletionRequest):
        refuse_other(body, settings)
        plan = []
        for prompt in body.prompt:
            ids = await engine.encode(prompt)
            plan.append((ids, body.sampling_params(settings.max_model_len - len(ids))))
        outputs = []
        for ids, params in plan:
            outputs += await engine.generate(ids, params)
        return {
            "id": f"cmpl-{token_hex(12)}",
            "object": "text_completion",
            "created": time.time_ns() // 10**9,
            "model": settings.model,
            "choices": made(outputs, lambda i, o: {"text": o.text}),
            "usage": counted(sum(len(ids) for ids, _ in plan), outputs),
        }

    return router


# %% task="chat_router"
def chat_router(engine, settings):
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def answer(body: ChatCompletionRequest):
        refuse_other(body, settings)
        ids = await engine.encode_chat(body.messages)
        outputs = await engine.generate(ids, body.sampling_params(settings.max_model_len - len(ids)))
        return {
            "id": f"chatcmpl-{token_hex(12)}",
            "created": time.time_ns() // 10**9,
            "model": settings.model,
            "choices": made(outputs, lambda i, o: {"message": {"role": "assistant", "content": o.text}}),
            "usage": counted(len(ids), outputs),
        }

    return router


# %% task="create_app"
def create_app(engine, settings):
    state = {"ready": False}

    async def load():
        try:
            await engine.load()
            state["ready"] = True
        except EngineError as error:
            print("loading failed:", error)

    @asynccontextmanager
    async def lifespan(app):
        task = asyncio.ensure_future(load())
        try:
            yield
        finally:
            if not task.done():
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await engine.close()

    app = FastAPI(lifespan=lifespan)
    add_error_handlers(app)
    declared = {
        status: {"model": ErrorBody, "description": "An error"} for status in ("4XX", "500", "503")
    }
    for router in (models_router(settings), completions_router(engine, settings), chat_router(engine, settings)):
        app.include_router(router, responses=declared)

    @app.get("/health", response_model=Status)
    async def health():
        return {"status": "ok"}

    @app.get("/ready", response_model=Status, responses={503: {"model": ErrorBody}})
    async def ready():
        return {"status": "ready"}

    class Gate:
        def __init__(self, inner):
            self.inner = inner

        async def __call__(self, scope, receive, send):
            closed = scope["type"] == "http" and scope["path"] in ("/ready", "/v1/completions", "/v1/chat/completions")
            if closed and not state["ready"]:
                error = {"message": "not yet", "type": "server_error", "param": None, "code": "not_ready"}
                await JSONResponse({"error": error}, 503)(scope, receive, send)
            else:
                await self.inner(scope, receive, send)

    app.add_middleware(Gate)
    return app
