"""Services: the submission's app under real uvicorn in its worker, every fault of it told as the submission's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from autograder.checks import SubmissionFault, SubmissionRaised
from autograder.remote import RunningSubmission
from autograder.sandbox import LandlockSandbox, NamespaceSandbox, ProcessSandbox, SandboxUnavailable, best_sandbox
from autograder.served import Service, serve
from autograder.worker.wire import Deadline

APP = """
import asyncio, os
from contextlib import asynccontextmanager

from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse


def make_app(title, engine=None):
    @asynccontextmanager
    async def lifespan(app):
        if title == "broken":
            raise ValueError("no weights")
        yield
        print("shut down")

    app = FastAPI(lifespan=lifespan)

    def endless(chunk, pause_s):
        async def body():
            while True:
                yield chunk
                await asyncio.sleep(pause_s)
        return StreamingResponse(body())

    @app.get("/title")
    async def get_title():
        if engine is not None:
            engine.setblocking(True)
            engine.sendall(b"asked")
        return {"title": title}

    @app.get("/drip")
    async def drip():
        return endless(b"x", 0.1)

    @app.get("/flood")
    async def flood():
        return endless(b"x" * 100_000, 0)

    @app.get("/hang")
    async def hang():
        await asyncio.sleep(1000)

    @app.get("/die")
    async def die():
        os._exit(3)

    @app.get("/v1/models")
    async def models():
        return {"object": "list", "data": [{"id": title, "object": "model", "created": 1, "owned_by": "me"}]}

    @app.websocket("/echo")
    async def echo(ws: WebSocket):
        await ws.accept()
        await ws.send_text((await ws.receive_text()).upper())

    return app


def make_nothing():
    return None
"""
PRELOAD = ("fastapi", "uvicorn", "uvicorn.protocols.http.h11_impl")
CALL_S = 3.0


@pytest.fixture(scope="module", params=["best", "landlock", "process"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[NamespaceSandbox | LandlockSandbox | ProcessSandbox]:
    if request.param == "process":
        made: NamespaceSandbox | LandlockSandbox | ProcessSandbox = ProcessSandbox()
    elif request.param == "best":
        made = best_sandbox(PRELOAD, 0)
    else:
        try:
            made = LandlockSandbox(PRELOAD)
        except SandboxUnavailable as error:
            pytest.skip(f"level 1 or 2 cannot be had here: {error}")
    with made:
        yield made


@pytest.fixture
def submission(sandbox: NamespaceSandbox | LandlockSandbox | ProcessSandbox) -> Iterator[RunningSubmission]:
    running = RunningSubmission([("app", APP)], sandbox, call_s=CALL_S)
    yield running
    running.close()


@pytest.fixture
def service(submission: RunningSubmission) -> Iterator[Service]:
    with serve(submission, "make_app", {"title": "tiny"}) as made:
        yield made


def test_plain_official_and_websocket_clients_all_reach_it(service: Service) -> None:
    """httpx, the official OpenAI client, asyncio, a bare socket and a WebSocket speak to the same running app."""
    assert service.client().get("/title").json() == {"title": "tiny"}
    with service.openai() as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
    with service.websocket("/echo") as connection:
        connection.send("word")
        assert connection.recv(timeout=CALL_S) == "WORD"
    bare = service.connect()
    bare.sendall(b"GET /title HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n")
    assert bare.recv(15) == b"HTTP/1.1 200 OK"

    async def several() -> list[int]:
        async with service.async_client() as client:
            return [answer.status_code for answer in await asyncio.gather(*(client.get("/title") for _ in range(20)))]

    assert asyncio.run(several()) == [200] * 20


def test_an_error_status_is_the_official_clients_own_exception(service: Service) -> None:
    """What the service answers stays for the check to judge: the official client raises its typed exceptions."""
    with service.openai() as client, pytest.raises(openai.NotFoundError):
        client.models.retrieve("large")


def test_a_socket_that_was_passed_joins_the_app_and_the_judge(submission: RunningSubmission) -> None:
    """The app talks to an engine of the judge's over a socket that it was given as an argument."""
    ours, theirs = socket.socketpair()
    with ours, serve(submission, "make_app", {"title": "tiny"}, sockets={"engine": theirs}) as service:
        theirs.close()
        service.client().get("/title")
        ours.settimeout(CALL_S)
        assert ours.recv(100) == b"asked"


@pytest.mark.parametrize(
    ("path", "says", "timeout"),
    [
        ("/hang", "did not answer a request in time", True),
        ("/drip", "did not end an answer in time", True),
        ("/flood", "more than 8,388,608 bytes", False),
        ("/die", "exit code 3", False),
    ],
)
def test_what_a_service_does_to_its_client_is_its_own_fault(
    service: Service, path: str, says: str, timeout: bool
) -> None:
    """Hanging, dripping, endless and dying services end in time as faults of the submission, with the reason."""
    began = time.monotonic()
    with pytest.raises(SubmissionFault, match=says) as caught:
        service.client().get(path)
    assert caught.value.timeout is timeout
    assert time.monotonic() - began < CALL_S + 10


def test_the_official_client_passes_such_faults_on(service: Service) -> None:
    """A fault met inside the official client is not hidden in its connection error."""
    with pytest.raises(SubmissionFault, match="exit code 3"), service.openai() as client:
        client.get("/../die", cast_to=httpx.Response)


def test_an_async_client_tells_the_same_faults(service: Service) -> None:
    """The asyncio client has the same limits of size and time."""

    async def flood() -> None:
        async with service.async_client(max_bytes=1000) as client:
            await client.get("/flood")

    with pytest.raises(SubmissionFault, match="more than 1,000 bytes"):
        asyncio.run(flood())


def test_an_app_that_does_not_start_says_where(submission: RunningSubmission) -> None:
    """A lifespan that raises is the submission's error, told with its line and without our own paths."""
    with (
        pytest.raises(SubmissionRaised, match=r"ValueError: no weights \(cell app, line \d+\)") as caught,
        serve(submission, "make_app", {"title": "broken"}),
    ):
        pass
    assert "site-packages" not in caught.value.text


def test_what_is_no_app_is_told(submission: RunningSubmission) -> None:
    """A factory that gives None is the submission's error."""
    with pytest.raises(SubmissionRaised), serve(submission, "make_nothing"):
        pass


def test_draining_runs_the_apps_own_shutdown(submission: RunningSubmission, service: Service) -> None:
    """A service that is asked to stop runs the rest of its lifespan, ends, and answers no more."""
    service.client().get("/title")
    assert not service.ended(0)
    service.drain()
    assert service.ended(CALL_S)
    assert "shut down" in submission.printed()
    with pytest.raises(SubmissionFault):
        service.connect()


def test_each_service_has_a_process_of_its_own(submission: RunningSubmission) -> None:
    """After a service has died the next one starts afresh."""
    for _ in range(2):
        with serve(submission, "make_app", {"title": "tiny"}) as service:
            with pytest.raises(SubmissionFault):
                service.client().get("/die")
            submission.begin_check(Deadline(None))


def test_systems_without_passed_sockets_are_told_so(
    submission: RunningSubmission, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sockets cannot be passed the grade is withheld with a remedy, not failed."""
    monkeypatch.delattr(socket, "send_fds")
    with pytest.raises(SandboxUnavailable, match="WSL"), serve(submission, "make_app"):
        pass
