"""The hidden checks of `basic_api`. They ask for nothing that the handout does not say, and none of them reads a clock."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import openai

from autograder.checks import expect_equal, expect_raises, fail
from autograder.judging.exchange import Exchange
from autograder.judging.served import Service, serve
from grading.basic_api import oracles
from grading.basic_api.oracles import SecretModel
from grading.basic_api.test_public import expect_error, expect_fields, expect_status, ready, served

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
MODEL = "tiny/toy-1"
FOREIGN = (True, "1", [1], {"a": 1})
"""What is no number."""
CLIENTS = 48
"""At the same time. One answer may take 10 s: whoever blocks the event loop for 0.21 s in each request is too late."""


def messages(rng: random.Random) -> list[dict[str, str]]:
    """A chat of several messages, whose contents a template must not touch, not even spaces at their ends."""
    roles = ("system", "user", "assistant")
    chat = [{"role": rng.choice(roles), "content": oracles.text(rng)} for _ in range(rng.randint(1, 5))]
    return [*chat, {"role": "user", "content": f" {oracles.text(rng)}\n"}]


def expect_header(got: str | None, expected: str, what: str) -> None:
    """A header must have this value."""
    if got != expected:
        fail(f"{what} is missing or wrong.", value=got, expected=expected)


def expect_answer(call: Callable[[], Any], what: str) -> Any:
    """What the official client returns, which must not find an error in it."""
    try:
        return call()
    except openai.APIStatusError as error:
        shown = f"{error.status_code}: {error.response.text[:300]}"
        fail(f"{what}: the official client got an error.", value=shown, expected="status 200")
    except openai.APIError as error:
        fail(f"{what}: the official client cannot read the answer ({error}).", expected="an answer like OpenAI's")


def expect_refusal(kind: type[openai.APIStatusError], call: Callable[[], Any], what: str) -> openai.APIStatusError:
    """The official client must raise exactly this."""
    try:
        got = call()
    except openai.APIStatusError as error:
        if type(error) is not kind:
            shown = f"{type(error).__name__}: {error.response.text[:300]}"
            fail(f"{what}: the official client raises something else.", value=shown, expected=kind.__name__)
        return error
    fail(f"{what} must be refused.", value=got, expected=kind.__name__)


# ----------------------------------------------------------------------------------------------- ChatCompletionRequest


def test_schema_every_field(submission, rng):
    """Every field that is given arrives in the sampling parameters; 0 is a value, null is none, unknown fields nothing.

    Hint: `x or default` takes 0 for absent. For chats, max_completion_tokens wins over max_tokens.
    """
    for number in range(40):
        chat, room = bool(number % 2), rng.randint(60, 90)
        fields = oracles.request(rng, number // 2, chat=chat, most=60)
        prompt = {"messages": messages(rng)} if chat else {"prompt": rng.choice([oracles.text(rng), ["a", "b"]])}
        kind = submission.ChatCompletionRequest if chat else submission.CompletionRequest
        got = kind(model="m", **prompt, **fields).sampling_params(room).as_dict()
        what = f"What sampling_params gives for a {'chat' if chat else 'completion'} with {fields} and room for {room} tokens"
        expect_equal(got, oracles.wanted(fields, room, chat=chat), what)


def test_schema_strict_types(submission):
    """Nothing is converted: true is no number, "1" is no number, 1 is no text and no boolean.

    Hint: ConfigDict(strict=True), in nested models too.
    """
    one = [{"role": "user", "content": "Hi"}]
    for name, fields in (
        ("CompletionRequest", {"model": "m", "prompt": "Hi"}),
        ("ChatCompletionRequest", {"model": "m", "messages": one}),
    ):
        make = getattr(submission, name)
        wrong = [
            (field, value) for field in ("n", "max_tokens", "temperature", "top_p", "seed") for value in FOREIGN
        ] + [("stream", 1), ("stream", "true"), ("model", None), ("model", 1), ("stop", 1), ("stop", [1])]
        wrong += [("temperature", float("nan")), ("top_p", float("nan")), ("temperature", float("inf")), ("n", 1.5)]
        if name == "ChatCompletionRequest":
            wrong += [("max_completion_tokens", value) for value in (0, -1, True, "1")]
            wrong += [("messages", [{"role": "user", "content": value}]) for value in (1, None, True)]
            wrong += [("messages", [*one, {"role": 1, "content": "a"}]), ("messages", None), ("messages", one[0])]
        else:
            wrong += [("prompt", value) for value in (None, [1], ["a", None], True, {"a": "b"})]
        for field, value in wrong:
            what = f"{name} with {field}={value!r}"
            expect_raises("ValidationError", lambda make=make, more={**fields, field: value}: make(**more), what)


def test_schema_room(submission, rng):
    """What may need more tokens than there is room for is refused with an APIError; what just fits is not.

    Hint: Compare max_tokens with room, and look at room 0 where nothing is asked for.
    """
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    text = {"model": "m", "prompt": "Hi"}
    some = rng.randint(20, 500)
    for name, fields, fits, param in (
        ("CompletionRequest", text, 16, "prompt"),
        ("CompletionRequest", {**text, "max_tokens": some}, some, "prompt"),
        ("ChatCompletionRequest", chat, 1, "messages"),
        ("ChatCompletionRequest", {**chat, "max_tokens": some}, some, "messages"),
        ("ChatCompletionRequest", {**chat, "max_tokens": 5000, "max_completion_tokens": some}, some, "messages"),
        ("ChatCompletionRequest", {**chat, "max_tokens": 1, "max_completion_tokens": some}, some, "messages"),
    ):
        request = getattr(submission, name)(**fields)
        shown = {key: value for key, value in fields.items() if key.startswith("max")}
        got = request.sampling_params(fits).as_dict()["max_tokens"]
        expect_equal(got, fits, f"max_tokens of a {name} with {shown}, where room is {fits}")
        for room in (fits - 1, -rng.randint(1, 9)):
            what = f"A {name} with {shown}, where room is {room},"
            raised = expect_raises("APIError", lambda request=request, room=room: request.sampling_params(room), what)
            expected = {"status_code": 400, "param": param, "code": "context_length_exceeded"}
            got = {key: raised.data.get(key) for key in expected}
            expect_equal(got, expected, f"{what} raises an APIError, which")


# -------------------------------------------------------------------------------------------------- add_error_handlers


def test_errors_hide_internals(submission, rng):
    """A failure inside is a 500 that tells a stranger nothing: the same sentence whatever happened.

    Hint: EngineError needs no handler of its own; Exception covers it.
    """
    said = set()
    with serve(submission, "serve_errors") as service:
        for how in ("bug", "engine", "bug"):
            secret = f"/srv/{rng.getrandbits(60):x}"
            for accept in ("*/*", "text/html"):  # each on a connection of its own: uvicorn closes it after a failure
                got = service.begin("GET", f"/fail/{how}?detail={secret}", headers={"Accept": accept})
                said.add(expect_error(got, 500, f"{how!r} in an endpoint", code="internal_error"))
                shown = got.body().decode(errors="replace")
                if secret in shown or "Traceback" in shown:
                    fail("A 500 shows the text of the exception.", value=shown, expected="a fixed sentence")
    expect_equal(len(said), 1, "How many different sentences there are for failures inside")


def test_errors_of_the_engine(submission, rng):
    """An overloaded engine is a 503 that says when to come back; a refused chat is a 400 with the template's own words.

    Hint: EngineOverloadedError has retry_after_s. Headers are texts.
    """
    with serve(submission, "serve_errors") as service:
        client = service.client()
        for seconds in (7, rng.randint(8, 99)):
            secret = f"gpu-{rng.getrandbits(60):x}"
            got = client.get("/fail/overloaded", params={"detail": secret, "retry_after_s": seconds})
            expect_error(got, 503, "An overloaded engine", code="overloaded")
            expect_header(got.headers.get("retry-after"), str(seconds), "The header Retry-After")
            if secret in got.text:
                fail("The answer of an overloaded engine shows the text of the exception.", value=got.text)
        words = f"Roles must alternate. {rng.getrandbits(40):x}"
        got = client.get("/fail/template", params={"detail": words})
        expect_equal(expect_error(got, 400, "A refused chat", param="messages"), words, "The message of a refused chat")


def test_errors_of_hostile_bodies(submission):
    """No body makes the service fail: what cannot be read, or cannot be written again, is a 400 like any other.

    Hint: Try NaN for a number, bytes that are no UTF-8, and half of a surrogate pair, with and without your message.
    """
    with serve(submission, "serve_errors") as service:
        client = service.client()
        for what, content, param in (
            ("An empty body", b"", None),
            ("Half of a JSON object", b'{"text": "a"', None),
            ("Bytes that are no UTF-8", b'{"text": "\xff\xfe"}', None),
            ("Fifty thousand brackets", b"[" * 50_000, None),
            ("A JSON string", b'"text"', None),
            ("NaN for a number", b'{"text": "a", "count": NaN}', "count"),
            ("Infinity for a number", b'{"text": "a", "count": -Infinity}', "count"),
            ("Half of a surrogate pair", b'{"text": "a", "count": "\\ud83d"}', "count"),
            ("A deep object for a number", b'{"text": "a", "count": {"b": {"c": [NaN, "\\ud83d"]}}}', "count"),
            ("A number in a list of texts", b'{"text": "a", "tags": ["b", 1]}', "tags"),
            ("A list for a text", b'{"text": ["\\udc00"]}', "text"),
        ):
            got = client.post("/echo", content=content, headers={"Content-Type": "application/json"})
            expect_error(got, 400, what, param=param)
        expect_error(client.post("/echo", content=b'{"text": "a"}'), 400, "A body without a content type")
        said = expect_error(client.get("/fail/surrogate?detail=tail"), 400, "A message with half of a surrogate pair")
        if not said.startswith("half of a character: ") or not said.endswith(" tail"):
            fail("The rest of a message with half of a surrogate pair must stay.", value=said)


def test_errors_keep_headers(submission, rng):
    """An HTTPException keeps its status, its detail and its headers; a 405 says which methods are allowed.

    Hint: The exception has them as exc.headers.
    """
    with serve(submission, "serve_errors") as service:
        client, words = service.client(), f"short {rng.getrandbits(30):x} and stout"
        got = client.get("/fail/teapot", params={"detail": words})
        expect_equal(expect_error(got, 418, "A teapot"), words, "The message of an HTTPException")
        expect_header(got.headers.get("x-pot"), "tea", "The header of an HTTPException")
        got = client.get("/echo")
        expect_error(got, 405, "A method that the path does not have")
        expect_header(got.headers.get("allow"), "POST", "The header Allow of a 405")


# ------------------------------------------------------------------------------------------------------- models_router


def test_models_for_the_official_client(submission, rng):
    """The official client lists the model, and retrieves it by an id with any number of slashes; no other exists.

    Hint: Compare the whole id, and take it from the settings.
    """
    for parts in (1, 2, 3):
        name = "/".join(f"{rng.choice(('Org', 'meta-llama', 'x.y'))}-{rng.getrandbits(20):x}" for _ in range(parts))
        created = rng.randint(10**9, 2 * 10**9)
        settings = {"model": name, "created": created, "max_model_len": 64}
        with serve(submission, "serve_models", {"settings": settings}) as service, service.openai() as client:
            listed = expect_answer(lambda client=client: list(client.models.list()), "models.list()")
            expect_equal(
                [(m.id, m.created, m.object) for m in listed], [(name, created, "model")], "The list of models"
            )
            found = expect_answer(lambda c=client, n=name: c.models.retrieve(n), f"models.retrieve({name!r})")
            expect_equal((found.id, found.created), (name, created), f"The model {name!r}")
            for other in (f"{name}x", name[1:], f"{name}/x", name.upper(), "x"):
                what = f"models.retrieve({other!r}), where there is {name!r},"
                expect_refusal(openai.NotFoundError, lambda c=client, n=other: c.models.retrieve(n), what)


# -------------------------------------------------------------------------------------------------- completions_router


def test_completion_for_the_official_client(submission, rng):
    """Texts, indices, finish reasons and token counts reach the official client as the engine gave them.

    Hint: The engine's texts may begin with spaces, and their tokens are no words. Index i * n + j.
    """
    model = SecretModel(rng)
    with served(submission, "serve_completions", model, max_model_len=4096) as (service, engine):
        for number in range(6):
            prompts = [f"{oracles.text(rng)} {i}" for i in range(rng.randint(1, 4) if number else 3)]
            body = {"model": MODEL, "prompt": prompts if len(prompts) > 1 else prompts[0]}
            body["n"] = rng.randint(1, 4) if number else 2
            before = len(engine.calls("generate"))
            got = expect_status(service.begin("POST", COMPLETIONS, json=body), 200, "A completion")
            expect_equal(len(engine.calls("generate")) - before, len(prompts), "How often the engine was asked")
            encoded = [model.encode(prompt) for prompt in prompts]
            outputs = [out for ids in encoded for out in model.made.pop(str(ids), [])]
            expect_equal(
                len(outputs), len(prompts) * body["n"], f"How many outputs the engine was asked for, n={body['n']}"
            )
            answer = read(openai.types.Completion, got)
            expect_equal(
                [(c.index, c.text, c.finish_reason) for c in answer.choices],
                [(i, out["text"], out["finish_reason"]) for i, out in enumerate(outputs)],
                "The list of choices (index, text, finish_reason)",
            )
            expect_usage(answer.usage, encoded, outputs)


def read(kind: Any, got: Any) -> Any:
    """What the official library's own model makes of an answer, all fields checked."""
    try:
        return kind.model_validate(got)
    except ValueError as error:
        fail(f"The official library's {kind.__name__} does not accept the answer.", value=str(error)[:500])


