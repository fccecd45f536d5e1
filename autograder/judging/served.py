"""The judge's view of a service: the submission's ASGI app under uvicorn in its worker, spoken to over a Unix socket.

    with serve(submission, "make_service", {"model": "tiny"}, sockets={"engine": theirs}) as service:
        answer = service.client().get("/health")          # httpx
        with service.openai() as client:                  # the official client
            client.models.list()
        exchange = service.begin("POST", "/v1/completions", json={...})   # in flight, `autograder.judging.exchange`

Covered:
- whose fault: a service that dies, hangs, drips or never ends is a `SubmissionFault`, whatever client met it
- size and time: no answer may be longer, or take longer, than said; redirects are not followed
- place: the socket lies in a folder of the judge's; nothing but the judge can connect
Not covered:
- what an answer says: every byte is the submission's word, the check's to compare
- systems that cannot pass sockets (Windows): `SandboxUnavailable`
"""

from __future__ import annotations

import contextlib
import json as jsons
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from autograder import temporary
from autograder.checks import SubmissionFault
from autograder.judging.exchange import Exchange
from autograder.judging.remote import RunningSubmission
from autograder.sandboxing.sandbox import SandboxUnavailable

if TYPE_CHECKING:
    import openai
    from websockets.sync.client import ClientConnection

    from gpu_env.load import Target

__all__ = ["MAX_ANSWER_BYTES", "Service", "serve"]

MAX_ANSWER_BYTES = 8 << 20
"""Of one answer's body."""
HOST = "http://service"


@contextlib.contextmanager
def serve(
    submission: RunningSubmission,
    factory: str,
    kwargs: Mapping[str, Any] | None = None,
    *,
    sockets: Mapping[str, socket.socket] | None = None,
) -> Iterator[Service]:
    """Serve the app that the submission's function `factory` makes, until the block ends.

    It is called in the worker with `kwargs`, and with `sockets` (connected ones, by argument name; this process should
    close its copies afterwards). The worker ends with the block, so each service has a fresh process. Raises
    `SubmissionRaised` if the app cannot be made or started.
    """
    if not hasattr(socket, "send_fds"):
        raise SandboxUnavailable("Services are graded where sockets can be passed between processes. Use Linux or WSL.")
    names = list(sockets or {})
    with (
        temporary.folder("autograder-service-") as folder,
        contextlib.ExitStack() as s,
    ):
        directory = os.open(folder, os.O_RDONLY)
        s.callback(os.close, directory)
        # by way of the open folder: a socket's path may have 107 bytes only
        short = f"/proc/self/fd/{directory}/s" if Path(f"/proc/self/fd/{directory}").exists() else f"{folder}/s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(short)
            listener.listen(128)
            passed = [listener, *((sockets or {})[name] for name in names)]
            submission.exchange(["serve", factory, dict(kwargs or {}), names], passed)
        service = Service(submission, short)
        s.callback(submission.fresh)
        s.callback(service.close)
        try:
            yield service
        except Exception:
            submission.ask_log()  # the worker ends with the block, and with it what could explain a failure
            raise


