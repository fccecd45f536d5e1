"""Everything that an endpoint needs comes by Depends; before-validators and Decimal-like care; events instead of flags."""

# %% helpers="helpers"
# Annotated types with names of their own.
Count = Annotated[int, Field(ge=1, strict=True)]
Few = Annotated[int, Field(ge=1, le=8, strict=True)]
Text = Annotated[str, Field(strict=True)]
TextList = Annotated[list[Text], Field(min_length=1, max_length=16)]


class Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    role: Annotated[str, Field(pattern="^(system|user|assistant)$")]
    content: str


def first_given(*values):
    for value in values:
        if value is not None:
            return value


def common(request, most, room, param):
    if not 1 <= most <= room:
        raise APIError(400, f"{most} of {room}", param=param, code="context_length_exceeded")
    stop = first_given(request.stop, [])
    return SamplingParams(
        first_given(request.n, 1),
        most,
        float(first_given(request.temperature, 1)),
        float(first_given(request.top_p, 1)),
        (stop,) if isinstance(stop, str) else tuple(stop),
        request.seed,
    )


def served_model(settings):
    def check(request):
        if request.model != settings.model:
            raise APIError(404, f"unknown model {ascii(request.model)}", param="model", code="model_not_found")
        if request.stream:
            raise APIError(400, "stream must be false", param="stream")
        return request

    return check


# %% task="ChatCompletionRequest"
class CompletionRequest(BaseModel):
    model: Text
    prompt: Text | TextList
    max_tokens: Count | None = 16
    n: Few | None = 1
    temperature: Annotated[float, Field(ge=0, le=2, strict=True, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] | None = 1.0
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(strict=True)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = False

    def sampling_params(self, room):
        return common(self, first_given(self.max_tokens, 16), room, "prompt")


class ChatCompletionRequest(BaseModel):
    model: Text
    messages: Annotated[list[Turn], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Few | None = 1
    temperature: Annotated[float, Field(ge=0, le=2, strict=True, allow_inf_nan=False)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)] | None = 1.0
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(strict=True)] | None = None
    stream: Annotated[bool, Field(strict=True)] | None = False

    def sampling_params(self, room):
        return common(self, first_given(self.max_completion_tokens, self.max_tokens, room), room, "messages")


# %% task="add_error_handlers"
class Failure(Exception):
    pass


def add_error_handlers(app):
    def respond(status, message, param=None, code=None, headers=None):
        names = {True: "server_error", False: "invalid_request_error"}
        error = ErrorInfo(
            message=message.encode("utf-8", "backslashreplace").decode(), type=names[status >= 500], param=param, code=code
        )
        return JSONResponse({"error": error.model_dump()}, status, headers)

    @app.exception_handler(APIError)
    async def _(request, exc):
        return respond(exc.status_code, exc.message, exc.param, exc.code, exc.headers)

    @app.exception_handler(HTTPException)
    async def _(request, exc):
        return respond(exc.status_code, str(exc.detail), headers=exc.headers)

    @app.exception_handler(RequestValidationError)
    async def _(request, exc):
        places = [[p for p in error["loc"] if isinstance(p, str)][1:] for error in exc.errors()]
        named = [place[0] for place in places if place]
        return respond(400, "; ".join(error["msg"] for error in exc.errors()), named[0] if named else None)

    @app.exception_handler(ChatTemplateError)
    async def _(request, exc):
        return respond(400, str(exc), "messages")

    @app.exception_handler(EngineError)
    async def _(request, exc):
        if isinstance(exc, EngineOverloadedError):
            return respond(503, "busy", code="overloaded", headers={"Retry-After": str(exc.retry_after_s)})
        return respond(500, "sorry", code="internal_error")

    @app.exception_handler(500)
    async def _(request, exc):
        return respond(500, "sorry", code="internal_error")