def expect_usage(usage: Any, prompts: list[list[int]], outputs: list[dict[str, Any]]) -> None:
    """All prompts once, all outputs, and the sum."""
    asked, made = sum(map(len, prompts)), sum(len(out["token_ids"]) for out in outputs)
    if usage is None:
        fail("The answer has no usage.", expected=f"prompt_tokens {asked}, completion_tokens {made}")
    got = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
    expect_equal(got, (asked, made, asked + made), "The usage (prompt_tokens, completion_tokens, total_tokens)")


def test_completion_asks_the_engine_once(submission, rng):
    """The engine is asked once for each prompt, with its token ids and all parameters of the request.

    Hint: Let request.sampling_params(room) make the parameters; n is the engine's business.
    """
    model = SecretModel(rng)
    with served(submission, "serve_completions", model, max_model_len=4096) as (service, engine):
        client, before = service.client(), 0
        for number in range(12):
            prompts = [f"{oracles.text(rng)} {i}" for i in range(rng.randint(1, 3))]
            fields = oracles.request(rng, number, chat=False, most=60)
            body = {"model": MODEL, "prompt": prompts, **fields}
            expect_status(client.post(COMPLETIONS, json=body), 200, f"A completion with {fields}")
            calls = engine.calls("generate")[before:]
            before += len(calls)
            got = sorted((call.args.get("prompt_ids"), call.args.get("params")) for call in calls)
            params = oracles.wanted(fields, 0, chat=False)
            expected = sorted((model.encode(prompt), params) for prompt in prompts)
            if len(calls) != len(prompts):
                fail(
                    f"With {fields}: how often the engine was asked.",
                    value=len(calls),
                    expected=f"{len(prompts)}, once each",
                )
            expect_equal(got, expected, f"What the engine was asked with {fields} (token ids, parameters)")


