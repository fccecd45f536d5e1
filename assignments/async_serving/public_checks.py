"""The public checks of `async_serving`. Released with the assignment.

No check measures time. The engine is the check's, and makes a token only after the client has read the one before.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from autograder.checks import SubmissionFault, expect_equal, fail
from autograder.judging.exchange import Exchange
from autograder.judging.scripted import Call, ScriptedEngine
from autograder.judging.served import Service, serve

SETTINGS = {"model": "tiny/toy-1", "max_running": 4, "max_waiting": 8, "job_ttl_s": 600.0}
MODEL, PATH = "tiny/toy-1", "/v1/chat/completions"
CHAT = [{"role": "user", "content": "Hi"}]
NOTHING = "no action"


def counts(call: Call) -> None:
    """The engine counts 10 tokens in every prompt; everything else waits for the check."""
    if call.op == "count":
        call.result(10)


@contextlib.contextmanager
def served(
    submission: Any, factory: str, answers: Any = counts, limited: bool | None = None, **changes: Any
) -> Iterator[tuple[Service, ScriptedEngine]]:
    """The service that `factory` makes, and the engine that it asks."""
    more = {} if limited is None else {"limited": limited}
    with ScriptedEngine(submission, answers) as engine:
        kwargs = {"settings": {**SETTINGS, **changes}, **more}
        with serve(submission, factory, kwargs, sockets={"engine": engine.theirs}) as service:
            yield service, engine


def ask(service: Service, *, stream: bool = True, text: str = "Hi", **more: Any) -> Exchange:
    """A chat completion, sent."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream, **more}
    return service.begin("POST", PATH, json=body)


def token(text: str, reason: str | None = None) -> dict[str, Any]:
    """What the engine says of one token."""
    return {"text": text, "finish_reason": reason}


def asked(engine: ScriptedEngine, what: str = "") -> Call:
    """The next request to generate."""
    call = engine.next("generate", what)
    if type(call.args.get("request_id")) is not str:
        fail("The engine was asked without a request_id.", value=call.args)
    return call


def aborted(engine: ScriptedEngine, call: Call, when: str) -> None:
    """The engine must be told to abort this request."""
    found = engine.next("abort", f"call engine.abort(...) {when}")
    expect_equal(found.args.get("request_id"), call.args["request_id"], f"The request that is aborted {when}")


def expect_sent(exchange: Exchange, text: str, what: str) -> None:
    """The body must come to hold `text`, before anything else happens."""
    try:
        body = exchange.until(text.encode())
    except SubmissionFault as fault:
        if not fault.timeout:
            raise
        late = f"did not send {what} in time (the engine makes the next token after that)"
        raise SubmissionFault(late, timeout=True) from None
    if text.encode() not in body:
        shown = body.decode(errors="replace")[-400:]
        fail(f"The answer ended (status {exchange.status}) without {what}.", value=shown, expected=text)


def events(body: bytes, what: str = "The stream") -> list[Any]:
    """The events of a whole stream: JSON objects, and "[DONE]" as it is."""
    text = body.decode(errors="replace")
    found: list[Any] = []
    if not text.endswith("\n\n"):
        fail(f"{what} must end with an empty line.", value=text[-100:], expected="...\\n\\n")
    for event in text[:-2].split("\n\n"):
        if not event.startswith("data: ") or "\n" in event:
            fail(f"{what} has an event that is not one line of data.", value=event[:300], expected="data: ...")
        data = event.removeprefix("data: ")
        try:
            found.append(data if data == "[DONE]" else json.loads(data))
        except (ValueError, RecursionError):
            fail(f"{what} has an event that is no JSON.", value=data[:300])
    return found


