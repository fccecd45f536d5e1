"""Servers of the judge's that a submission's client reaches: real sockets, a real worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from autograder.checks import SubmissionRaised
from autograder.judging.remote import RunningSubmission
from autograder.judging.upstream import Reply, Request, reachable
from autograder.sandboxing.sandbox import ProcessSandbox, Sandbox, SandboxUnavailable, best_sandbox

CLIENT = """
import asyncio
import socket
import urllib.request

import httpx


def fetch(url):
    return urllib.request.urlopen(url + "/hello", timeout=20).read().decode()


def many(url, number):
    async def run():
        async with httpx.AsyncClient(base_url=url) as client:
            answers = await asyncio.gather(*(client.post("/x", json=i) for i in range(number)))
        return [answer.json() for answer in answers]
    return asyncio.run(run())


def leave(url):
    async def run():
        async with httpx.AsyncClient(base_url=url) as client:
            async with client.stream("GET", "/endless") as answer:
                async for chunk in answer.aiter_raw():
                    return chunk.decode()
    return asyncio.run(run())


def nonsense(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(bytes(range(256)) * 10)
        sock.shutdown(socket.SHUT_WR)
        return len(sock.recv(100))
"""


@pytest.fixture(params=["best", "process"])
def submission(request: pytest.FixtureRequest) -> Iterator[RunningSubmission]:
    """A client in a worker that has a network of its own, and in a plain process."""
    try:
        sandbox: Sandbox = best_sandbox((), 3, loopback=True) if request.param == "best" else ProcessSandbox()
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    running = RunningSubmission([("cell", CLIENT)], sandbox, call_s=60)
    yield running
    running.close()
    sandbox.close()


def test_a_client_needs_no_more_than_an_address(submission: RunningSubmission) -> None:
    """What the worker asks for is seen here, and the answer arrives there."""

    async def answer(request: Request, reply: Reply) -> None:
        await reply.start(200, "text/plain")
        for byte in b"hello":
            await reply.send(bytes([byte]))
        await reply.end()

    with reachable(submission, answer) as server:
        assert submission.fetch(server.url) == "hello"
        assert [(each.method, each.path) for each in server.requests] == [("GET", "/hello")]


def test_answers_may_wait_for_other_requests(submission: RunningSubmission) -> None:
    """All of sixty requests arrive before the first one is answered: nothing on the way is limited to fewer."""
    seen: list[int] = []
    together = asyncio.Event()

    async def answer(request: Request, reply: Reply) -> None:
        seen.append(request.json())
        if len(seen) == 60:
            together.set()
        await asyncio.wait_for(together.wait(), 30)
        await reply.whole(200, request.json())

    with reachable(submission, answer) as server:
        assert submission.many(server.url, 60) == list(range(60))
    assert sorted(seen) == list(range(60))


def test_a_client_that_leaves_is_noticed(submission: RunningSubmission) -> None:
    """An answer without an end learns that nobody reads it any more."""
    left = threading.Event()

    async def answer(request: Request, reply: Reply) -> None:
        await reply.start(200, "text/plain")
        await reply.send(b"first")
        await asyncio.wait_for(reply.gone.wait(), 30)
        left.set()

    with reachable(submission, answer) as server:
        assert submission.leave(server.url) == "first"
        assert left.wait(30)


def test_nonsense_ends_its_own_connection_only(submission: RunningSubmission) -> None:
    """Bytes that are no HTTP are answered by the end of the line, and by nothing else."""

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(200, "hello")

    with reachable(submission, answer) as server:
        assert submission.nonsense(server.url) == 0
        assert submission.fetch(server.url) == '"hello"'
        assert len(server.requests) == 1


def test_a_mistake_of_the_check_is_raised(submission: RunningSubmission) -> None:
    """What the check's own function raises is our fault, and is told as such."""

    async def answer(request: Request, reply: Reply) -> None:
        raise KeyError("ours")

    def meet() -> None:
        with reachable(submission, answer) as server, pytest.raises(SubmissionRaised):
            submission.fetch(server.url)

    with pytest.raises(RuntimeError, match=r"server of the check's failed.*ours"):
        meet()
