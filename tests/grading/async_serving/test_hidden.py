"""The hidden checks of `async_serving`. They ask for nothing that the handout does not say, and none of them reads a clock."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import openai

from autograder.checks import expect_equal, expect_raises, fail
from autograder.judging.exchange import Exchange
from autograder.judging.scripted import Call, ScriptedEngine
from autograder.judging.served import Service
from grading.async_serving import oracles
from grading.async_serving.oracles import OK, Teller
from grading.async_serving.test_public import (
    CHAT,
    MODEL,
    aborted,
    ask,
    asked,
    begin_job,
    events,
    expect_played,
    expect_sent,
    expect_status,
    expect_whole,
    look,
    served,
    shaped,
    talk,
    token,
    watch,
)

HELD = {"limited": True, "max_running": 1, "max_waiting": 1}


def pause(service: Service) -> None:
    """Have the service answer twenty other requests: whatever was sent before has been seen by then."""
    client = service.client()
    for _ in range(20):
        client.get("/nothing")


def contents(call: Call) -> list[Any]:
    """What the messages of a request say."""
    messages = call.args.get("messages")
    return [m.get("content") for m in messages if type(m) is dict] if type(messages) is list else []


def finish(call: Call, text: str = "end") -> None:
    """The engine's last token."""
    call.result(token(text, "stop"))


# --------------------------------------------------------------------------------------------------------- TokenStream


def test_queue_agrees_with_model(submission, rng):
    """Whatever producer and reader do, and whichever call is cancelled, every item arrives once and in its place.

    Hint: A cancelled put has put nothing, a cancelled next has taken nothing. Who is woken must look again.
    """
    for number, max_size in enumerate((1, 1, 2, 3, rng.randint(4, 8))):
        walk = oracles.queue_walk(rng, max_size, 60, fails=number % 2 == 1)
        expect_played(submission, "TokenStream", [max_size], walk)
    for wrong in (0, -1):
        what = f"TokenStream({wrong})"
        expect_raises("ValueError", partial(submission.play, "TokenStream", [wrong], []), what)


def test_queue_closed_by_its_reader(submission):
    """A producer whose reader has gone hears of it, whether it waits already or comes later.

    Hint: close wakes a waiting put, too.
    """
    gone = ["raised", "StreamClosed"]
    for size in (1, 3):
        puts = [[f"p{i}", "put", i] for i in range(size)]
        expect_played(
            submission,
            "TokenStream",
            [size],
            [
                (puts, {f"p{i}": OK for i in range(size)}),
                ([["w", "put", "W"]], {"w": "waiting"}),
                ([["end", "close"]], {"end": OK, "w": gone}),
                ([["x", "put", "X"]], {"x": gone}),
                ([["y", "put", "Y"], ["again", "close"]], {"y": gone, "again": OK}),
            ],
        )
    expect_played(
        submission, "TokenStream", [2], [([["end", "close"]], {"end": OK}), ([["a", "put", "A"]], {"a": gone})]
    )


# -------------------------------------------------------------------------------------------------- ConcurrencyLimiter


def test_limiter_agrees_with_model(submission, rng):
    """Slots, turns and refusals are right for any order of acquiring, releasing and cancelling.

    Hint: A slot that is released while somebody waits is never free: nobody who comes later may take it.
    """
    for most, room in ((1, 1), (1, 3), (2, 2), (3, 0), (rng.randint(2, 4), rng.randint(1, 4))):
        expect_played(submission, "ConcurrencyLimiter", [most, room], oracles.limiter_walk(rng, most, room, 50))


def test_limiter_cancelled_in_its_turn(submission):
    """A slot that was just given to a caller who is cancelled in that moment goes on to the next, or is free.

    Hint: CancelledError can come although the future has its result already. What then of the slot?
    """
    expect_played(
        submission,
        "ConcurrencyLimiter",
        [1, 3],
        [
            ([["a", "acquire"], ["b", "acquire"], ["c", "acquire"]], {"a": OK, "b": "waiting", "c": "waiting"} | state(1, 2)),
            ([["A", "release"], ["b", "cancel"]], {"A": OK, "b": ["cancelled"], "c": OK} | state(1, 0)),
            ([["d", "acquire"]], {"d": "waiting"} | state(1, 1)),
            ([["C", "release"], ["d", "cancel"]], {"C": OK, "d": ["cancelled"]} | state(0, 0)),
            ([["e", "acquire"]], {"e": OK} | state(1, 0)),
        ],
    )  # fmt: skip
    expect_played(
        submission,
        "ConcurrencyLimiter",
        [1, 1],
        [
            ([["a", "acquire"], ["b", "acquire"]], {"a": OK, "b": "waiting"} | state(1, 1)),
            ([["b", "cancel"]], {"b": ["cancelled"]} | state(1, 0)),
            ([["c", "acquire"]], {"c": "waiting"} | state(1, 1)),
            ([["A", "release"]], {"A": OK, "c": OK} | state(1, 0)),
        ],
    )