@contextlib.contextmanager
def shaped(what: str) -> Iterator[None]:
    """What the submission sent is looked into here: a field that is not there, or is something else, is its mistake."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        fail(f"{what} lacks a field, or has something else in its place ({type(error).__name__}: {error}).")


def expect_status(exchange: Exchange, status: int, what: str) -> Any:
    """The JSON of an answer with this status."""
    if exchange.status != status:
        shown = exchange.body().decode(errors="replace")[:300]
        fail(
            f"{what} must be answered with status {status}.", value=f"{exchange.status}: {shown}", expected=str(status)
        )
    return exchange.json()


# --------------------------------------------------------------------------------------------------------- TokenStream


def played(submission: Any, kind: str, arguments: list[Any], steps: list[list[list[Any]]]) -> list[dict[str, Any]]:
    """What the steps came to."""
    found = submission.play(kind, arguments, steps)
    if type(found) is not list or len(found) != len(steps) or any(type(note) is not dict for note in found):
        fail("The steps could not be played.", value=found)
    return found


def expect_played(submission: Any, kind: str, arguments: list[Any], script: list[tuple[Any, dict[str, Any]]]) -> None:
    """Each step must have exactly these outcomes, of all actions so far."""
    notes = played(submission, kind, arguments, [steps for steps, _ in script])
    wanted: dict[str, Any] = {}
    for number, ((steps, outcome), note) in enumerate(zip(script, notes, strict=True), 1):
        wanted |= outcome
        note.setdefault("state", None)
        wanted.setdefault("state", None)
        if kind == "TokenStream":
            note["state"] = None
        done = "; ".join(", ".join(map(str, step)) for step in steps)
        at = f"{kind}({', '.join(map(str, arguments))}), after step {number} ({done})"
        for name in {**wanted, **note}:  # one by one: the others are as they must be
            given, expected = note.get(name, NOTHING), wanted.get(name, NOTHING)
            expect_equal({name: given}, {name: expected}, f"{at}: what '{name}' came to")


OK = ["returned", None]


def test_queue_waits_when_full(submission):
    """A full queue makes the producer wait, and loses nothing.

    Hint: put waits while max_size items lie there; who takes one wakes it.
    """
    expect_played(
        submission,
        "TokenStream",
        [2],
        [
            ([["a", "put", "A"], ["b", "put", "B"], ["c", "put", "C"]], {"a": OK, "b": OK, "c": "waiting"}),
            ([["1", "next"]], {"1": ["returned", "A"], "c": OK}),
            ([["d", "put", "D"]], {"d": "waiting"}),
            ([["2", "next"], ["3", "next"]], {"2": ["returned", "B"], "3": ["returned", "C"], "d": OK}),
            ([["4", "next"]], {"4": ["returned", "D"]}),
            ([["5", "next"]], {"5": "waiting"}),
            ([["e", "put", "E"]], {"e": OK, "5": ["returned", "E"]}),
        ],
    )


def test_queue_ends(submission):
    """The reader gets what is queued, and then the end or the error, again and again.

    Hint: The end is no item: it needs no room in the queue, and it stays.
    """
    over = ["raised", "StopAsyncIteration"]
    expect_played(
        submission,
        "TokenStream",
        [1],
        [
            ([["a", "put", "A"]], {"a": OK}),
            ([["end", "finish"]], {"end": OK}),
            ([["1", "next"]], {"1": ["returned", "A"]}),
            ([["2", "next"], ["3", "next"]], {"2": over, "3": over}),
        ],
    )
    failed = ["raised", "EngineError"]
    expect_played(
        submission,
        "TokenStream",
        [3],
        [
            ([["a", "put", "A"], ["b", "put", "B"]], {"a": OK, "b": OK}),
            ([["end", "fail", "broken"]], {"end": OK}),
            ([["1", "next"], ["2", "next"]], {"1": ["returned", "A"], "2": ["returned", "B"]}),
            ([["3", "next"]], {"3": failed}),
            ([["4", "next"]], {"4": failed}),
        ],
    )


# -------------------------------------------------------------------------------------------------- ConcurrencyLimiter


def test_limiter_takes_turns(submission):
    """max_running have a slot, max_waiting wait for one in their order, and the next one is refused at once.

    Hint: A queue of futures: release gives its slot to the first one.
    """
    expect_played(
        submission,
        "ConcurrencyLimiter",
        [2, 2],
        [
            ([["a", "acquire"], ["b", "acquire"]], {"a": OK, "b": OK, "state": [2, 0]}),
            ([["c", "acquire"], ["d", "acquire"]], {"c": "waiting", "d": "waiting", "state": [2, 2]}),
            ([["e", "acquire"]], {"e": ["raised", "Overloaded"]}),
            ([["A", "release"]], {"A": OK, "c": OK, "state": [2, 1]}),
            ([["f", "acquire"]], {"f": "waiting", "state": [2, 2]}),
            ([["B", "release"], ["C", "release"]], {"B": OK, "C": OK, "d": OK, "f": OK, "state": [2, 0]}),
            ([["D", "release"], ["F", "release"]], {"D": OK, "F": OK, "state": [0, 0]}),
            ([["g", "acquire"]], {"g": OK, "state": [1, 0]}),
        ],
    )


# --------------------------------------------------------------------------------------------------------- chat_router


def test_chat_token_by_token(submission):
    """Each token reaches the client before the engine makes the next one.

    Hint: yield in the loop that gets the tokens; what is put into a list first is no stream.
    """
    with served(submission, "serve_chat") as (service, engine):
        exchange = ask(service)
        call = asked(engine)
        for number in range(6):
            call.part(token(f" word{number}"))
            expect_sent(exchange, f" word{number}", f"token {number + 1}")
        call.result(token("", "stop"))
        expect_sent(exchange, "[DONE]", "the end")


def test_chat_events(submission):
    """A stream has the events of the table, in their order and form; an answer as a whole has the same in one piece.

    Hint: Role first, then contents, then the finish reason, then the usage if it was asked for, then [DONE].
    """
    for usage in (False, True):
        with served(submission, "serve_chat") as (service, engine):
            exchange = ask(service, **({"stream_options": {"include_usage": True}} if usage else {}))
            call = asked(engine)
            for text in ("Hel", "lo\n\n"):
                call.part(token(text))
            call.result(token("", "stop"))
            found = events(exchange.body())
        for name, value in (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")):
            given = (exchange.header(name) or "").partition(";")[0]
            if given != value:
                fail(f"The header {name} of a stream is wrong.", value=exchange.header(name), expected=value)
        if exchange.header("X-Accel-Buffering") != "no":
            fail("The header X-Accel-Buffering of a stream is wrong.", value=exchange.header("X-Accel-Buffering"))
        deltas = [
            ({"role": "assistant", "content": ""}, None),
            ({"content": "Hel"}, None),
            ({"content": "lo\n\n"}, None),
        ]
        expect_stream(found, [*deltas, ({}, "stop")], call, usage=usage)
    with served(submission, "serve_chat") as (service, engine):
        exchange = ask(service, stream=False)
        call = asked(engine)
        call.part(token("Hel"))
        call.result(token("lo", "length"))
        whole = expect_status(exchange, 200, "An answer as a whole")
    expect_whole(whole, "Hello", "length", {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}, call)


def expect_stream(found: list[Any], deltas: list[tuple[Any, Any]], call: Call, *, usage: bool) -> None:
    """The events of a whole stream with these deltas and finish reasons; `usage` of 10 and 3 tokens if asked for."""
    if found[-1:] != ["[DONE]"] or "[DONE]" in found[:-1]:
        fail("The last event, and only that, must be [DONE].", value=found[-2:])
    chunks = found[:-1]
    if any(type(chunk) is not dict or type(chunk.get("choices")) is not list for chunk in chunks):
        fail("Every event must be an object with choices.", value=chunks)
    last = [chunk for chunk in chunks if not chunk["choices"]]
    with shaped("An event"):
        given = [(c["choices"][0].get("delta"), c["choices"][0].get("finish_reason")) for c in chunks if c["choices"]]
    expect_equal(given, deltas, "The list of events (delta, finish_reason)")
    places = [c["choices"][0].get("index") for c in chunks if c["choices"]]
    expect_equal(places, [0] * len(places), "The list of the choices' indices")
    expect_equal(len(last), int(usage), "How many events have no choices (the one with the usage, if it was asked for)")
    if usage:
        expect_equal(chunks[-1].get("choices"), [], "The field choices of the last event before [DONE]")
        counted = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        with shaped("The usage"):
            given_usage = {name: (last[0].get("usage") or {}).get(name) for name in counted}
        expect_equal(given_usage, counted, "The usage of a prompt of 10 tokens and three tokens")
    for chunk in chunks:
        about = (chunk.get("object"), chunk.get("id"), chunk.get("model"), chunk.get("created"))
        wanted = ("chat.completion.chunk", call.args["request_id"], MODEL, chunks[0].get("created"))
        expect_equal(about, wanted, "object, id (the engine's request_id), model and created of an event")
    if not str(call.args["request_id"]).startswith("chatcmpl-") or type(chunks[0].get("created")) is not int:
        fail("id must begin with chatcmpl-, and created must be whole seconds.", value=chunks[0])


def expect_whole(whole: Any, text: str, reason: str, usage: dict[str, int], call: Call) -> None:
    """An answer as a whole."""
    with shaped("An answer as a whole"):
        choice = whole["choices"][0]
        given = (whole["object"], whole["id"], choice["index"], choice["message"]["role"], choice["message"]["content"])
        given_usage = {name: whole["usage"][name] for name in usage}
    wanted = ("chat.completion", call.args["request_id"], 0, "assistant", text)
    expect_equal(given, wanted, "object, id (the engine's request_id), index, role and content of an answer")
    with shaped("An answer as a whole"):
        expect_equal(choice["finish_reason"], reason, "The finish reason of an answer")
    expect_equal(given_usage, usage, "The usage of an answer")


def test_chat_client_leaves(submission):
    """A client that goes away in the middle, of a stream or of an answer as a whole, makes the engine stop.

    Hint: For streams, a `finally`. For answers as a whole nobody tells you: wait for http.disconnect beside the work.
    """
    with served(submission, "serve_chat") as (service, engine):
        exchange = ask(service)
        call = asked(engine)
        call.part(token("one"))
        expect_sent(exchange, "one", "the first token")
        exchange.hang_up()
        aborted(engine, call, "after the client of a stream left")
        exchange = ask(service, stream=False)
        call = asked(engine)
        call.part(token("one"))
        exchange.hang_up()
        aborted(engine, call, "after the client of an answer as a whole left")


# ----------------------------------------------------------------------------------------------------------- ws_router


class Talk:
    """A WebSocket of the check's, whose waiting has the limit of one call."""

    def __init__(self, submission: Any, connection: Any) -> None:
        self._submission, self._connection = submission, connection

    def send(self, frame: Any) -> None:
        """Send a frame: an object as JSON, bytes and texts as they are. A connection that is closed is met by reading."""
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            self._connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    def read(self, what: str) -> Any:
        """The next frame, or ("closed", code)."""
        from websockets.exceptions import ConnectionClosed

        try:
            text = self._connection.recv(timeout=self._submission.time_left())
        except TimeoutError:
            raise SubmissionFault(f"did not send in time what the check waits for: {what}", timeout=True) from None
        except ConnectionClosed as closed:
            return "closed", closed.rcvd.code if closed.rcvd else 1006
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def expect_nothing(self, what: str) -> None:
        """Whatever the server has sent so far must be read already: it comes before the answer to a ping."""
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            if not self._connection.ping().wait(self._submission.time_left()):
                raise SubmissionFault("did not answer a ping in time: who reads the frames?", timeout=True)
            with contextlib.suppress(TimeoutError):
                fail(f"A frame came {what}.", value=self._connection.recv(timeout=0), expected="no frame")

    def expect(self, frame: Any, what: str) -> None:
        """The next frame must be this."""
        expect_equal(self.read(what), frame, f"The frame for {what}")


