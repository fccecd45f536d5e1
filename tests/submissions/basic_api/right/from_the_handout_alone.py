"""Solved by somebody who had nothing but the handout."""

# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.
import logging
from collections.abc import AsyncIterator, Coroutine

log = logging.getLogger("uvicorn.error")


def printable(text: Any) -> str:
    """The text, with what UTF-8 cannot write replaced."""
    return str(text).encode("utf-8", errors="replace").decode("utf-8")


def check_model(wanted: str, settings: Settings) -> None:
    """404 for a model that is not ours."""
    if wanted != settings.model:
        raise APIError(404, f"There is no model {wanted!r} here.", param="model", code="model_not_found")


def refuse_stream(stream: bool | None) -> None:
    """400 for a stream: we have none."""
    if stream:
        raise APIError(400, "This service does not stream yet. Send no stream, or false.", param="stream")


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def usage_of(prompts: list[list[int]], outputs: list[Output]) -> Usage:
    asked = sum(len(ids) for ids in prompts)
    made = sum(len(output.token_ids) for output in outputs)
    return Usage(prompt_tokens=asked, completion_tokens=made, total_tokens=asked + made)


async def all_of(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """What they return, run side by side. If one fails, the others are cancelled."""
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()

# %% task="ChatCompletionRequest"
class Sampled(BaseModel):
    """What both requests have."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=8)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None

    def params_for(self, wanted: int, room: int, param: str) -> SamplingParams:
        if room < 1 or wanted > room:
            message = f"The answer may need {wanted} tokens, and the context has {max(room, 0)} left."
            raise APIError(400, message, param=param, code="context_length_exceeded")
        if self.stop is None:
            stop = ()
        elif isinstance(self.stop, str):
            stop = (self.stop,)
        else:
            stop = tuple(self.stop)
        return SamplingParams(
            n=1 if self.n is None else self.n,
            max_tokens=wanted,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
        )


class CompletionRequest(Sampled):
    """The body of `POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=16)]

    def sampling_params(self, room: int) -> SamplingParams:
        """What the engine is asked for when the context has `room` tokens left.

        Raises:
            APIError: 400, "context_length_exceeded", param "prompt": `max_tokens` is above `room`.
        """
        return self.params_for(16 if self.max_tokens is None else self.max_tokens, room, "prompt")


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "user", "assistant"]
    content: str


class ChatCompletionRequest(Sampled):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    def sampling_params(self, room: int) -> SamplingParams:
        """What the engine is asked for when the context has `room` tokens left.

        Raises:
            APIError: 400, "context_length_exceeded", param "messages": more tokens than `room` are wanted, or `room` is
                below 1.
        """
        wanted = room
        if self.max_completion_tokens is not None:
            wanted = self.max_completion_tokens
        elif self.max_tokens is not None:
            wanted = self.max_tokens
        return self.params_for(wanted, room, "messages")

# %% task="add_error_handlers"
def add_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` an OpenAI error body, as in the table above."""

    def reply(
        status: int, message: Any, param: str | None = None, code: str | None = None, headers: Any = None
    ) -> JSONResponse:
        info = ErrorInfo(
            message=printable(message),
            type="invalid_request_error" if status < 500 else "server_error",
            param=None if param is None else printable(param),
            code=None if code is None else printable(code),
        )
        return JSONResponse(ErrorBody(error=info).model_dump(), status, headers=headers)

    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, APIError):
            return reply(error.status_code, error.message, error.param, error.code, error.headers)
        return reply(error.status_code, error.detail, headers=error.headers)

    async def on_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        if not problems:
            return reply(400, "The request is not valid.")
        place, text = problems[0]["loc"], problems[0]["msg"]
        field = place[1] if len(place) > 1 and isinstance(place[1], str) else None
        where = ".".join(str(part) for part in place)
        return reply(400, f"{where}: {text}", field)

    async def on_template(request: Request, error: ChatTemplateError) -> JSONResponse:
        return reply(400, error, "messages")

    async def on_overload(request: Request, error: EngineOverloadedError) -> JSONResponse:
        log.warning("The engine is overloaded: %s", error)
        headers = {"Retry-After": str(error.retry_after_s)}
        return reply(503, "The engine is overloaded. Try again later.", code="overloaded", headers=headers)

    async def on_crash(request: Request, error: Exception) -> JSONResponse:
        return reply(500, "The server failed to answer this request.", code="internal_error")

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(ChatTemplateError, on_template)
    app.add_exception_handler(EngineOverloadedError, on_overload)
    app.add_exception_handler(Exception, on_crash)

# %% task="models_router"
def models_router(settings: Settings) -> APIRouter:
    """The endpoints `GET /v1/models` and `GET /v1/models/{id}`."""
    router = APIRouter()
    card = ModelCard(id=settings.model, created=settings.created)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[card])

    @router.get("/v1/models/{id:path}")
    async def get_model(id: str) -> ModelCard:
        check_model(id, settings)
        return card

    return router

# %% task="completions_router"
def completions_router(engine: Engine, settings: Settings) -> APIRouter:
    """The endpoint `POST /v1/completions`."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(request: CompletionRequest) -> Completion:
        check_model(request.model, settings)
        refuse_stream(request.stream)
        texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        prompts = await all_of(*(engine.encode(text) for text in texts))
        params = [request.sampling_params(settings.max_model_len - len(ids)) for ids in prompts]
        answers = await all_of(*(engine.generate(ids, each) for ids, each in zip(prompts, params, strict=True)))
        outputs = [output for answer in answers for output in answer]
        return Completion(
            id=new_id("cmpl"),
            created=int(time.time()),
            model=settings.model,
            choices=[
                CompletionChoice(index=index, text=output.text, finish_reason=output.finish_reason)
                for index, output in enumerate(outputs)
            ],
            usage=usage_of(prompts, outputs),
        )

    return router

# %% task="chat_router"
def chat_router(engine: Engine, settings: Settings) -> APIRouter:
    """The endpoint `POST /v1/chat/completions`."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: ChatCompletionRequest) -> ChatCompletion:
        check_model(request.model, settings)
        refuse_stream(request.stream)
        ids = await engine.encode_chat([message.model_dump() for message in request.messages])
        params = request.sampling_params(settings.max_model_len - len(ids))
        outputs = await engine.generate(ids, params)
        return ChatCompletion(
            id=new_id("chatcmpl"),
            created=int(time.time()),
            model=settings.model,
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(content=output.text),
                    finish_reason=output.finish_reason,
                )
                for index, output in enumerate(outputs)
            ],
            usage=usage_of([ids], outputs),
        )

    return router

# %% task="create_app"
def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The whole service. It calls `engine.load()` when it starts and `engine.close()` when it ends."""
    loaded = False

    async def load() -> None:
        nonlocal loaded
        try:
            await engine.load()
        except Exception:
            log.exception("The engine did not load.")
        else:
            loaded = True

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal loaded
        loading = asyncio.create_task(load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.wait([loading])
            loaded = False
            await engine.close()

    async def must_be_ready() -> None:
        if not loaded:
            raise APIError(503, "The model is not loaded.", code="not_ready")

    app = FastAPI(title="A language model", lifespan=lifespan)
    add_error_handlers(app)
    errors = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}

    @app.get("/health")
    async def health() -> Status:
        return Status(status="ok")

    @app.get("/ready", dependencies=[Depends(must_be_ready)], responses=errors)
    async def ready() -> Status:
        return Status(status="ready")

    app.include_router(models_router(settings), responses=errors)
    for router in (completions_router(engine, settings), chat_router(engine, settings)):
        app.include_router(router, dependencies=[Depends(must_be_ready)], responses=errors)
    return app
