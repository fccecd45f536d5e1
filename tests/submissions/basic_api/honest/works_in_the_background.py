"""Has a heartbeat task and a thread pool of its own, and ends both.

twin of: T6 V22
"""

# %% helpers="helpers"
# A sign of life, for whoever watches the log.
from concurrent.futures import ThreadPoolExecutor


async def heartbeat():
    while True:
        print("alive")
        await asyncio.sleep(0.2)


# %% task="create_app"
def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The whole service. It calls `engine.load()` when it starts and `engine.close()` when it ends."""
    ready = asyncio.Event()

    async def load() -> None:
        await engine.load()
        ready.set()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        loading = asyncio.create_task(load())
        beat = asyncio.create_task(heartbeat())
        with ThreadPoolExecutor(2) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, time.sleep, 0.01)
            yield
            loading.cancel()
            beat.cancel()
            await asyncio.wait([loading, beat])
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