@contextlib.contextmanager
def talk(submission: Any, service: Service) -> Iterator[Talk]:
    """A WebSocket connection."""
    with service.websocket("/v1/stream") as connection:
        yield Talk(submission, connection)


def test_ws_credits(submission):
    """Every token uses a credit; without one the server waits, and with new ones it goes on to the end.

    Hint: An asyncio.Event that a credit frame sets, and that the sending task waits for.
    """
    with served(submission, "serve_ws") as (service, engine), talk(submission, service) as client:
        client.send({"type": "start", "messages": CHAT, "max_tokens": 7, "credits": 1})
        call = asked(engine)
        expect_equal(call.args.get("max_tokens"), 7, "max_tokens, as the engine was asked")
        call.part(token("Hel"))
        client.expect({"type": "token", "text": "Hel"}, "the first token")
        call.part(token("lo"))
        with talk(submission, service) as other:  # what the server does with "lo" is done when it has served another
            other.send({"type": "start", "messages": CHAT, "credits": 1})
            second = asked(engine, "ask the engine for another client while the first one has no credit")
            second.result(token("x", "stop"))
            other.expect({"type": "token", "text": "x"}, "another client's token")
            other.expect({"type": "done", "finish_reason": "stop"}, "another client's end")
        client.expect_nothing("after one token for one credit, before another credit was granted")
        client.send({"type": "credit", "n": 2})
        client.expect({"type": "token", "text": "lo"}, "the second token")
        call.part(token("!"))
        client.expect({"type": "token", "text": "!"}, "the third token")
        call.result(token("", "stop"))
        client.expect({"type": "done", "finish_reason": "stop"}, "the end, which needs no credit")
        expect_equal(client.read("a close frame"), ("closed", 1000), "How the connection ends")
        expect_equal(len(engine.calls("abort")), 0, "How often engine.abort was called for an answer that ended")