def state(running: int, waiting: int) -> dict[str, Any]:
    return {"state": [running, waiting]}


def test_limiter_arguments(submission):
    """Limits that make no sense are refused, and so is a release without a slot.

    Hint: max_waiting may be 0, max_running may not.
    """
    for most, room in ((0, 1), (-1, 1), (1, -1)):
        what = f"ConcurrencyLimiter({most}, {room})"
        expect_raises("ValueError", partial(submission.play, "ConcurrencyLimiter", [most, room], []), what)
    wrong = ["raised", "RuntimeError"]
    expect_played(
        submission,
        "ConcurrencyLimiter",
        [1, 0],
        [
            ([["r", "release"]], {"r": wrong} | state(0, 0)),
            ([["a", "acquire"]], {"a": OK} | state(1, 0)),
            ([["b", "acquire"]], {"b": ["raised", "Overloaded"]} | state(1, 0)),
            ([["A", "release"]], {"A": OK} | state(0, 0)),
            ([["r2", "release"]], {"r2": wrong} | state(0, 0)),
        ],
    )


# --------------------------------------------------------------------------------------------------------- chat_router


def test_chat_for_the_official_client(submission, rng):
    """The official client reads streams and whole answers, whatever the tokens are made of, and the right usage.

    Hint: json.dumps makes one line of any text. The last token counts, and may have a text.
    """
    teller = Teller(rng)
    with served(submission, "serve_chat", teller) as (service, engine), service.openai() as client:
        for number in range(12):
            stream, usage = number % 3 != 2, number % 3 == 1
            more: Any = {"stream_options": {"include_usage": usage}} if (stream and number > 2) or usage else {}
            most = rng.randint(1, 99)
            try:
                got = client.chat.completions.create(model=MODEL, messages=CHAT, stream=stream, max_tokens=most, **more)
                chunks = list(got) if stream else []
            except (openai.APIError, ValueError) as error:
                fail(f"The official client cannot read the answer (stream {stream}): {type(error).__name__}: {error}")
            call = asked(engine)
            expect_equal(call.args.get("max_tokens"), most, "max_tokens, as the engine was asked")
            expect_equal(call.args.get("messages"), CHAT, "The list of messages, as the engine was asked")
            told = teller.told.get(call.args["request_id"], [("", None)])
            counted = (teller.prompt, len(told), teller.prompt + len(told))
            with shaped("The answer"):
                read = official_whole if not stream else official_stream
                read(got if not stream else chunks, call, told, counted, usage)
        expect_equal(
            len({c.args["request_id"] for c in engine.calls("generate")}),
            12,
            "The number of different ids of 12 answers",
        )
        expect_equal(len(engine.calls("abort")), 0, "How often engine.abort was called for answers that ended")


def official_whole(got: Any, call: Call, told: list[Any], counted: tuple[int, int, int], usage: bool) -> None:
    """What the official client read must be what the engine told."""
    choice = got.choices[0]
    given = (choice.message.role, choice.message.content, choice.finish_reason)
    expect_equal(given, ("assistant", "".join(text for text, _ in told), told[-1][1]), "A whole answer")
    expect_equal(got.id, call.args["request_id"], "The id of a whole answer")
    given_usage = (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens)
    expect_equal(given_usage, counted, "The usage of a whole answer")