# %% task="models_router"
def models_router(settings):
    router = APIRouter(prefix="/v1", tags=["models"])

    def card() -> ModelCard:
        return ModelCard(id=settings.model, created=settings.created)

    @router.get("/models")
    async def models(mine: Annotated[ModelCard, Depends(card)]) -> ModelList:
        return ModelList(data=[mine])

    @router.get("/models/{wanted:path}")
    async def model(wanted: str, mine: Annotated[ModelCard, Depends(card)]) -> ModelCard:
        if wanted != mine.id:
            raise APIError(404, "unknown", param="model", code="model_not_found")
        return mine

    return router


# %% task="completions_router"
def completions_router(engine, settings):
    router = APIRouter(prefix="/v1")
    admit = served_model(settings)

    async def encoded(request: CompletionRequest):
        admit(request)
        texts = request.prompt if isinstance(request.prompt, list) else [request.prompt]
        pairs = []
        for ids in [await engine.encode(text) for text in texts]:
            pairs.append((ids, request.sampling_params(settings.max_model_len - len(ids))))
        return pairs

    @router.post("/completions")
    async def create(pairs: Annotated[list, Depends(encoded)]) -> Completion:
        groups = await asyncio.gather(*(engine.generate(ids, params) for ids, params in pairs))
        choices, tokens = [], 0
        for group in groups:
            for output in group:
                tokens += len(output.token_ids)
                choices.append(
                    CompletionChoice(index=len(choices), text=output.text, finish_reason=output.finish_reason)
                )
        asked = sum(len(ids) for ids, _ in pairs)
        usage = Usage(prompt_tokens=asked, completion_tokens=tokens, total_tokens=asked + tokens)
        number = f"cmpl-{uuid.uuid1()}"
        return Completion(id=number, created=int(time.time()), model=settings.model, choices=choices, usage=usage)

    return router


# %% task="chat_router"
def chat_router(engine, settings):
    router = APIRouter(prefix="/v1/chat")
    admit = served_model(settings)

    @router.post("/completions")
    async def create(request: Annotated[ChatCompletionRequest, Depends(admit_chat(admit))]) -> ChatCompletion:
        ids = await engine.encode_chat([turn.model_dump() for turn in request.messages])
        outputs = await engine.generate(ids, request.sampling_params(settings.max_model_len - len(ids)))
        choices = [
            ChatChoice(index=index, message=AssistantMessage(content=output.text), finish_reason=output.finish_reason)
            for index, output in enumerate(outputs)
        ]
        tokens = sum(len(output.token_ids) for output in outputs)
        usage = Usage(prompt_tokens=len(ids), completion_tokens=tokens, total_tokens=len(ids) + tokens)
        number = f"chatcmpl-{uuid.uuid1()}"
        return ChatCompletion(id=number, created=int(time.time()), model=settings.model, choices=choices, usage=usage)

    return router


def admit_chat(admit):
    async def admitted(request: ChatCompletionRequest) -> ChatCompletionRequest:
        return admit(request)

    return admitted


# %% task="create_app"
def create_app(engine, settings):
    @asynccontextmanager
    async def lifespan(app):
        app.state.loaded = False

        async def load():
            await engine.load()
            app.state.loaded = True

        app.state.loading = asyncio.create_task(load())
        yield
        app.state.loading.cancel()
        await asyncio.gather(app.state.loading, return_exceptions=True)
        await engine.close()

    async def loaded(request: Request) -> None:
        if not request.app.state.loaded:
            raise APIError(503, "The model is still loading.", code="not_ready")

    declared = {"default": {"model": ErrorBody}}
    app = FastAPI(lifespan=lifespan, responses=declared)
    add_error_handlers(app)
    app.include_router(models_router(settings))
    app.include_router(completions_router(engine, settings), dependencies=[Depends(loaded)])
    app.include_router(chat_router(engine, settings), dependencies=[Depends(loaded)])
    app.add_api_route("/health", lambda: Status(status="ok"), response_model=Status)

    @app.get("/ready", dependencies=[Depends(loaded)])
    async def ready() -> Status:
        return Status(status="ready")

    return app
