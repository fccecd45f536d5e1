"""Shows a job's text when it is done.

fails: test_job_from_start_to_end test_job_failed test_job_forgotten
"""


# %% task="jobs_router"
def jobs_router(engine: Engine, settings: Settings) -> APIRouter:
    """The endpoints `POST /v1/jobs`, `GET` and `DELETE /v1/jobs/{id}`."""
    router = APIRouter()
    jobs: dict[str, dict[str, Any]] = {}
    tasks: dict[str, asyncio.Task[None]] = {}
    ended: dict[str, float] = {}

    def forget_old() -> None:
        for name in [name for name, at in ended.items() if engine.now() - at > settings.job_ttl_s]:
            del jobs[name], ended[name]

    async def run(job: dict[str, Any], body: ChatRequest) -> None:
        try:
            async for token in engine.generate(job["id"], body.chat(), body.max_tokens):
                job.setdefault("t", []).append(token.text)
                job["finish_reason"] = token.finish_reason
            job["text"] = "".join(job.pop("t"))
            job["status"] = "done"
        except EngineError:
            job["status"] = "failed"
        ended[job["id"]] = engine.now()
        del tasks[job["id"]]

    def missing() -> JSONResponse:
        return JSONResponse(error_body("There is no such job.", "invalid_request_error", "job_not_found"), 404)

    @router.post("/v1/jobs", status_code=202)
    async def create(body: ChatRequest, response: Response) -> dict[str, Any]:
        forget_old()
        name = f"job-{uuid.uuid4().hex}"
        jobs[name] = {"id": name, "status": "running", "text": "", "finish_reason": None}
        tasks[name] = asyncio.create_task(run(jobs[name], body))
        response.headers["Location"] = f"/v1/jobs/{name}"
        return jobs[name]

    @router.get("/v1/jobs/{name}", response_model=None)
    async def look(name: str) -> Any:
        forget_old()
        return jobs.get(name) or missing()

    @router.delete("/v1/jobs/{name}")
    async def cancel(name: str) -> Response:
        forget_old()
        if name not in jobs:
            return missing()
        del jobs[name]
        ended.pop(name, None)
        if task := tasks.pop(name, None):
            task.cancel()
            engine.abort(name)
        return Response(status_code=204)

    return router
