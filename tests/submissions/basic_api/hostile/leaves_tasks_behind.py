"""Starts tasks, threads and a process that go on after the service has ended.

changes nothing
attack: V22 T6
stopped by: C, a service's worker ends with its check, and takes everything with it.
"""

# %% helpers="helpers"
# What goes on.
import subprocess
import threading

tasks = []


async def busy():
    while True:
        await asyncio.sleep(0.5)


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
        tasks.extend(asyncio.create_task(busy()) for _ in range(3))
        threading.Thread(target=time.sleep, args=(10_000,), daemon=True).start()
        subprocess.Popen(["sleep", "10000"], start_new_session=True)
        yield
        loading.cancel()
        await asyncio.wait([loading])
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
