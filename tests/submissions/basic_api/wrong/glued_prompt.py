"""Glues the messages together, as published course notebooks do, instead of using the model's template.

fails: test_chat test_chat_template test_chat_for_the_official_client test_app_errors
"""


# %% task="chat_router"
def chat_router(engine: Engine, settings: Settings) -> APIRouter:
    """The endpoint `POST /v1/chat/completions`."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: ChatCompletionRequest) -> ChatCompletion:
        if request.model != settings.model:
            raise APIError(404, f"There is no model {request.model!r} here.", param="model", code="model_not_found")
        if request.stream:
            raise APIError(400, "Streams are not served here.", param="stream")
        ids = await engine.encode("".join(f"{m.role}: {m.content}\n" for m in request.messages) + "assistant:")
        outputs = await engine.generate(ids, request.sampling_params(settings.max_model_len - len(ids)))
        made = sum(len(output.token_ids) for output in outputs)
        return ChatCompletion(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=settings.model,
            choices=[
                ChatChoice(index=i, message=AssistantMessage(content=out.text), finish_reason=out.finish_reason)
                for i, out in enumerate(outputs)
            ],
            usage=Usage(prompt_tokens=len(ids), completion_tokens=made, total_tokens=len(ids) + made),
        )

    return router