def official_stream(chunks: list[Any], call: Call, told: list[Any], counted: tuple[int, int, int], usage: bool) -> None:
    """The same for a stream, event by event."""
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices]
    texts = [part.delta.content for part in parts]
    expect_equal(texts[0], "", "The content of the first event, which carries the role,")
    expect_equal([part.delta.role for part in parts].count("assistant"), 1, "How many events have the role")
    expect_equal([text for text in texts if text], [text for text, _ in told if text], "The list of the tokens' texts")
    expect_equal([part.finish_reason for part in parts][-1], told[-1][1], "The finish reason of the last event")
    expect_equal({part.finish_reason for part in parts[:-1]}, {None}, "The set of finish reasons of all other events")
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    given_all = [(each.prompt_tokens, each.completion_tokens, each.total_tokens) for each in usages]
    expect_equal(given_all, [counted] if usage else [], "The list of usages in the stream")
    expect_equal({chunk.id for chunk in chunks}, {call.args["request_id"]}, "The set of the events' ids")


def test_chat_side_by_side(submission, rng):
    """Eight streams run side by side: a token of any of them is sent while the engine makes none for the others.

    Hint: Nothing may wait for another request, and nothing may collect.
    """
    with served(submission, "serve_chat") as (service, engine):
        streams = []
        for number in range(8):
            exchange = ask(service, text=f"{number}", stream=number != 3)
            streams.append((exchange, asked(engine, f"ask the engine for request {number + 1} of 8 at the same time")))
        turns = [number for number in range(8) if number != 3] * 4
        rng.shuffle(turns)
        for turn, number in enumerate(turns):
            exchange, call = streams[number]
            call.part(token(f" w{turn}!"))
            expect_sent(exchange, f" w{turn}!", f"a token of stream {number + 1} of 8")
        for exchange, call in streams:
            finish(call)
            exchange.body()
            expect_equal(exchange.status, 200, "The status of one of 8 answers")


def test_chat_engine_fails(submission, rng):
    """An engine that fails before the first token is a 500; after it, an event of the stream; nobody learns why.

    Hint: Wait for the first token before you return the response. Errors of the engine end the stream with [DONE].
    """
    with served(submission, "serve_chat", **{**HELD, "max_waiting": 0}) as (service, engine):
        for stream, after in ((True, 0), (True, 2), (False, 0), (False, 1), (True, 1)):
            secret = f"cuda:{rng.getrandbits(60):x}"
            exchange = ask(service, stream=stream)
            call = asked(engine, "ask the engine again after an answer that failed")
            for number in range(after):
                call.part(token(f" ok{number}"))
                if stream:
                    expect_sent(exchange, f" ok{number}", "a token before the failure")
            call.error("failed", secret)
            what = f"{'A stream' if stream else 'A whole answer'} whose engine fails after {after} tokens"
            if stream and after:
                found = events(exchange.body(), what)
                error = found[-2].get("error") if len(found) > 1 and type(found[-2]) is dict else None
                if found[-1] != "[DONE]" or type(error) is not dict or error.get("code") != "internal_error":
                    fail(f"{what} must end with an error event and [DONE].", value=found[-2:])
                with shaped("An event"):
                    reasons = [choice["finish_reason"] for event in found[:-2] for choice in event["choices"]]
                expect_equal(set(reasons), {None}, f"{what}: the set of finish reasons before the error")
            else:
                body = expect_status(exchange, 500, what)
                with shaped("The error"):
                    expect_equal(body["error"]["code"], "internal_error", f"{what}: the error's code")
            if secret.encode() in exchange.body():
                fail(f"{what} shows the text of the engine's error.", value=exchange.body().decode()[-300:])
        exchange = ask(service)
        finish(asked(engine, "ask the engine again after answers that failed"))
        expect_equal(events(exchange.body())[-1], "[DONE]", "The end of a stream after others have failed")
        expect_equal(len(engine.calls("abort")), 0, "How often engine.abort was called for what had failed")