def test_completion_side_by_side(submission, rng):
    """The requests of 48 clients are at the engine at the same time, and each client gets its own answer, soon.

    Hint: The engine answers nobody before it has them all. Is there something in your code that waits its turn, or that
    takes time without an await?
    """
    model = SecretModel(rng, held=("generate",))
    with served(submission, "serve_completions", model, max_model_len=4096) as (service, engine):
        prompts = [f"{oracles.text(rng)} {i}" for i in range(CLIENTS)]
        pending = {p: service.begin("POST", COMPLETIONS, json={"model": MODEL, "prompt": p}) for p in prompts}
        what = f"bring the requests of {CLIENTS} clients to the engine together ({{}} of them were there)"
        calls = [engine.next("generate", what.format(number)) for number in range(CLIENTS)]
        rng.shuffle(calls)
        texts = {}
        for call in calls:
            outputs = model.outputs(oracles.parameters(call))
            texts[str(call.args.get("prompt_ids"))] = [out["text"] for out in outputs]
            call.result(outputs)
        for prompt in rng.sample(prompts, CLIENTS):
            got = expect_status(pending[prompt], 200, f"One of {CLIENTS} completions at the same time")
            expected = texts.get(str(model.encode(prompt)))
            what = f"The list of texts of one of {CLIENTS} clients"
            expect_equal([c.get("text") for c in got.get("choices", [])], expected, what)