# --------------------------------------------------------------------------------------------------------- jobs_router


def look(service: Service, name: str) -> Any:
    """The job, as `GET` shows it; None for a 404."""
    got = service.begin("GET", f"/v1/jobs/{name}")
    return None if got.status == 404 else expect_status(got, 200, "GET of a job")


def watch(service: Service, name: str, field: str, value: Any) -> Any:
    """The job once `field` has `value`, or after 200 looks: no clock says how long the news needs."""
    for _ in range(200):
        job = look(service, name)
        if type(job) is not dict or job.get(field) == value:
            break
    return job if type(job) is dict else {}


def begin_job(service: Service, **more: Any) -> str:
    """A job; gives its id."""
    got = service.begin("POST", "/v1/jobs", json={"model": MODEL, "messages": CHAT, **more})
    job = expect_status(got, 202, "POST /v1/jobs")
    if type(job) is not dict or type(job.get("id")) is not str or not job["id"].startswith("job-"):
        fail("A job must have an id that begins with job-.", value=job)
    expect_equal(job, {"id": job["id"], "status": "running", "text": "", "finish_reason": None}, "A new job")
    expect_equal(got.header("Location"), f"/v1/jobs/{job['id']}", "The header Location of a new job")
    return str(job["id"])


def test_job_from_start_to_end(submission):
    """A job answers 202 at once, shows its text while it grows, and its end; an unknown one is a 404.

    Hint: asyncio.create_task runs it while you answer; a dict holds what it has so far.
    """
    with served(submission, "serve_jobs") as (service, engine):
        name = begin_job(service, max_tokens=9)
        call = asked(engine)
        expect_equal(call.args.get("request_id"), name, "The engine's request_id of a job")
        call.part(token("Hel"))
        expect_equal(watch(service, name, "text", "Hel").get("text"), "Hel", "The text after one token")
        call.part(token("lo"))
        running = watch(service, name, "text", "Hello")
        expect_equal((running.get("text"), running.get("status")), ("Hello", "running"), "The job after two tokens")
        call.result(token("", "stop"))
        done = {"id": name, "status": "done", "text": "Hello", "finish_reason": "stop"}
        expect_equal(watch(service, name, "status", "done"), done, "The job after its end")
        got = service.begin("GET", "/v1/jobs/job-unknown")
        body = expect_status(got, 404, "GET of an unknown job")
        with shaped("The error"):
            expect_equal(body["error"]["code"], "job_not_found", "The error's code")
