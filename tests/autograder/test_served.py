"""Services: the submission's app under real uvicorn in its worker, every fault of it told as the submission's."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised
from autograder.judging.remote import RunningSubmission
from autograder.judging.served import Service, serve
from autograder.sandboxing.sandbox import (
    LandlockSandbox,
    NamespaceSandbox,
    ProcessSandbox,
    SandboxUnavailable,
    best_sandbox,
)
from autograder.worker.wire import Deadline

APP = """
import asyncio, os, time
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

    @app.get("/bug")
    async def bug():
        print("on my way")
        return undefined_name

    @app.get("/late")
    async def late():
        async def body():
            yield b"x"
            raise KeyError("y" * 5000)
        return StreamingResponse(body())

    kept = []

    @app.get("/task")
    async def task():
        async def work():
            raise OSError("in the background")
        kept.append(asyncio.create_task(work()))

    @app.get("/block")
    async def block():
        time.sleep(1000)

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


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/bug", "NameError: name 'undefined_name' is not defined"),
        ("/late", "KeyError: 'yyy"),
        ("/task", "OSError: in the background"),
        ("/title", None),
        ("/die", None),
        ("/block", None),
    ],
)
def test_what_the_server_logged_goes_with_a_check_that_fails(
    submission: RunningSubmission, path: str, says: str | None
) -> None:
    """The worker ends with the block; its last exception is kept with its line, and one that cannot tell costs nothing."""

    def check() -> None:
        with serve(submission, "make_app", {"title": "tiny"}) as service:
            service.client().get(path)
            raise CheckFailed("That was wrong.")

    with pytest.raises((CheckFailed, SubmissionFault)):
        check()
    if says is None:
        assert submission.logged is None
    else:
        assert submission.logged
        assert str(submission.logged).startswith(says)
        assert len(str(submission.logged)) < 2100
        assert submission.logged.lines[-1][0] == "app"
    if path == "/bug":
        assert submission.printed() == "on my way"
    submission.begin_check(Deadline(60))
    assert submission.logged is None


def test_what_a_check_leaves_without_failing_is_not_asked_for(submission: RunningSubmission) -> None:
    """An exception that a check expects is nobody's news."""
    with serve(submission, "make_app", {"title": "tiny"}) as service:
        assert service.client().get("/bug").status_code == 500
    assert submission.logged is None


JUDGED = {
    "test_public.py": """
from autograder.checks import expect_equal
from autograder.judging.served import serve


def test_answers(submission):
    '''It answers.

    Hint: Return something.
    '''
    with serve(submission, "make_app") as service:
        expect_equal(service.client().get("/").status_code, 200, "The status")
""",
    "judge.py": """
import json, os, sys
from pathlib import Path
from autograder.judging.judge import judge
from autograder.manifest import Manifest
from autograder.sandboxing.sandbox import ProcessSandbox
from autograder.spec import Assignment, Task
from autograder.submission import Submission

assignment = Assignment("web", "Web", (Task("make_app", "App", 1, {"test_answers": 1}),), call_s=3.0)
manifest = Manifest(
    assignment="web", title="Web", release="1", preload=(), call_s=3, check_s=60, cpu_s=300,
    memory_bytes=2 << 30, cells=("make_app",), given={}, stubs={}, tasks={},
)
with ProcessSandbox() as sandbox:
    for source in json.load(sys.stdin):
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            submission = Submission("web.py", {"make_app": source})
            (found,) = judge(assignment, [Path(sys.argv[1])], submission, manifest, sandbox, seed=7)
            print(json.dumps([found.outcome, found.message, found.hint]), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
""",
}
WEB = """
import os
from fastapi import FastAPI

def make_app():
    app = FastAPI()
    @app.get("/")
    async def root():
        BODY
    return app
"""


def test_findings_say_what_the_server_logged_and_keep_their_hints(tmp_path: Path) -> None:
    """A bug in a handler comes with its exception and line; broken exchanges have the check's hint as wrong answers have."""
    for name, text in JUDGED.items():
        (tmp_path / name).write_text(text)
    variants = ["return oops", "os._exit(3)", "return 1"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "judge.py"), str(tmp_path / "test_public.py")],
        input=json.dumps([WEB.replace("BODY", body) for body in variants]),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    bug, dies, good = (json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    logged = "Its server logged: NameError: name 'oops' is not defined (cell make_app, line 9: return oops)"
    assert bug == ["FAILED", f"The status: wrong value. {logged}", "Return something."]
    assert dies[0] == "FAILED"
    assert "exit code 3" in dies[1]
    assert dies[2] == "Return something."
    assert good == ["PASSED", "", ""]


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