def test_completion_never_repeats(submission, rng):
    """Equal requests are different requests: each goes to the engine, and has an id and a time of its own.

    Hint: id from uuid.uuid4(), created from time.time(), when the request comes; nothing is kept between requests.
    """
    model = SecretModel(rng)
    prompt = oracles.text(rng)
    body, seen = {"model": MODEL, "prompt": prompt}, []
    with served(submission, "serve_completions", model, max_model_len=4096) as (service, engine):
        for number in range(3):
            before = int(time.time())
            got = expect_status(service.begin("POST", COMPLETIONS, json=body), 200, "A completion")
            expect_equal(
                len(engine.calls("generate")), number + 1, "How often the engine was asked, for equal requests"
            )
            made = [out["text"] for out in model.made.get(str(model.encode(prompt)), [])][-1:]
            expect_equal([c.get("text") for c in got.get("choices", [])], made, "The list of texts")
            seen.append(got.get("id"))
            if type(got.get("created")) is not int or not before <= got["created"] <= int(time.time()):
                fail("created is not the Unix time of the answer in whole seconds.", value=got.get("created"))
    if len({str(each) for each in seen}) < 3 or not all(str(each).startswith("cmpl-") for each in seen):
        fail("Three answers must have three ids that begin with cmpl-.", value=seen)


