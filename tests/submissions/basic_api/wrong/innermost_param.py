"""Names the innermost field of a wrong body instead of the outermost.

fails: test_errors_of_hostile_bodies test_app_errors
"""


# %% task="add_error_handlers"
def add_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` an OpenAI error body, as in the table above."""

    def answer(
        status: int, message: str, param: str | None = None, code: str | None = None, headers: Any = None
    ) -> JSONResponse:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        message = message.encode(errors="replace").decode()
        error = {"message": message, "type": kind, "param": param, "code": code}
        return JSONResponse({"error": error}, status, headers=headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        param, code = getattr(error, "param", None), getattr(error, "code", None)
        return answer(error.status_code, str(error.detail), param, code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = first["loc"][1:]
        param = str(place[-1]) if place else None
        return answer(400, f"{param or 'The body'}: {first['msg']}", param)

    @app.exception_handler(ChatTemplateError)
    async def refused(request: Request, error: ChatTemplateError) -> JSONResponse:
        return answer(400, str(error), "messages")

    @app.exception_handler(EngineOverloadedError)
    async def overloaded(request: Request, error: EngineOverloadedError) -> JSONResponse:
        retry = {"Retry-After": str(error.retry_after_s)}
        return answer(503, "The engine is overloaded. Try again later.", code="overloaded", headers=retry)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return answer(500, "The server failed to answer this request.", code="internal_error")
