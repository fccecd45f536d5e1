"""Has defaults, but does not take null for them.

fails: test_schema_defaults test_schema_every_field test_completion_asks_the_engine_once test_chat_for_the_official_client
"""


# %% task="ChatCompletionRequest"
class CompletionRequest(BaseModel):
    """The body of `POST /v1/completions`."""

    model_config = ConfigDict(strict=True)

    model: str
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=16)]
    max_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=8)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None

    def sampling_params(self, room: int) -> SamplingParams:
        """What the engine is asked for when the context has `room` tokens left.

        Raises:
            APIError: 400, "context_length_exceeded", param "prompt": `max_tokens` is above `room`.
        """
        return _sampling_params(self, 16 if self.max_tokens is None else self.max_tokens, room, "prompt")


class ChatCompletionRequest(BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(strict=True)

    class Message(BaseModel):
        model_config = ConfigDict(strict=True)

        role: Literal["system", "user", "assistant"]
        content: str

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=8)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None

    def sampling_params(self, room: int) -> SamplingParams:
        """What the engine is asked for when the context has `room` tokens left.

        Raises:
            APIError: 400, "context_length_exceeded", param "messages": more tokens than `room` are wanted, or `room` is
                below 1.
        """
        given = (self.max_completion_tokens, self.max_tokens)
        wanted = next((tokens for tokens in given if tokens is not None), max(room, 1))
        return _sampling_params(self, wanted, room, "messages")


def _sampling_params(request: Any, max_tokens: int, room: int, param: str) -> SamplingParams:
    if max_tokens > room:
        message = f"The prompt leaves room for {room} tokens, and {max_tokens} are wanted."
        raise APIError(400, message, param=param, code="context_length_exceeded")
    return SamplingParams(
        n=1 if request.n is None else request.n,
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        seed=request.seed,
    )