# --------------------------------------------------------------------------------------------------------- chat_router


def test_chat_template(submission, rng):
    """The model's own template gets exactly the client's messages, and its token ids are what the engine generates from.

    Hint: Neither strip nor join the contents; do not encode a text of your own.
    """
    model = SecretModel(rng)
    with served(submission, "serve_chat", model, max_model_len=4096) as (service, engine):
        client = service.client()
        for number in range(6):
            chat = messages(rng)
            body = {"model": MODEL, "messages": [{**message, "name": "ada"} for message in chat]}
            expect_status(client.post(CHATS, json=body), 200, "A chat completion")
            encoded = [call.args.get("messages") for call in engine.calls("encode_chat")]
            if len(encoded) <= number or engine.calls("encode"):
                fail("The chat must go through engine.encode_chat, and through nothing else.", value=len(encoded))
            expect_equal(encoded[-1], chat, "What engine.encode_chat was given")
            asked = [call.args.get("prompt_ids") for call in engine.calls("generate")]
            expect_equal(
                asked[-1:], [model.encode_chat(chat)], "The list of token ids that the engine was to generate from"
            )
            expect_equal(len(asked), number + 1, "How often the engine was asked to generate")


def test_chat_for_the_official_client(submission, rng):
    """Chat completions reach the official client with all messages, reasons, counts and parameters.

    Hint: max_completion_tokens is what newer clients send. Without it, and without max_tokens, all the room counts.
    """
    model = SecretModel(rng)
    seen = set()
    with served(submission, "serve_chat", model, max_model_len=4096) as (service, engine):
        for number in range(10):
            chat, fields = messages(rng), oracles.request(rng, number, chat=True, most=60)
            before, ids = int(time.time()), model.encode_chat(chat)
            pending = service.begin("POST", CHATS, json={"model": MODEL, "messages": chat, **fields})
            got = expect_status(pending, 200, f"A chat completion with {fields}")
            asked = [oracles.parameters(call) for call in engine.calls("generate")]
            wanted = oracles.wanted(fields, 4096 - len(ids), chat=True)
            expect_equal(asked[-1:], [wanted], f"What the engine was asked with {fields}")
            expect_equal(len(asked), number + 1, "How often the engine was asked to generate")
            outputs = model.made.pop(str(ids), [])
            chat_read = read(openai.types.chat.ChatCompletion, got)
            expect_equal(
                [(c.index, c.message.role, c.message.content, c.finish_reason) for c in chat_read.choices],
                [(i, "assistant", out["text"], out["finish_reason"]) for i, out in enumerate(outputs)],
                "The list of choices (index, role, content, finish_reason)",
            )
            expect_usage(chat_read.usage, [ids], outputs)
            name, created = chat_read.id, chat_read.created
            if not name.startswith("chatcmpl-") or name in seen or not before <= created <= time.time():
                fail("id and created must be of this answer.", value=(name, created))
            seen.add(name)
        for what, change, kind in (
            ("A stream", {"stream": True}, openai.BadRequestError),
            ("Another model", {"model": "toy"}, openai.NotFoundError),
            ("More tokens than there is room for", {"max_tokens": 4096}, openai.BadRequestError),
        ):
            body: Any = {"model": MODEL, "messages": messages(rng), **change}
            with service.openai() as client:
                expect_refusal(kind, lambda c=client, b=body: c.chat.completions.create(**b), what)