class Service:
    """A running service. Clients made here are closed with it."""

    def __init__(self, submission: RunningSubmission, path: str) -> None:
        self._submission = submission
        self._path = path
        self._open = contextlib.ExitStack()

    def client(self, max_bytes: int = MAX_ANSWER_BYTES) -> httpx.Client:
        """An httpx client for the service; paths are relative to it. One request may take as long as one call."""
        made = httpx.Client(transport=_Guarded(self, max_bytes), base_url=HOST, timeout=None)  # noqa: S113 - the transport sets it
        return self._open.enter_context(made)

    def async_client(self, max_bytes: int = MAX_ANSWER_BYTES) -> httpx.AsyncClient:
        """The same for asyncio; close it with `async with`."""
        return httpx.AsyncClient(transport=_AsyncGuarded(self, max_bytes), base_url=HOST, timeout=None)  # noqa: S113

    @contextlib.contextmanager
    def openai(self, api_key: str = "none") -> Iterator[openai.OpenAI]:
        """The official OpenAI client, without retries. What its transport meets is raised as it is."""
        import openai

        http: Any = self.client()  # it takes httpx's clients as well as those of its own httpx2
        client = openai.OpenAI(base_url=f"{HOST}/v1", api_key=api_key, max_retries=0, http_client=http)
        try:
            yield client
        except openai.APIConnectionError as error:
            raise error.__cause__ or error from None

    def begin(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Exchange:
        """Send a request and wait for nothing. `json` goes out as JSON, else `content` as it is."""
        if json is not None:
            content = jsons.dumps(json).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        left_s = self._submission.time_left()
        return Exchange(
            self.connect(), method, path, headers or {}, content, fault=self.fault, left_s=left_s, max_bytes=max_bytes
        )

    def target(self, path: str = "/v1/completions", headers: Mapping[str, str] | None = None) -> Target:
        """Where `gpu_env.load` sends its requests. Of use in this process only, while the service runs."""
        from gpu_env.load import Target

        return Target(self._path, path, headers or {})

    def connect(self) -> socket.socket:
        """A connected socket, for what no client would send. Reading waits as long as one call may take."""
        sock = self._open.enter_context(socket.socket(socket.AF_UNIX))
        sock.settimeout(self._submission.time_left())
        try:
            sock.connect(self._path)
        except OSError as error:
            raise self.fault(error) from None
        return sock

    @contextlib.contextmanager
    def websocket(self, path: str, **options: Any) -> Iterator[ClientConnection]:
        """A WebSocket connection of the library `websockets`. `TimeoutError` is the check's own to expect."""
        from websockets.exceptions import InvalidHandshake
        from websockets.sync.client import unix_connect

        left = self._submission.time_left()
        opened = unix_connect(
            self._path, f"ws://service{path}", open_timeout=left, close_timeout=1, compression=None, **options
        )
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(opened)
            except (OSError, EOFError, InvalidHandshake) as error:
                raise self.fault(error) from None
            yield connection

    def drain(self) -> None:
        """Ask the server to stop, as SIGTERM would."""
        self._submission.exchange(["drain"])

    def ended(self, wait_s: float) -> bool:
        """Whether the server has stopped; waits up to `wait_s` seconds for that, or nearly as long as a call may take."""
        return self._submission.exchange(["ended", min(wait_s, 0.8 * self._submission.time_left())]) is True

    def close(self) -> None:
        """Close the clients made here."""
        self._open.close()

    def fault(self, error: BaseException) -> SubmissionFault:
        """What a failed exchange says about the submission."""
        timeout = isinstance(error, TimeoutError | httpx.TimeoutException)
        if timeout:
            return SubmissionFault("did not answer a request in time", timeout=True)
        reason = self._submission.end_reason(0.3)  # the news of a process's end comes after its sockets'
        said = f" ({error})" if str(error) else ""
        return SubmissionFault(reason or f"broke off an exchange: {type(error).__name__}{said}")


class _Limit:
    """Size and time of one answer."""

    def __init__(self, service: Service, max_bytes: int) -> None:
        self._service = service
        self._left = self._most = max_bytes
        self._end = time.monotonic() + service._submission.time_left()

    def timeouts(self) -> dict[str, float]:
        """For httpx: every single wait ends with the whole."""
        left = max(0.001, self._end - time.monotonic())
        return {"connect": left, "read": left, "write": left, "pool": left}

    def take(self, chunk: bytes) -> bytes:
        self._left -= len(chunk)
        if self._left < 0:
            raise SubmissionFault(f"sent an answer of more than {self._most:,} bytes")
        if time.monotonic() > self._end:
            raise SubmissionFault("did not end an answer in time", timeout=True)
        return chunk


class _Guarded(httpx.BaseTransport):
    def __init__(self, service: Service, max_bytes: int) -> None:
        self._service = service
        self._max_bytes = max_bytes
        self._inner = httpx.HTTPTransport(uds=service._path, verify=False)  # no TLS; loading roots would take 20 ms

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        limit = _Limit(self._service, self._max_bytes)
        request.extensions["timeout"] = limit.timeouts()
        try:
            response = self._inner.handle_request(request)
        except httpx.TransportError as error:
            raise self._service.fault(error) from None
        response.stream = _Stream(self._service, response.stream, limit)
        return response

    def close(self) -> None:
        self._inner.close()


class _Stream(httpx.SyncByteStream):
    def __init__(self, service: Service, inner: Any, limit: _Limit) -> None:
        self._service, self._inner, self._limit = service, inner, limit

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._inner:
                yield self._limit.take(chunk)
        except httpx.TransportError as error:
            raise self._service.fault(error) from None

    def close(self) -> None:
        self._inner.close()


class _AsyncGuarded(httpx.AsyncBaseTransport):
    def __init__(self, service: Service, max_bytes: int) -> None:
        self._service = service
        self._max_bytes = max_bytes
        limits = httpx.Limits(max_connections=None)
        self._inner = httpx.AsyncHTTPTransport(uds=service._path, limits=limits, verify=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        limit = _Limit(self._service, self._max_bytes)
        request.extensions["timeout"] = limit.timeouts()
        try:
            response = await self._inner.handle_async_request(request)
        except httpx.TransportError as error:
            raise self._service.fault(error) from None
        response.stream = _AsyncStream(self._service, response.stream, limit)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _AsyncStream(httpx.AsyncByteStream):
    def __init__(self, service: Service, inner: Any, limit: _Limit) -> None:
        self._service, self._inner, self._limit = service, inner, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                yield self._limit.take(chunk)
        except httpx.TransportError as error:
            raise self._service.fault(error) from None

    async def aclose(self) -> None:
        await self._inner.aclose()
