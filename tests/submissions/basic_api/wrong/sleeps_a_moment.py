"""Sleeps 0.3 s in each request without giving way.

fails: test_completion_side_by_side
"""


# %% task="completions_router"
def completions_router(engine: Engine, settings: Settings) -> APIRouter:
    """The endpoint `POST /v1/completions`."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(request: CompletionRequest) -> Completion:
        require_servable(request, settings)
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        time.sleep(0.3)
        encoded = [await engine.encode(prompt) for prompt in prompts]
        params = [request.sampling_params(settings.max_model_len - len(ids)) for ids in encoded]
        generated = await asyncio.gather(*map(engine.generate, encoded, params))
        outputs = [output for group in generated for output in group]
        choices = [
            CompletionChoice(index=index, text=output.text, finish_reason=output.finish_reason)
            for index, output in enumerate(outputs)
        ]
        return Completion(
            id=f"cmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=settings.model,
            choices=choices,
            usage=usage_of(encoded, outputs),
        )

    return router


def require_servable(request: Any, settings: Settings) -> None:
    if request.model != settings.model:
        raise APIError(404, f"The model {request.model!r} does not exist.", param="model", code="model_not_found")
    if request.stream:
        raise APIError(400, "This server does not stream.", param="stream")


def usage_of(prompts: list[list[int]], outputs: list[Output]) -> Usage:
    asked, made = sum(map(len, prompts)), sum(len(output.token_ids) for output in outputs)
    return Usage(prompt_tokens=asked, completion_tokens=made, total_tokens=asked + made)