# ---------------------------------------------------------------------------------------------------------- create_app


def completion(service: Service, prompt: str = "Hi") -> Exchange:
    """A completion, sent."""
    return service.begin("POST", COMPLETIONS, json={"model": MODEL, "prompt": prompt, "max_tokens": 4})


def test_app_health_while_generating(submission, rng):
    """While eight generations run, which take as long as they like, everybody else is answered at once.

    Hint: The engine does not finish before the health check was answered. What in your code waits for it?
    """
    model = SecretModel(rng, held=("generate",))
    with served(submission, "serve_app", model) as (service, engine):
        ready(service)
        pending = [completion(service, f"{i}") for i in range(8)]
        calls = [
            engine.next("generate", f"bring 8 requests to the engine together ({i} of them were there)")
            for i in range(8)
        ]
        client = service.client()
        for path in ("/health", "/ready", "/v1/models", f"/v1/models/{MODEL}"):
            expect_status(client.get(path), 200, f"GET {path} while eight generations run")
        got = client.post(COMPLETIONS, json={"model": MODEL})
        expect_error(got, 400, "A wrong request while eight generations run", param="prompt")
        for call in calls:
            call.result(model.outputs(oracles.parameters(call)))
        for each in pending:
            expect_status(each, 200, "One of eight completions")


