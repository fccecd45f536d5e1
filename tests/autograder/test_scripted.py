"""Engines of the judge's, and requests in flight: who waits for whom is decided by what happened, by no clock."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from autograder.checks import CheckFailed, SubmissionFault
from autograder.judging.remote import RunningSubmission
from autograder.judging.scripted import Call, ScriptedEngine
from autograder.judging.served import Service, serve
from autograder.sandboxing.sandbox import ProcessSandbox
from gpu_env.load import Request, run_load

APP = """
import asyncio, json, os

from fastapi import FastAPI
from fastapi.responses import StreamingResponse


def make_app(engine=None):
    app = FastAPI()

    async def ask(op, **args):
        reader, writer = await asyncio.open_connection(sock=engine)
        writer.write(json.dumps({"id": 1, "op": op, "args": args}).encode() + b"\\n")
        return reader, writer

    @app.get("/stream")
    async def stream():
        reader, writer = await ask("generate", n=2)
        async def body(kept=writer):
            async for line in reader:
                message = json.loads(line)
                if message["id"] == 0:
                    yield message["event"].encode()
                    continue
                yield json.dumps(message["value"]).encode() + b"\\n"
                if message["event"] != "part":
                    return
        return StreamingResponse(body())

    @app.get("/garbage")
    async def garbage():
        _, writer = await asyncio.open_connection(sock=engine)
        writer.write(b"[1, 2]\\n")
        await asyncio.sleep(100)

    @app.get("/flood")
    async def flood():
        async def body():
            while True:
                yield b"x" * 100_000
        return StreamingResponse(body())

    @app.get("/drip")
    async def drip():
        async def body():
            while True:
                yield b"x"
                await asyncio.sleep(0.1)
        return StreamingResponse(body())

    @app.get("/die")
    async def die():
        os._exit(4)

    @app.post("/v1/completions")
    async def complete():
        return StreamingResponse(
            iter(['data: {"choices": [{"text": "a b c"}]}\\n\\n', "data: [DONE]\\n\\n"]), media_type="text/event-stream"
        )

    return app
"""
CALL_S = 3.0


@pytest.fixture
def submission() -> Iterator[RunningSubmission]:
    with ProcessSandbox() as sandbox:
        running = RunningSubmission([("app", APP)], sandbox, call_s=CALL_S)
        yield running
        running.close()


@pytest.fixture
def engine(submission: RunningSubmission) -> Iterator[ScriptedEngine]:
    with ScriptedEngine(submission) as made:
        yield made


@pytest.fixture
def service(submission: RunningSubmission, engine: ScriptedEngine) -> Iterator[Service]:
    with serve(submission, "make_app", sockets={"engine": engine.theirs}) as made:
        yield made


def test_a_token_is_read_before_the_next_one_exists(service: Service, engine: ScriptedEngine) -> None:
    """The check holds each part of the answer back until the one before it has reached the client."""
    exchange = service.begin("GET", "/stream")
    call = engine.next("generate")
    assert call.args == {"n": 2}
    for number in range(5):
        call.part(number)
        assert exchange.until(f"{number}\n".encode()).endswith(f"{number}\n".encode())
        assert not exchange.ended
    engine.say("clock", 5)
    call.result("end")
    assert b"clock" in exchange.until(b"clock")
    assert exchange.body().endswith(b'"end"\n')
    assert (exchange.status, exchange.ended, exchange.header("content-length")) == (200, True, None)


def test_what_is_never_asked_is_a_fault_in_time(engine: ScriptedEngine) -> None:
    """Waiting for a request that never comes ends as the submission's time-out."""
    began = time.monotonic()
    with pytest.raises(
        SubmissionFault, match="did not do in time what it should: ask the engine to generate"
    ) as caught:
        engine.next("generate")
    assert caught.value.timeout
    assert time.monotonic() - began < CALL_S + 5


def test_a_service_that_dies_is_told_at_once(service: Service, engine: ScriptedEngine) -> None:
    """Waiting for the engine of a dead service does not last until the limit."""
    service.begin("GET", "/die")
    with pytest.raises(SubmissionFault, match="exit code 4"):
        engine.next("generate")


def test_what_is_no_request_is_the_submissions_mistake(service: Service, engine: ScriptedEngine) -> None:
    """A line that is no request fails the check, with the line."""
    service.begin("GET", "/garbage")
    with pytest.raises(CheckFailed, match=r"\[1, 2\]"):
        engine.next("generate")
    with pytest.raises(CheckFailed):
        engine.calls()
    engine._nonsense = ""


def test_a_mistake_of_the_checks_own_is_not_the_submissions(submission: RunningSubmission) -> None:
    """What the check's own answering function raises is raised where the check waits."""

    def broken(call: Call) -> None:
        raise ZeroDivisionError

    with (
        ScriptedEngine(submission, broken) as engine,
        serve(submission, "make_app", sockets={"engine": engine.theirs}) as service,
    ):
        service.begin("GET", "/stream")
        with pytest.raises(ZeroDivisionError):
            engine.next("generate")
        engine._mistake = None


@pytest.mark.parametrize(("path", "says"), [("/flood", "more than 1,000,000 bytes"), ("/drip", "in time")])
def test_endless_answers_end(service: Service, path: str, says: str) -> None:
    """An answer that never ends is the submission's fault, by size or by time."""
    with pytest.raises(SubmissionFault, match=says):
        service.begin("GET", path, max_bytes=1_000_000).body()


def test_what_is_no_http_is_a_fault(submission: RunningSubmission) -> None:
    """Bytes that are no HTTP do not crash the check."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        from autograder.judging.exchange import Exchange

        theirs.sendall(b"hello\r\n\r\n")
        exchange = Exchange(
            ours, "GET", "/", {}, b"", fault=lambda error: SubmissionFault(str(error)), left_s=5, max_bytes=100
        )
        with pytest.raises(SubmissionFault, match="illegal status line"):
            _ = exchange.status


def test_the_load_generator_finds_the_service(service: Service) -> None:
    """`Service.target` is where `gpu_env.load` sends its requests."""
    requests = [Request({"prompt": f"{i}", "stream": True}) for i in range(4)]
    result = run_load(service.target(), requests, [0.0] * 4, count_tokens=lambda text: len(text.split()))
    assert [(record.fault, record.tokens) for record in result.records] == [(None, 3)] * 4
