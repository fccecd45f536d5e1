"""As short as it gets: tables of fields, one handler for everything, closures.

based on: right/dependencies
"""

# %% helpers="helpers"
# Schemas from a table.
from pydantic import create_model

OPTIONAL = {
    "max_tokens": Annotated[int, Field(ge=1)],
    "n": Annotated[int, Field(ge=1, le=8)],
    "temperature": Annotated[float, Field(ge=0, le=2)],
    "top_p": Annotated[float, Field(gt=0, le=1)],
    "stop": str | Annotated[list[str], Field(max_length=4)],
    "seed": int,
    "stream": bool,
}
BASE = create_model(
    "BASE", __config__=ConfigDict(strict=True), model=(str, ...), **{k: (v | None, None) for k, v in OPTIONAL.items()}
)


def params_of(r, most, room, param):
    if most > room:
        raise APIError(400, "too long", param=param, code="context_length_exceeded")
    pick = lambda value, default: default if value is None else value
    stop = [r.stop] if type(r.stop) is str else pick(r.stop, [])
    return SamplingParams(pick(r.n, 1), most, pick(r.temperature, 1.0), pick(r.top_p, 1.0), tuple(stop), r.seed)


def first_given(*values):
    return next((value for value in values if value is not None), None)


def served_model(settings):
    def check(r):
        if r.model != settings.model or r.stream:
            raise APIError(*((400, "no stream") if r.model == settings.model else (404, "no model")), **(
                {"param": "stream"} if r.model == settings.model else {"param": "model", "code": "model_not_found"}
            ))
        return r

    return check


# %% task="ChatCompletionRequest"
class CompletionRequest(BASE):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=16)]

    def sampling_params(self, room):
        return params_of(self, self.max_tokens or 16, room, "prompt")


class ChatMessage(BaseModel, strict=True):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatCompletionRequest(BASE):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def sampling_params(self, room):
        return params_of(self, self.max_completion_tokens or self.max_tokens or max(room, 1), room, "messages")


# %% task="create_app"
def create_app(engine, settings):
    loading = None

    @asynccontextmanager
    async def lifespan(app):
        nonlocal loading
        loading = asyncio.create_task(engine.load())
        yield
        loading.cancel()
        await asyncio.wait({loading})
        await engine.close()

    def gate():
        if not loading.done() or loading.cancelled() or loading.exception():
            raise APIError(503, "not ready", code="not_ready")

    app = FastAPI(lifespan=lifespan, responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}})
    add_error_handlers(app)
    app.include_router(models_router(settings))
    for router in completions_router, chat_router:
        app.include_router(router(engine, settings), dependencies=[Depends(gate)])
    app.get("/health")(lambda: Status(status="ok"))
    app.get("/ready", dependencies=[Depends(gate)])(lambda: Status(status="ready"))
    return app
