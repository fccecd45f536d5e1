"""The public checks of `basic_api`. Released with the assignment; each of them but the first two starts your service.

The engine behind the service is the check's: `Scripted` answers what your code asks of it, and notes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from autograder.checks import expect_equal, expect_raises, fail
from autograder.judging.exchange import Exchange
from autograder.judging.scripted import Call, ScriptedEngine
from autograder.judging.served import Service, serve

SETTINGS = {"model": "tiny/toy-1", "created": 1_760_000_000, "max_model_len": 64}
CHAT = [{"role": "user", "content": "Hi"}]


def answer(call: Call) -> None:
    """What the engine says: a token for each letter, 8 more for a chat, and outputs whose tokens are not their words."""
    if call.op in ("load", "close"):
        call.result()
    elif call.op == "encode":
        call.result([ord(letter) for letter in str(call.args.get("text"))])
    elif call.op == "encode_chat":
        messages: Any = call.args.get("messages")
        contents = [message.get("content") for message in messages or [] if type(message) is dict]
        call.result([1] * 8 + [ord(letter) for content in contents for letter in str(content)])
    elif call.op == "generate":
        outputs = [(" two words", [7, 8, 9], "stop"), ("", [], "stop"), (" cut", [5], "length")]
        made = [outputs[i % 3] for i in range(parameter(call, "n"))]
        call.result([{"text": text, "token_ids": ids, "finish_reason": why} for text, ids, why in made])


def parameter(call: Call, name: str) -> int:
    """One of the sampling parameters, which must be a small number at least."""
    params = call.args.get("params")
    value = params.get(name) if type(params) is dict else None
    if type(value) is not int or not 1 <= value <= 1 << 20:
        fail(f"The engine was asked to generate with an impossible {name}.", value=call.args)
    return value


@contextlib.contextmanager
def served(
    submission: Any, factory: str, answers: Any = answer, **changes: Any
) -> Iterator[tuple[Service, ScriptedEngine]]:
    """The service that `factory` makes, and the engine that it asks."""
    other = {"other": changes.pop("other")} if "other" in changes else {}
    with ScriptedEngine(submission, answers) as engine:
        kwargs = {"settings": {**SETTINGS, **changes}, **other}
        with serve(submission, factory, kwargs, sockets={"engine": engine.theirs}) as service:
            yield service, engine


def expect_status(got: Any, status: int, what: str) -> Any:
    """The JSON of an answer that must have this status. `got` is an `Exchange` or an answer of httpx."""
    given = got.status if isinstance(got, Exchange) else got.status_code
    try:
        body = got.json()
    except (ValueError, RecursionError):
        body = None
    if given != status:
        text = got.body() if isinstance(got, Exchange) else got.content
        shown = text.decode(errors="replace")[:300]
        fail(f"{what} must be answered with status {status}.", value=f"{given}: {shown}", expected=str(status))
    if type(body) is not dict:
        fail(f"{what} must be answered with a JSON object.", value=body, expected="{...}")
    return body


def expect_error(got: Any, status: int, what: str, *, param: Any = None, code: Any = None) -> str:
    """An OpenAI error body. Returns its message."""
    body = expect_status(got, status, what)
    error = body.get("error")
    if list(body) != ["error"] or type(error) is not dict or set(error) != {"message", "type", "param", "code"}:
        fail(f"{what}: this is no OpenAI error body.", value=body, expected='{"error": {message, type, param, code}}')
    expect_equal(error["param"], param, f"{what}: the error's param")
    expect_equal(error["code"], code, f"{what}: the error's code")
    expected = "invalid_request_error" if status < 500 else "server_error"
    expect_equal(error["type"], expected, f"{what}: the error's type")
    if type(error["message"]) is not str or not error["message"].strip():
        fail(f"{what}: the error must have a message.", value=error["message"], expected="a text")
    return str(error["message"])


def expect_fields(body: Any, fields: dict[str, Any], what: str) -> None:
    """`body` must have these fields with these values, and may have more."""
    if type(body) is not dict or fields.keys() - body.keys():
        fail(f"{what} lacks fields.", value=body, expected=", ".join(fields))
    for name, value in fields.items():
        expect_equal(body[name], value, f"{what}: the field {name}")


# ----------------------------------------------------------------------------------------------- ChatCompletionRequest


def test_schema_defaults(submission):
    """A request with nothing but model and prompt or messages gets the defaults of the table.

    Hint: Compare the table's last column. Chat takes all the room that is left, completions 16 tokens.
    """
    base = {"n": 1, "temperature": 1.0, "top_p": 1.0, "stop": [], "seed": None}
    request = submission.CompletionRequest(model="m", prompt="Hi")
    got = request.sampling_params(100).as_dict()
    expect_equal(got, {**base, "max_tokens": 16}, "What sampling_params gives for a completion with a prompt only")
    got = submission.ChatCompletionRequest(model="m", messages=CHAT).sampling_params(100).as_dict()
    expect_equal(
        got,
        {**base, "max_tokens": 100},
        "What sampling_params gives for a chat with messages only, and room for 100 tokens",
    )
    request = submission.CompletionRequest(model="m", prompt="Hi", stop="\n", user="ada", n=None)
    got = request.sampling_params(16).as_dict()
    what = "What sampling_params gives for a completion with one stop string, an unknown field, and null for n"
    expect_equal(got, {**base, "max_tokens": 16, "stop": ["\n"]}, what)


def test_schema_limits(submission):
    """Values that are out of range are refused, and the limits themselves are allowed.

    Hint: pydantic's Field has ge, gt, le, lt, min_length and max_length; what keeps it from making 2 of "2" is strict.
    """
    completion, chat = {"model": "m", "prompt": "Hi"}, {"model": "m", "messages": CHAT}
    for name, fields in (("CompletionRequest", completion), ("ChatCompletionRequest", chat)):
        make = getattr(submission, name)
        for field, value in (
            ("n", 0), ("n", 9), ("max_tokens", 0), ("temperature", -0.1), ("temperature", 2.1), ("top_p", 0),
            ("top_p", 1.1), ("stop", ["a"] * 5), ("temperature", float("nan")), ("n", "2"), ("n", True), ("model", 5),
        ):  # fmt: skip
            what = f"A {name} with {field}={value!r}"
            expect_raises("ValidationError", lambda make=make, more={**fields, field: value}: make(**more), what)
        for more in ({"n": 8}, {"max_tokens": 1}, {"temperature": 0}, {"temperature": 2}, {"top_p": 1}):
            make(**fields, **more)
    for prompt in (["a"], ["a"] * 16):
        submission.CompletionRequest(model="m", prompt=prompt)
    submission.ChatCompletionRequest(**chat, max_completion_tokens=1)
    for prompt in ([], ["a"] * 17, 5):
        what = f"CompletionRequest with prompt={prompt!r}"
        expect_raises("ValidationError", lambda p=prompt: submission.CompletionRequest(model="m", prompt=p), what)
    for messages in ([], [{"role": "robot", "content": "Hi"}], [{"role": "user"}], "Hi"):
        what = f"ChatCompletionRequest with messages={messages!r}"
        expect_raises(
            "ValidationError", lambda m=messages: submission.ChatCompletionRequest(model="m", messages=m), what
        )


# -------------------------------------------------------------------------------------------------- add_error_handlers


def test_errors_have_one_shape(submission):
    """Every error has OpenAI's body and the status of the table, whoever raised it.

    Hint: Register a handler for each class of the table. The 404 of an unknown path is Starlette's HTTPException.
    """
    with serve(submission, "serve_errors") as service:
        client = service.client()
        expect_fields(client.post("/echo", json={"text": "a"}).json(), {"text": "a"}, "The answer without an error")
        got = client.get("/fail/api?detail=spoon")
        said = expect_error(got, 404, "An APIError", param="thing", code="thing_not_found")
        expect_equal(said, "no spoon", "The message of an APIError")
        expect_error(client.get("/nowhere"), 404, "A path that does not exist")
        expect_error(client.delete("/echo"), 405, "A method that the path does not have")
        expect_error(
            client.post("/echo", json={"text": "a", "count": 0}), 400, "A count below its limit", param="count"
        )
        expect_error(client.post("/echo", json={}), 400, "A body without its field", param="text")
        expect_error(client.post("/echo", json=[1]), 400, "A body that is a list")
        expect_error(client.get("/fail/bug?detail=x"), 500, "A bug in an endpoint", code="internal_error")


# ------------------------------------------------------------------------------------------------------- models_router


def test_models(submission):
    """The list has the one model of the settings, and the model itself is found by its id, slash and all.

    Hint: A path parameter ends at a slash, unless it is written {name:path}.
    """
    card = {"id": "tiny/toy-1", "object": "model", "created": 1_760_000_000}
    with serve(submission, "serve_models", {"settings": SETTINGS}) as service:
        client = service.client()
        listed = expect_status(client.get("/v1/models"), 200, "GET /v1/models")
        expect_fields(listed, {"object": "list"}, "The list")
        data = listed.get("data")
        if type(data) is not list or len(data) != 1:
            fail("The list must have one model.", value=data, expected="[{...}]")
        expect_fields(data[0], card, "The model in the list")
        for path in ("/v1/models/tiny/toy-1", "/v1/models/tiny%2Ftoy-1"):
            expect_fields(expect_status(client.get(path), 200, f"GET {path}"), card, f"GET {path}")
        expect_status(client.get("/v1/models/toy-1"), 404, "GET /v1/models/toy-1, which does not exist,")


# -------------------------------------------------------------------------------------------------- completions_router


def test_completion(submission):
    """A completion has the engine's texts in order, its finish reasons, and counts the engine's tokens.

    Hint: Prompt 0 has choices 0 to n - 1, prompt 1 the next n. Count ids, not words; count each prompt once.
    """
    with served(submission, "serve_completions") as (service, _):
        body = {"model": "tiny/toy-1", "prompt": ["Hi", "KV cache"], "n": 2, "max_tokens": 5}
        got = expect_status(service.client().post("/v1/completions", json=body), 200, "A completion")
    expect_fields(got, {"object": "text_completion", "model": "tiny/toy-1"}, "A completion")
    texts = [(0, " two words", "stop"), (1, "", "stop"), (2, " two words", "stop"), (3, "", "stop")]
    expect_choices(got, texts, lambda choice: choice.get("text"))
    usage = {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16}
    expect_fields(got.get("usage"), usage, "The usage of prompts of 2 and 8 tokens and outputs of 3, 0, 3 and 0")
    expect_id(got, "cmpl-")


def expect_choices(got: Any, expected: list[tuple[int, str, str]], text_of: Any) -> None:
    """The choices must have these indices, texts and finish reasons."""
    choices = got.get("choices")
    if type(choices) is not list or any(type(choice) is not dict for choice in choices):
        fail("choices must be a list of objects.", value=choices, expected="[{...}, ...]")
    found = [(choice.get("index"), text_of(choice), choice.get("finish_reason")) for choice in choices]
    expect_equal(found, expected, "The list of choices (index, text, finish_reason)")


def expect_id(got: Any, prefix: str) -> None:
    """`id` and `created` must be what they are called."""
    if type(got.get("id")) is not str or not got["id"].startswith(prefix) or len(got["id"]) < len(prefix) + 4:
        fail("The id is wrong.", value=got.get("id"), expected=f"{prefix}..., different each time")
    if type(got.get("created")) is not int:
        fail("created must be whole seconds.", value=got.get("created"), expected="an int")


def test_completion_refusals(submission):
    """Another model is a 404; a stream, and a prompt that leaves too little room, are a 400; nothing is generated then.

    Hint: Look at all prompts before the engine generates anything.
    """
    with served(submission, "serve_completions") as (service, engine):
        client, body = service.client(), {"model": "tiny/toy-1", "prompt": "x" * 40, "max_tokens": 24}
        expect_status(client.post("/v1/completions", json=body), 200, "A prompt of 40 tokens and 24 more, of 64,")
        before = len(engine.calls("generate"))
        for what, change, status in (
            ("Another model", {"model": "toy-1"}, 404),
            ("A stream", {"stream": True}, 400),
            ("A prompt of 40 tokens and 25 more, of 64,", {"max_tokens": 25}, 400),
            ("A second prompt that is too long", {"prompt": ["x", "x" * 64]}, 400),
        ):
            expect_status(client.post("/v1/completions", json={**body, **change}), status, what)
            expect_equal(len(engine.calls("generate")) - before, 0, f"{what}: how often the engine was asked")


# --------------------------------------------------------------------------------------------------------- chat_router


def test_chat(submission):
    """A chat completion has one message per output, and takes all the room that its prompt leaves.

    Hint: engine.encode_chat gets the list of messages as dicts.
    """
    with served(submission, "serve_chat") as (service, engine):
        body = {"model": "tiny/toy-1", "messages": CHAT, "n": 3}
        got = expect_status(service.client().post("/v1/chat/completions", json=body), 200, "A chat completion")
        asked = [parameter(call, "max_tokens") for call in engine.calls("generate")]
        expect_status(
            service.client().post("/v1/chat/completions", json={**body, "model": "x"}), 404, "A chat with another model"
        )
    expect_fields(got, {"object": "chat.completion", "model": "tiny/toy-1"}, "A chat completion")
    expected = [(0, " two words", "stop"), (1, "", "stop"), (2, " cut", "length")]
    expect_choices(got, expected, lambda choice: (choice.get("message") or {}).get("content"))
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
    expect_fields(got.get("usage"), usage, "The usage of a prompt of 10 tokens and outputs of 3, 0 and 1")
    expect_id(got, "chatcmpl-")
    expect_equal(asked, [54], "max_tokens, as the engine was asked once, of a chat that leaves 54 of 64 tokens")


# ---------------------------------------------------------------------------------------------------------- create_app


def loads_when_told(call: Call) -> None:
    """The engine loads when the check says so."""
    if call.op != "load":
        answer(call)


def ready(service: Service) -> Service:
    """The service, once it is ready, or has had 200 requests' time for it: no clock says how long the news needs."""
    client = service.client()
    for _ in range(200):
        if client.get("/ready").status_code == 200:
            break
    return service


