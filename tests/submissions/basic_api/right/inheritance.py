"""A base class for both schemas, with strict field types instead of a strict model; services as objects with bound methods."""

# %% helpers="helpers"
# Strict types, one base class, one class per endpoint.
from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr

ShortList = Annotated[list[StrictStr], Field(max_length=4)]


class Sampling(BaseModel):
    model: StrictStr
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=8)] | None = None
    temperature: Annotated[StrictInt | StrictFloat, Field(ge=0, le=2)] | None = None
    top_p: Annotated[StrictInt | StrictFloat, Field(gt=0, le=1)] | None = None
    stop: StrictStr | ShortList | None = None
    seed: StrictInt | None = None
    stream: StrictBool | None = None

    def checked(self, most: int, room: int, param: str) -> SamplingParams:
        if most > room:
            raise APIError(400, f"{most} tokens do not fit into {room}", param=param, code="context_length_exceeded")
        values = {"n": 1, "temperature": 1, "top_p": 1, "stop": ()} | {
            name: value
            for name in ("n", "temperature", "top_p", "stop")
            if (value := getattr(self, name)) is not None
        }
        if isinstance(values["stop"], str):
            values["stop"] = [values["stop"]]
        return SamplingParams(
            values["n"], most, float(values["temperature"]), float(values["top_p"]), tuple(values["stop"]), self.seed
        )


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: StrictStr


class Endpoint:
    def __init__(self, engine, settings):
        self.engine, self.settings = engine, settings

    def admit(self, request):
        if request.model != self.settings.model:
            raise APIError(404, "unknown model", param="model", code="model_not_found")
        if request.stream is True:
            raise APIError(400, "no streams", param="stream", code="unsupported")

    def usage(self, prompts, outputs):
        p, c = sum(len(x) for x in prompts), sum(len(x.token_ids) for x in outputs)
        return Usage(prompt_tokens=p, completion_tokens=c, total_tokens=p + c)


class Completions(Endpoint):
    async def post(self, request: "CompletionRequest") -> Completion:
        self.admit(request)
        prompts = request.prompt
        if isinstance(prompts, str):
            prompts = [prompts]
        ids = await asyncio.gather(*[self.engine.encode(p) for p in prompts])
        jobs = [(i, request.sampling_params(self.settings.max_model_len - len(i))) for i in ids]
        tasks = [asyncio.create_task(self.engine.generate(*job)) for job in jobs]
        outputs = [output for task in tasks for output in await task]
        return Completion(
            id="cmpl-" + uuid.uuid4().hex, created=round(time.time() - 0.5), model=self.settings.model,
            choices=[CompletionChoice(index=i, text=o.text, finish_reason=o.finish_reason) for i, o in enumerate(outputs)],
            usage=self.usage(ids, outputs),
        )


class Chats(Endpoint):
    async def post(self, request: "ChatCompletionRequest") -> ChatCompletion:
        self.admit(request)
        ids = await self.engine.encode_chat([m.model_dump() for m in request.messages])
        outputs = await self.engine.generate(ids, request.sampling_params(self.settings.max_model_len - len(ids)))
        return ChatCompletion(
            id="chatcmpl-" + uuid.uuid4().hex, created=int(time.time()), model=self.settings.model,
            choices=[
                ChatChoice(index=i, message=AssistantMessage(content=o.text), finish_reason=o.finish_reason)
                for i, o in enumerate(outputs)
            ],
            usage=self.usage([ids], outputs),
        )


# %% task="ChatCompletionRequest"
class CompletionRequest(Sampling):
    prompt: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=16)]

    def sampling_params(self, room):
        return self.checked(self.max_tokens or 16, room, "prompt")


class ChatCompletionRequest(Sampling):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None

    def sampling_params(self, room):
        return self.checked(self.max_completion_tokens or self.max_tokens or max(1, room), room, "messages")


# %% task="add_error_handlers"
class Errors:
    def body(self, status, message, param=None, code=None, headers=None):
        safe = "".join("�" if 0xD800 <= ord(c) < 0xE000 else c for c in message)
        info = ErrorInfo(
            message=safe, type="invalid_request_error" if status < 500 else "server_error", param=param, code=code
        )
        return JSONResponse(ErrorBody(error=info).model_dump(), status_code=status, headers=headers)

    async def api(self, request, exc):
        return self.body(exc.status_code, exc.message, exc.param, exc.code)

    async def http(self, request, exc):
        return self.body(exc.status_code, exc.detail, headers=exc.headers)

    async def validation(self, request, exc):
        for error in exc.errors():
            names = [part for part in error["loc"][1:] if isinstance(part, str)]
            if names:
                return self.body(400, f"{names[0]} is wrong: {error['type']}", names[0])
        return self.body(400, "the body cannot be read")

    async def template(self, request, exc):
        return self.body(400, str(exc), "messages")

    async def overloaded(self, request, exc):
        return self.body(503, "come back later", None, "overloaded", {"retry-after": f"{exc.retry_after_s}"})

    async def other(self, request, exc):
        return self.body(500, "something went wrong", None, "internal_error")


def add_error_handlers(app):
    errors = Errors()
    for kind, handler in {
        APIError: errors.api,
        HTTPException: errors.http,
        RequestValidationError: errors.validation,
        ChatTemplateError: errors.template,
        EngineOverloadedError: errors.overloaded,
        Exception: errors.other,
    }.items():
        app.add_exception_handler(kind, handler)


# %% task="models_router"
def models_router(settings):
    router = APIRouter(prefix="/v1/models")

    @router.get("")
    async def everything() -> ModelList:
        return ModelList(data=[await one(settings.model)])

    @router.get("/{name:path}")
    async def one(name: str) -> ModelCard:
        if name == settings.model:
            return ModelCard(id=name, created=settings.created)
        raise APIError(404, "unknown model", param="model", code="model_not_found")

    return router


# %% task="completions_router"
def completions_router(engine, settings):
    router = APIRouter()
    router.add_api_route("/v1/completions", Completions(engine, settings).post, methods=["POST"])
    return router


# %% task="chat_router"
def chat_router(engine, settings):
    router = APIRouter()
    router.add_api_route("/v1/chat/completions", Chats(engine, settings).post, methods=["POST"])
    return router


# %% task="create_app"
def create_app(engine, settings):
    class Loader:
        task = None

        async def __aenter__(self):
            self.task = asyncio.get_running_loop().create_task(engine.load())
            self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

        async def __aexit__(self, *error):
            self.task.cancel()
            try:
                await self.task
            except (asyncio.CancelledError, EngineError):
                pass
            await engine.close()

        def loaded(self):
            return self.task.done() and not self.task.cancelled() and self.task.exception() is None

    loader = Loader()

    @asynccontextmanager
    async def lifespan(app):
        async with loader:
            yield

    async def gate():
        if not loader.loaded():
            raise APIError(503, "loading", code="not_ready")

    errors = {code: {"model": ErrorBody} for code in (400, 404, 405, "5XX")}
    app = FastAPI(lifespan=lifespan)
    app.include_router(models_router(settings), responses={"4XX": {"model": ErrorBody}})
    guarded = APIRouter(dependencies=[Depends(gate)])
    guarded.include_router(completions_router(engine, settings))
    guarded.include_router(chat_router(engine, settings))
    app.include_router(guarded, responses=errors | {"4XX": {"model": ErrorBody}})

    @app.get("/health")
    async def health() -> Status:
        return Status(status="ok")

    @app.get("/ready", dependencies=[Depends(gate)], responses={503: {"model": ErrorBody}})
    async def ready() -> Status:
        return Status(status="ready")

    add_error_handlers(app)
    return app