def test_app_loading_fails(submission, rng):
    """A model that cannot be loaded leaves a service that is alive, says that it is not ready, and tells no secrets.

    Hint: An exception in a task goes nowhere by itself. What does /ready say after it?
    """
    secret = f"/weights/{rng.getrandbits(60):x}"

    def fails(call: Any) -> None:
        if call.op == "load":
            call.error("failed", secret)
        else:
            SecretModel(rng)(call)

    with served(submission, "serve_app", fails) as (service, engine):
        engine.next("load", "call engine.load()")
        client = service.client()
        for _ in range(20):
            expect_status(client.get("/health"), 200, "GET /health after loading has failed")
            got = client.get("/ready")
            expect_error(got, 503, "GET /ready after loading has failed", code="not_ready")
            if secret in got.text:
                fail("/ready shows the text of the engine's error.", value=got.text)
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
        expect_error(client.post(CHATS, json=chat), 503, "A chat after loading has failed", code="not_ready")
        got = client.post(COMPLETIONS, json={"model": MODEL, "prompt": "Hi"})
        expect_error(got, 503, "A completion after loading has failed", code="not_ready")
        expect_equal({call.op for call in engine.calls()}, {"load"}, "What the engine was asked for")


def test_app_closes_the_engine(submission, rng):
    """When the service ends, the engine is closed once: after work, in the middle of loading, and after loading failed.

    Hint: What stands after the lifespan's yield? Does a task that failed, or never ends, keep it from getting there?
    """
    for what in ("after work", "while the model loads", "after loading has failed"):

        def plays(call: Any, what: str = what) -> None:
            if call.op == "load" and what == "while the model loads":
                return
            if call.op == "load" and what == "after loading has failed":
                call.error("failed", "no weights")
            else:
                SecretModel(rng)(call)

        with served(submission, "serve_app", plays) as (service, engine):
            engine.next("load", "call engine.load()")
            if what == "after work":
                expect_status(completion(ready(service)), 200, "A completion")
            else:
                for _ in range(5):
                    service.client().get("/health")
            expect_equal(len(engine.calls("close")), 0, f"How often engine.close() was called before the end, {what}")
            service.drain()
            engine.next("close", f"call engine.close() at its end {what}")
            if not service.ended(60):
                fail(f"The service did not end {what}, though it was told to.")
            counts = {op: len(engine.calls(op)) for op in ("load", "close")}
            expect_equal(counts, {"load": 1, "close": 1}, f"How often the engine was loaded and closed, {what}")


def test_app_errors(submission, rng):
    """Errors of the engine have their statuses in the whole service too, hide secrets, and spoil nothing for the next.

    Hint: add_error_handlers(app) on the app that serves; routers have no handlers of their own.
    """
    model = SecretModel(rng, held=("generate",))
    secret = f"cuda:{rng.getrandbits(60):x}"
    with served(submission, "serve_app", model) as (service, engine):
        ready(service)
        for kind, status, code in (("failed", 500, "internal_error"), ("overloaded", 503, "overloaded")) * 2:
            pending = completion(service)
            engine.next("generate").error(kind, secret, retry_after_s=11)
            expect_error(pending, status, f"A completion whose engine {kind}", code=code)
            if secret.encode() in pending.body():
                fail("An error shows the text of the engine's exception.", value=pending.body().decode())
            if status == 503:
                expect_header(pending.header("Retry-After"), "11", "The header Retry-After")
        model.template_error = "Only one system message."
        with service.openai() as client:
            body: Any = {"model": MODEL, "messages": [{"role": "system", "content": "a"}]}
            error = expect_refusal(
                openai.BadRequestError, lambda: client.chat.completions.create(**body), "A chat that no template takes"
            )
            got = (error.param, (error.body or {}).get("message") if isinstance(error.body, dict) else None)
            expect_equal(got, ("messages", model.template_error), "The error's param and message")
            lost = expect_refusal(openai.NotFoundError, lambda: client.models.retrieve("none"), "An unknown model")
            expect_equal((lost.param, lost.code), ("model", "model_not_found"), "The error's param and code")
        got = service.begin("POST", COMPLETIONS, json={"model": MODEL, "prompt": "Hi", "stream": True})
        refused = expect_status(got, 400, "A stream").get("error")
        expect_equal(refused.get("param") if type(refused) is dict else None, "stream", "A stream: the error's param")
        body = {"model": MODEL, "messages": [{"role": "robot", "content": "Hi"}]}
        expect_error(service.begin("POST", CHATS, json=body), 400, "A message of a robot", param="messages")
        pending = completion(service)
        call = engine.next("generate")
        call.result(model.outputs(oracles.parameters(call)))
        expect_status(pending, 200, "A completion after others have failed")
        got = service.begin("POST", COMPLETIONS, json={"model": f"\ud83d{MODEL}", "prompt": "Hi"})
        expect_error(got, 404, "A model with half of a character", param="model", code="model_not_found")


