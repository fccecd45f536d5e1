"""Waits for the model before it serves: nobody can ask whether it is alive.

fails: test_app_is_ready_when_loaded test_app_loading_fails test_app_closes_the_engine
"""


# %% task="create_app"
def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The whole service. It calls `engine.load()` when it starts and `engine.close()` when it ends."""
    ready = asyncio.Event()

    async def load() -> None:
        await engine.load()
        ready.set()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        await load()
        yield
        await engine.close()

    async def require_ready() -> None:
        if not ready.is_set():
            raise APIError(503, "The model is not loaded yet.", code="not_ready")

    errors: Any = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
    app = FastAPI(title="Language model service", lifespan=lifespan)
    add_error_handlers(app)
    app.include_router(models_router(settings), responses=errors)
    for router in (completions_router(engine, settings), chat_router(engine, settings)):
        app.include_router(router, responses=errors, dependencies=[Depends(require_ready)])

    @app.get("/health")
    async def health() -> Status:
        return Status(status="ok")

    @app.get("/ready", responses=errors)
    async def readiness() -> Status:
        await require_ready()
        return Status(status="ready")

    return app