def test_app_is_ready_when_loaded(submission):
    """While the model loads, the service is alive and not ready; as soon as it is loaded, it is ready.

    Hint: What is awaited before the lifespan's yield keeps the server from answering anybody. Use a task.
    """
    body = {"model": "tiny/toy-1", "prompt": "Hi", "max_tokens": 4}
    with served(submission, "serve_app", loads_when_told) as (service, engine):
        loading = engine.next("load", "call engine.load()")
        client = service.client()
        health = expect_status(client.get("/health"), 200, "GET /health while the model loads")
        expect_fields(health, {"status": "ok"}, "GET /health")
        expect_error(client.get("/ready"), 503, "GET /ready while the model loads", code="not_ready")
        got = client.post("/v1/completions", json=body)
        expect_error(got, 503, "A completion while the model loads", code="not_ready")
        loading.result()
        got = expect_status(ready(service).client().get("/ready"), 200, "GET /ready after engine.load() has returned")
        expect_fields(got, {"status": "ready"}, "GET /ready")
        expect_status(client.post("/v1/completions", json=body), 200, "A completion after the model is loaded")


def test_app_serves_everything(submission):
    """The service has all endpoints of tasks 3 to 5, and the errors of task 2.

    Hint: include_router for each router, and add_error_handlers(app).
    """
    with served(submission, "serve_app") as (service, _):
        client = ready(service).client()
        expect_status(client.get("/v1/models"), 200, "GET /v1/models")
        body = {"model": "tiny/toy-1", "prompt": "Hi", "max_tokens": 4}
        expect_status(client.post("/v1/completions", json=body), 200, "A completion")
        chat = {"model": "tiny/toy-1", "messages": CHAT}
        expect_status(client.post("/v1/chat/completions", json=chat), 200, "A chat completion")
        got = client.post("/v1/completions", json={**body, "model": "x"})
        expect_error(got, 404, "A completion of another model", param="model", code="model_not_found")
        got = client.post("/v1/completions", json={**body, "max_tokens": 63})
        expect_error(got, 400, "More tokens than there is room for", param="prompt", code="context_length_exceeded")
