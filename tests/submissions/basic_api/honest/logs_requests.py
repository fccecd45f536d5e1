"""Logs method, path, status and time of every request, as a service should.

twin of: S9 V17
"""

# %% helpers="helpers"
# An access log with ids.
class AccessLog:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, agent = time.perf_counter(), dict(scope["headers"]).get(b"user-agent", b"-").decode()

        async def noting(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", uuid.uuid4().hex.encode()))
                took = time.perf_counter() - began
                print(f"{scope['method']} {scope['path']} {message['status']} {took * 1000:.1f} ms {agent}")
            await send(message)

        await self.app(scope, receive, noting)


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

    app.add_middleware(AccessLog)
    return app