def test_app_document(submission, rng):
    """The OpenAPI document declares every answer: no 422, errors with their body, the given models for status 200.

    Hint: Read /openapi.json. `responses` may name ranges such as "4XX"; with those FastAPI adds no 422.
    """
    with served(submission, "serve_app", SecretModel(rng), max_model_len=2048) as (service, _):
        described = oracles.document(ready(service))
        for path, method, fields in (
            (COMPLETIONS, "post", {"id", "object", "created", "model", "choices", "usage"}),
            (CHATS, "post", {"id", "object", "created", "model", "choices", "usage"}),
            ("/v1/models", "get", {"object", "data"}),
        ):
            found = described["paths"].get(path, {}).get(method)
            if type(found) is not dict or type(found.get("responses")) is not dict:
                fail(f"The document does not have {method.upper()} {path}.", value=sorted(described["paths"]))
            answers = found["responses"]
            if "422" in answers:
                fail(
                    f"The document promises a 422 for {method.upper()} {path}, which is never sent.",
                    value=list(answers),
                )
            expect_schema(schema(described, answers.get("200")), fields, f"the answer 200 of {method.upper()} {path}")
            if method == "post" or answers.keys() - {"200"}:
                refused = next((answers[key] for key in ("400", "4XX", "4xx", "default") if key in answers), None)
                what = f"the answer 400 of {method.upper()} {path}"
                expect_schema(schema(described, refused), {"error"}, what)
        oracles.undeclared(service, described, MODEL, rng.getrandbits(32))


def expect_schema(properties: dict[str, Any], fields: set[str], what: str) -> None:
    """These fields must be declared."""
    if fields - properties.keys():
        fail(
            f"The document does not declare the fields of {what}.",
            value=sorted(properties),
            expected=", ".join(sorted(fields)),
        )


def schema(described: dict[str, Any], answer: Any) -> dict[str, Any]:
    """The JSON schema of a response, with its reference followed."""
    try:
        found = answer["content"]["application/json"]["schema"]
        if "$ref" in found:
            found = described["components"]["schemas"][found["$ref"].rpartition("/")[2]]
        properties = found["properties"]
    except (KeyError, TypeError):
        return {}
    return dict(properties) if type(properties) is dict else {}


def test_app_shares_nothing(submission, rng):
    """A second app in the same process, with other settings, leaves the first one as it is.

    Hint: Module-level variables, and defaults of arguments, belong to both.
    """
    other = {"model": "other/model", "created": 1, "max_model_len": 4}
    model = SecretModel(rng)
    with served(submission, "serve_app", model, other=other, max_model_len=512) as (service, _):
        client = ready(service).client()
        got = expect_status(client.get(f"/v1/models/{MODEL}"), 200, "The first app's model")
        expect_fields(got, {"id": MODEL, "created": 1_760_000_000}, "The first app's model")
        got = expect_status(completion(service), 200, "A completion of the first app")
        expect_fields(got, {"model": MODEL}, "A completion of the first app")
        expect_status(client.get("/v1/models/other/model"), 404, "The second app's model, asked of the first,")