def test_chat_leaves_at_any_time(submission):
    """A client may leave while it waits for its slot, for the first token, or later: the engine hears, the slot is free.

    Hint: Race everything that happens before the response begins against http.disconnect, the waiting for a slot too.
    """
    with served(submission, "serve_chat", **{**HELD, "max_waiting": 2}) as (service, engine):
        for stream in (True, False):
            kind = "a stream" if stream else "an answer as a whole"
            exchange = ask(service, stream=stream)
            call = asked(engine, f"ask the engine for {kind} (is the slot of an earlier one still taken?)")
            exchange.hang_up()
            aborted(engine, call, f"when the client leaves before the first token of {kind}")
            first = ask(service, stream=stream, text="first")
            call = asked(engine, f"ask the engine, after a client left before the first token of {kind}")
            leaver = ask(service, stream=stream, text="leaver")
            pause(service)
            leaver.hang_up()
            pause(service)
            last = ask(service, stream=stream, text="last")
            pause(service)
            finish(call)
            first.body()
            call = asked(engine, "ask the engine for the request that waited")
            texts = [message.get("content") for message in call.args.get("messages", [])]
            expect_equal(
                texts, ["last"], f"Whose request comes next, when the one before it left while it waited ({kind})"
            )
            call.part(token("one"))
            if stream:
                expect_sent(last, "one", "the first token")
            last.hang_up()
            aborted(engine, call, f"when the client leaves in the middle of {kind}")
        expect_equal(len(engine.calls("abort")), 4, "How often engine.abort was called, for four of six requests,")


def test_chat_slots(submission):
    """A slot is held until the answer has ended, whatever its end; who finds no room hears it at once.

    Hint: The endpoint returns long before a stream ends. And a generator that was never started has no finally to run.
    """
    with served(submission, "serve_chat", **HELD) as (service, engine):
        holder = ask(service, text="holder")
        call = asked(engine)
        call.part(token("one"))
        expect_sent(holder, "one", "the first token")
        waiter = ask(service, text="waiter")
        pause(service)
        for stream in (True, False):
            refused = ask(service, stream=stream, text="refused")
            body = expect_status(refused, 503, "A request for which there is neither a slot nor room to wait")
            with shaped("The error"):
                expect_equal(body["error"]["code"], "overloaded", "The error's code")
            if refused.header("Retry-After") != "1":
                fail("The header Retry-After is missing or wrong.", value=refused.header("Retry-After"), expected="1")
        expect_equal(len(engine.calls("generate")), 1, "How many requests are at the engine, with one slot,")
        finish(call)
        holder.body()
        finish(asked(engine, "ask the engine for the request that waited, once the one before it had ended"))
        waiter.body()
        for _ in range(8):  # the first token and the client's leaving come together
            exchange = ask(service, text="hasty")
            call = asked(engine, "ask the engine again after a client left just as its stream began")
            call.part(token("one"))
            exchange.hang_up()
            aborted(engine, call, "after a client left just as its stream began")
        exchange = ask(service, stream=False, text="normal")
        finish(asked(engine, "ask the engine again after clients left just as their streams began"))
        expect_status(exchange, 200, "An answer after all of that")


def test_chat_under_load(submission, rng):
    """With 14 clients at once and three slots, no slot stays free while anybody waits, and every answer is whole.

    Hint: Keep what belongs to one answer with that answer. Each end lets the next one begin, not the end of all.
    """
    slots, clients = 3, 14
    with served(submission, "serve_chat", limited=True, max_running=slots, max_waiting=clients) as (service, engine):
        sent: dict[str, tuple[Exchange, bool]] = {}
        for number in range(clients):  # whether or not anybody is answered
            text, stream = f"client {number} {rng.getrandbits(40):x}", number % 3 != 2
            more = {"stream_options": {"include_usage": True}} if stream else {}
            sent[text] = (ask(service, stream=stream, text=text, **more), stream)
        running: list[tuple[Call, list[str], list[str]]] = []
        begun = 0
        while begun < clients or running:
            if begun < clients and len(running) < slots:
                call = asked(
                    engine, f"ask the engine for a request that waits: only {len(running)} of {slots} slots are taken"
                )
                texts = [f" {rng.getrandbits(40):x}" for _ in range(rng.randint(8, 20))]
                running.append((call, texts, list(texts)))
                begun += 1
                if begun == slots:
                    pause(service)
                    asked_now = len(engine.calls("generate"))
                    expect_equal(
                        asked_now, slots, f"How many of {clients} requests are at the engine, with {slots} slots,"
                    )
                continue
            call, texts, left = talking = rng.choice(running)
            if left:
                call.part(token(left.pop(0)))
                continue
            running.remove(talking)
            finish(call, "")
            exchange, stream = sent.pop(str((contents(call) or [None])[-1]), (None, False))
            if exchange is None:
                fail(
                    "The engine was asked for what no client wants, or twice for one.", value=call.args.get("messages")
                )
            expect_answer(exchange, stream, call, texts)
        expect_equal(len(engine.calls("generate")), clients, f"How often the engine was asked, for {clients} clients,")
        expect_equal(len(engine.calls("abort")), 0, "How often engine.abort was called for answers that ended")


def expect_answer(exchange: Exchange, stream: bool, call: Call, texts: list[str]) -> None:
    """A whole answer or a stream with usage must be these texts, and an empty last one, of a prompt of ten tokens."""
    what = f"{'a stream' if stream else 'a whole answer'}, one of 14 at once"
    if not stream:
        usage = {"prompt_tokens": 10, "completion_tokens": len(texts) + 1, "total_tokens": len(texts) + 11}
        expect_whole(expect_status(exchange, 200, what), "".join(texts), "stop", usage, call)
        return
    chunks = [event for event in events(exchange.body(), what) if event != "[DONE]"]
    with shaped("An event"):
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        given = [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
        reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
        usages = [
            (chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"])
            for chunk in chunks
            if chunk.get("usage")
        ]
        ids = {chunk["id"] for chunk in chunks}
    expect_equal(given, texts, f"The list of texts in {what},")
    expect_equal(reasons, ["stop"], f"The list of finish reasons in {what},")
    expect_equal(usages, [(10, len(texts) + 1)], f"The list of usages (prompt_tokens, completion_tokens) in {what},")
    expect_equal(ids, {call.args["request_id"]}, f"The set of the events' ids in {what},")


# ----------------------------------------------------------------------------------------------------------- ws_router


def start(credits: int = 0, **more: Any) -> dict[str, Any]:
    """A start frame."""
    return {"type": "start", "messages": CHAT, "credits": credits, **more}


def test_ws_never_without_credit(submission):
    """Never are more tokens sent than credits were granted, however many the engine has ready.

    Hint: Count a credit down for each token; wait, and look again, while there is none.
    """
    with served(submission, "serve_ws") as (service, engine), talk(submission, service) as client:
        client.send(start(1))
        call = asked(engine)
        for number in range(6):
            call.part(token(f"w{number}"))
        client.expect({"type": "token", "text": "w0"}, "the only token that there is credit for")
        client.send({"type": "credit", "n": 1})
        client.send({"type": "credit", "n": 1})
        for number in (1, 2):
            client.expect({"type": "token", "text": f"w{number}"}, "a token after two credits were added")
        with talk(submission, service) as other:  # whatever was sent to the first client by then was sent before this
            other.send(start(9))
            second = asked(engine)
            second.part(token("x"))
            other.expect({"type": "token", "text": "x"}, "a token of another connection")
            finish(second, "")
            other.expect({"type": "done", "finish_reason": "stop"}, "the end of another connection")
        client.send({"type": "cancel"})
        client.expect({"type": "cancelled"}, "the answer to cancel, after three tokens for three credits")
        aborted(engine, call, "after a cancel frame")
        with talk(submission, service) as client:
            client.send(start(0, max_tokens=1))
            call = asked(engine)
            expect_equal(call.args.get("max_tokens"), 1, "max_tokens, as the engine was asked")
            finish(call, "all")
            client.send({"type": "credit", "n": 1})
            client.expect({"type": "token", "text": "all"}, "a last token with a text")
            client.expect({"type": "done", "finish_reason": "stop"}, "the end after it")
        with talk(submission, service) as client:
            client.send({"type": "start", "messages": CHAT})
            call = asked(engine)
            expect_equal(call.args.get("max_tokens"), 16, "max_tokens, as the engine was asked, where start has none")
            finish(call, "all")
            pause(service)
            client.send({"type": "cancel"})
            client.expect({"type": "cancelled"}, "the answer to cancel, when the last token waits for a credit")
        expect_equal(len(engine.calls("abort")), 1, "How often engine.abort was called, for one of four requests,")


def test_ws_cancel_and_leave(submission):
    """A client can cancel or leave while it waits for a token, for a credit or for a slot; then the slot is free.

    Hint: One task reads frames all the time, the other one sends. Whichever ends first ends the other.
    """
    with served(submission, "serve_ws", **HELD) as (service, engine):
        for how in ("cancel", "leave", "break"):
            for waits_for in ("a token", "a credit"):
                what = f"when the client waits for {waits_for} and does '{how}'"
                with talk(submission, service) as client:
                    client.send(start(1))
                    call = asked(engine, f"ask the engine, {what} (is an earlier slot still taken?)")
                    if waits_for == "a credit":
                        call.part(token("one"))
                        call.part(token("two"))
                        client.expect({"type": "token", "text": "one"}, "the first token")
                    if how == "cancel":
                        client.send({"type": "cancel"})
                        client.expect({"type": "cancelled"}, f"the answer to cancel, {what}")
                        expect_equal(client.read("a close frame"), ("closed", 1000), f"How the connection ends, {what}")
                    elif how == "break":
                        client._connection.socket.shutdown(socket.SHUT_RDWR)
                aborted(engine, call, what)
        with talk(submission, service) as holder:
            holder.send(start(1))
            call = asked(engine, "ask the engine after six others were cancelled or left")
            with talk(submission, service) as waiter:
                waiter.send(start(1))
                waiter.send({"type": "cancel"})
                waiter.expect({"type": "cancelled"}, "the answer to cancel while it waits for a slot")
            with talk(submission, service) as waiter:
                waiter.send(start(1, messages=[{"role": "user", "content": "waiter"}]))
                pause(service)
                finish(call, "")
                holder.expect({"type": "done", "finish_reason": "stop"}, "the end")
                call = asked(engine, "ask the engine for who waited")
                expect_equal(contents(call), ["waiter"], "Who has the slot next")
                finish(call, "")
                waiter.expect({"type": "done", "finish_reason": "stop"}, "the end of who waited")
        expect_equal(len(engine.calls("abort")), 6, "How often engine.abort was called, for six of eight requests,")


def test_ws_closes(submission, rng):
    """What is no frame closes with 1008, an overload with 1013, a failure with 1011, and the engine is not left alone.

    Hint: Validate each frame with a pydantic model. A binary frame is none.
    """
    with served(submission, "serve_ws", **{**HELD, "max_waiting": 0}) as (service, engine):
        for frame in (
            "no JSON", b"\x00\x01", "[]", "null", {"type": "begin"}, {"type": "credit", "n": 1}, {"type": "cancel"},
            {"type": "start"}, start(-1), start(1, max_tokens=0), start(1, messages=[]), b'{"type": "start"}',
        ):  # fmt: skip
            with talk(submission, service) as client:
                client.send(frame)
                expect_equal(client.read("a close frame"), ("closed", 1008), f"What follows a first frame {frame!r}")
        expect_equal(len(engine.calls("generate")), 0, "How often the engine was asked for wrong first frames")
        for frame in (
            {"type": "credit", "n": 0},
            {"type": "credit"},
            start(1),
            b"\x00",
            "{",
            {"type": "credit", "n": "x"},
        ):
            with talk(submission, service) as client:
                client.send(start(1))
                call = asked(engine, "ask the engine (is the slot of a connection that was closed still taken?)")
                client.send(frame)
                expect_equal(client.read("a close frame"), ("closed", 1008), f"What follows a later frame {frame!r}")
                aborted(engine, call, "after a wrong frame")
        secret = f"cuda:{rng.getrandbits(60):x}"
        with talk(submission, service) as client:
            client.send(start(5))
            call = asked(engine, "ask the engine after wrong frames")
            with talk(submission, service) as other:
                other.send(start(5))
                expect_equal(other.read("a close frame"), ("closed", 1013), "What follows a start without a free slot")
            call.part(token("one"))
            client.expect({"type": "token", "text": "one"}, "a token")
            call.error("failed", secret)
            error = client.read("an error frame")
            if type(error) is not dict or error.get("type") != "error" or type(error.get("message")) is not str:
                fail("A failure of the engine must be an error frame.", value=error)
            if secret in error["message"]:
                fail("The error frame shows the text of the engine's error.", value=error)
            expect_equal(client.read("a close frame"), ("closed", 1011), "How the connection ends after a failure")
        with talk(submission, service) as client:
            client.send(start(1))
            finish(asked(engine, "ask the engine after a failure"), "")
            client.expect({"type": "done", "finish_reason": "stop"}, "the end after all of that")
        expect_equal(len(engine.calls("abort")), 6, "How often engine.abort was called, for six wrong frames,")


# --------------------------------------------------------------------------------------------------------- jobs_router


def delete(service: Service, name: str) -> int:
    """The status of a DELETE."""
    return service.begin("DELETE", f"/v1/jobs/{name}").status


def test_job_deleted(submission):
    """A job that is deleted is gone; if it was running, the engine stops; others are left alone.

    Hint: Cancel the task, abort at the engine, and forget. A finished job is only forgotten.
    """
    with served(submission, "serve_jobs") as (service, engine):
        names = [begin_job(service, max_tokens=number + 1) for number in range(3)]
        calls = {call.args["request_id"]: call for call in (asked(engine) for _ in names)}
        expect_equal(set(calls), set(names), "The set of the engine's request_ids of three jobs")
        calls[names[0]].part(token("one"))
        watch(service, names[0], "text", "one")
        expect_equal(delete(service, names[0]), 204, "The status of a DELETE of a running job")
        aborted(engine, calls[names[0]], "after DELETE of a running job")
        expect_equal(look(service, names[0]), None, "A job that was deleted")
        expect_equal(delete(service, names[0]), 404, "The status of a second DELETE")
        finish(calls[names[1]], "all")
        done = {"id": names[1], "status": "done", "text": "all", "finish_reason": "stop"}
        expect_equal(watch(service, names[1], "status", "done"), done, "Another job, which has ended")
        expect_equal(delete(service, names[1]), 204, "The status of a DELETE of a job that has ended")
        expect_equal(look(service, names[1]), None, "A job that has ended and was deleted")
        expect_equal((look(service, names[2]) or {}).get("status"), "running", "The status of the third job")
        expect_equal(len(engine.calls("abort")), 1, "How often engine.abort was called")


def test_job_failed(submission, rng):
    """A job whose engine fails has failed, keeps what it had, and tells no secrets.

    Hint: Nobody awaits the task: what it raises must end in the job's status.
    """
    with served(submission, "serve_jobs") as (service, engine):
        for after in (0, 2):
            secret = f"cuda:{rng.getrandbits(60):x}"
            name = begin_job(service, stream=True)
            call = asked(engine)
            for number in range(after):
                call.part(token(f"w{number} "))
            call.error("failed", secret)
            job = watch(service, name, "status", "failed")
            text = "".join(f"w{number} " for number in range(after))
            failed = {"id": name, "status": "failed", "text": text, "finish_reason": None}
            expect_equal(job, failed, f"A job whose engine failed after {after} tokens")


def told(service: Service, engine: ScriptedEngine, call: Call, now: float, text: str) -> None:
    """Set the engine's clock, and wait until the service has read it: a token that came after it is there."""
    engine.say("clock", now)
    call.part(token(text[-1]))
    job = watch(service, call.args["request_id"], "text", text)
    if not job:
        fail("A running job is not there any more.")
    expect_equal(job.get("text"), text, "The text of a running job")


def test_job_forgotten(submission, rng):
    """A job that has ended is forgotten job_ttl_s seconds after its end, by the engine's clock; a running one never.

    Hint: Note engine.now() when a job ends, not when it begins.
    """
    life = float(rng.randint(50, 500))
    with served(submission, "serve_jobs", job_ttl_s=life) as (service, engine):
        long = begin_job(service)
        clock = asked(engine)
        short = [begin_job(service) for _ in range(2)]
        calls = [asked(engine) for _ in short]
        told(service, engine, clock, 1000.0, "a")
        finish(calls[0])
        watch(service, short[0], "status", "done")
        told(service, engine, clock, 1010.0, "ab")
        calls[1].error("failed", "x")
        watch(service, short[1], "status", "failed")
        for now, text, there in (
            (1000.0 + life, "abc", (True, True)),
            (1000.5 + life, "abcd", (False, True)),
            (1010.0 + life, "abcde", (False, True)),
            (1010.5 + life, "abcdef", (False, False)),
        ):
            told(service, engine, clock, now, text)
            given = tuple(look(service, name) is not None for name in short)
            what = f"Whether jobs that ended at 1000 and 1010 s are there at {now:g} s, with job_ttl_s={life:g}"
            expect_equal(given, there, what)
        expect_equal((look(service, long) or {}).get("status"), "running", "The status of a job that still runs")
        expect_equal(delete(service, short[0]), 404, "The status of a DELETE of a forgotten job")
