"""Load for servers, and what their users would have felt: requests at scheduled times, streamed answers, records.

    at_s = schedule(100, rate_per_s=5, seed=seed)
    result = run_load(Target("/run/server.sock"), requests, at_s, count_tokens=count, warmup=10)
    verdict = judge_slo(result, Slo(ttft_s=0.5, tpot_s=0.05), audit=audit(result, right, rng))      # gpu_env.slo

The loop is open: a request goes out at its time whether or not earlier ones were answered, and its latencies count from
the scheduled time, so a server that stalls cannot lower its own load (MLPerf inference rules, scenario Server). TTFT
ends with the first non-empty piece of text, and tokens are counted afterwards in the text by the caller's tokenizer:
neither chunks nor the server's own figures count for anything. `gpu_env.sse` reads the answers.

Why asyncio protocols and h11 instead of httpx: bytes are stamped in the callback that received them, before anything
else runs, and cost half the processor time (at 40 requests/s of 32 tokens on two busy cores, AMD EPYC: 2.1 against 4.4 ms
a request, and a median TTFT 6 % instead of 27 % above the server's own; `tests/benchmarks/load_generators.py`).

Not covered: starting servers, keeping cores free for this client (a client that is late says so: `client_lag_p99_s`),
TLS, DNS at run time (a host is looked up once), and whether the server has reached a steady state.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from gpu_env.sse import Answer, BadAnswer, Fault, Limits

__all__ = ["Fault", "Limits", "LoadResult", "Record", "Request", "Target", "percentile", "run_load", "schedule"]

AHEAD_S = 0.05
"""How long before its time a request has its connection made, as clients have that keep theirs."""
LEAD_S = 0.1
"""From the beginning of a run to time 0 of its schedule."""
TICK_S = 0.001
"""Waits of epoll are rounded up to this."""
PULSE_S = 0.010
"""How often the client measures how late it is itself."""


@dataclass(frozen=True)
class Target:
    """Where requests go: a Unix socket's path, or (host, port); and how."""

    address: str | tuple[str, int]
    path: str = "/v1/completions"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request and the tokens that its answer must have.

    Re-tokenised text can have a few tokens more or less than were generated: leave 10 % to either side.
    """

    body: Mapping[str, Any]
    """JSON; `"stream": true` is the caller's to say."""
    min_tokens: int = 2
    """TPOT has no meaning below 2."""
    max_tokens: int | None = None
    repeat: bool = False
    """Its prompt was sent before in this run: for `gpu_env.slo.repeat_test` only."""


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one request. Times in seconds since time 0 of the schedule; None: it never came to that."""

    index: int
    request: Request
    warmup: bool
    scheduled_s: float
    started_s: float
    """When the client turned to it; later than `scheduled_s` only through the client's own fault."""
    sent_s: float | None
    """When the request was written: at `started_s`, unless the server let the connection wait."""
    chunk_times_s: tuple[float, ...]
    """When each non-empty piece of text came."""
    ended_s: float
    text: str
    tokens: int
    """In `text`, by the caller's tokenizer; 0 where the exchange failed."""
    fault: Fault | None
    detail: str

    @property
    def lag_s(self) -> float:
        """How late the client was."""
        return self.started_s - self.scheduled_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from the scheduled time."""
        return self.chunk_times_s[0] - self.scheduled_s if self.chunk_times_s else None

    @property
    def e2e_s(self) -> float | None:
        """From the scheduled time to the last token."""
        return self.chunk_times_s[-1] - self.scheduled_s if self.chunk_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token: (last - first) / (tokens - 1); None below two tokens."""
        if self.tokens < 2:
            return None
        return (self.chunk_times_s[-1] - self.chunk_times_s[0]) / (self.tokens - 1)


@dataclass(frozen=True)
class LoadResult:
    """All records of a run, in the order of the schedule."""

    records: tuple[Record, ...]
    start_s: float
    """Time 0 of the schedule, by `time.monotonic`."""
    client_lag_p99_s: float
    """Of every request's lag and of a pulse every 10 ms, which also sees what delays the reading of answers."""

    @property
    def counted(self) -> tuple[Record, ...]:
        """Records that objectives are about: neither warm-up nor repeats."""
        return tuple(record for record in self.records if not record.warmup and not record.request.repeat)

    @property
    def duration_s(self) -> float:
        """From the first counted request's scheduled time to the end of the last one; 0 if nobody was there."""
        return max(record.ended_s for record in self.counted) - min(record.scheduled_s for record in self.counted)

    def per_s(self, count: int) -> float:
        """So many things in the duration of the run, per second."""
        return count / self.duration_s if count else 0.0

    def summary(self) -> dict[str, Any]:
        """Figures for people. Latencies: of requests without fault, by `percentile`; ITL is informative only."""
        good = [record for record in self.counted if record.fault is None]
        gaps = [b - a for record in good for a, b in zip(record.chunk_times_s, record.chunk_times_s[1:], strict=False)]
        return {
            "requests": len(self.counted),
            "faults": {f.value: n for f in Fault if (n := sum(record.fault is f for record in self.counted))},
            "ttft_s": _spread([record.ttft_s for record in good if record.ttft_s is not None]),
            "tpot_s": _spread([record.tpot_s for record in good if record.tpot_s is not None]),
            "e2e_s": _spread([record.e2e_s for record in good if record.e2e_s is not None]),
            "itl_s": _spread(gaps),
            "requests_per_s": self.per_s(len(good)),
            "tokens_per_s": self.per_s(sum(record.tokens for record in good)),
            "client_lag_p99_s": self.client_lag_p99_s,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed. Raises ValueError without values."""
    if not values or not 0 < share <= 1:
        raise ValueError(f"a percentile needs values and a share above 0 and at most 1, not {len(values)} and {share}")
    return sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]  # 1e-9: 0.07 * 100 is 7.000000000000001


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
    return {"mean": math.fsum(values) / len(values)} | {name: percentile(values, p) for name, p in shares.items()}


def schedule(
    count: int,
    rate_per_s: float,
    seed: int,
    kind: Literal["poisson", "constant", "gamma"] = "poisson",
    shape: float = 1.0,
) -> tuple[float, ...]:
    """Send times in seconds, increasing, of mean rate `rate_per_s`; the same for the same arguments.

    "gamma": gaps of that shape; 1 is Poisson, below 1 bursts, above 1 evenness. Raises ValueError for senseless numbers.
    """
    if not (count >= 1 and 0 < rate_per_s < math.inf and 0 < shape < math.inf):
        raise ValueError(f"count, rate and shape must be above 0, not {count}, {rate_per_s} and {shape}")
    rng = random.Random(seed)
    gap: dict[str, Callable[[], float]] = {
        "poisson": lambda: rng.expovariate(rate_per_s),
        "constant": lambda: 1 / rate_per_s,
        "gamma": lambda: rng.gammavariate(shape, 1 / (shape * rate_per_s)),
    }
    if kind not in gap:
        raise ValueError(f"kind must be one of {', '.join(gap)}, not {kind!r}")
    times, now = [], 0.0
    for _ in range(count):
        now += gap[kind]()
        times.append(now)
    return tuple(times)


def run_load(
    target: Target,
    requests: Sequence[Request],
    at_s: Sequence[float],
    *,
    count_tokens: Callable[[str], int],
    warmup: int = 0,
    limits: Limits | None = None,
) -> LoadResult:
    """Send each request at its time and read the answers; the first `warmup` ones are not counted.

    Returns at the latest `limits.answer_s` after the last time of the schedule. `count_tokens` is called after the run.
    Whatever a server does is a fault in a record. Raises ValueError if the arguments do not fit each other, OSError if
    the target's host has no address or this process may open no more files, RuntimeError inside a running event loop
    (use a thread).
    """
    if not requests or len(requests) != len(at_s) or not 0 <= warmup < len(requests):
        raise ValueError(f"{len(requests)} requests, {len(at_s)} times, {warmup} of them warm-up do not fit together")
    if list(at_s) != sorted(at_s) or not (at_s[0] >= 0 and at_s[-1] < math.inf):
        raise ValueError("times must be finite, not below 0, and in order")
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("run_load has an event loop of its own: call it in a thread, not inside a running loop")
    with _no_collection(), asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        run = _Run(target, limits or Limits())
        runner.run(run.send_all(requests, at_s))
    records = tuple(x.record(i, i < warmup, run.start_s, count_tokens) for i, x in enumerate(run.exchanges))
    lags = [record.lag_s for record in records if not record.warmup] + run.pulses_s
    return LoadResult(records, run.start_s, percentile(lags, 0.99))


class _Run:
    """One run in its event loop."""

    def __init__(self, target: Target, limits: Limits) -> None:
        self.target, self.limits = target, limits
        self.bytes_left = limits.total_bytes
        self.in_flight = 0
        self.exchanges: list[_Exchange] = []
        self.pulses_s: list[float] = []
        self.start_s = 0.0

    async def send_all(self, requests: Sequence[Request], at_s: Sequence[float]) -> None:
        loop = asyncio.get_running_loop()
        self.family, self.address = await self._resolve()
        pulse = loop.create_task(self._pulse())
        self.start_s = loop.time() + LEAD_S
        self.exchanges = [
            _Exchange(self, request, self.start_s + offset_s) for request, offset_s in zip(requests, at_s, strict=True)
        ]
        await asyncio.gather(*(exchange.run() for exchange in self.exchanges))
        pulse.cancel()

    async def _resolve(self) -> tuple[socket.AddressFamily, Any]:
        if isinstance(self.target.address, str):
            return socket.AF_UNIX, self.target.address
        host, port = self.target.address
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return found[0][0], found[0][4]

    async def _pulse(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + PULSE_S
            await asyncio.sleep(PULSE_S)
            self.pulses_s.append(loop.time() - due_s)

    async def connect(self, sock: socket.socket) -> None:
        """Raises OSError."""
        if self.family != socket.AF_UNIX:
            await asyncio.get_running_loop().sock_connect(sock, self.address)
            return
        while True:
            try:
                return sock.connect(self.address)
            except BlockingIOError:  # a full queue; no event says when there is room
                await asyncio.sleep(TICK_S)


class _Exchange(asyncio.Protocol):
    """One request on a connection of its own: what an answer leaves behind cannot reach the next one."""

    def __init__(self, run: _Run, request: Request, scheduled_s: float) -> None:
        self._run, self._request = run, request
        self._loop = asyncio.get_running_loop()
        self._answer = Answer(run.limits)
        self._bytes = b""
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()
        self._mistake: Exception | None = None
        """Ours, not the server's."""
        self.scheduled_s = self.started_s = self._ended_s = scheduled_s
        self._is_due = False
        self._sent_s: float | None = None
        self._fault: Fault | None = None
        self._detail = ""

    def _prepare(self) -> None:
        """Before its time comes, which it does not cost."""
        target = self._run.target
        host = "localhost" if isinstance(target.address, str) else "{}:{}".format(*target.address)
        headers = {"Host": host, "Accept": "text/event-stream", "Accept-Encoding": "identity"}
        headers |= {"Content-Type": "application/json", **target.headers}
        body = msgspec.json.encode(dict(self._request.body))
        self._bytes = self._answer.request("POST", target.path, list(headers.items()), body)

    async def run(self) -> None:
        await asyncio.sleep(self.scheduled_s - AHEAD_S - self._loop.time())
        limits = self._run.limits
        if self._run.in_flight >= limits.in_flight:
            self.fail(Fault.CROWDED, f"{self._run.in_flight} earlier requests were not answered yet")
            return
        self._run.in_flight += 1
        self._prepare()
        self._loop.call_at(self.scheduled_s - TICK_S, self._due)
        sock = socket.socket(self._run.family, socket.SOCK_STREAM)  # none left: our fault, and raised
        sock.setblocking(False)
        try:
            async with asyncio.timeout_at(self.scheduled_s + limits.answer_s):
                await self._run.connect(sock)
                await self._loop.create_connection(lambda: self, sock=sock)
                await self._ended.wait()
        except TimeoutError:
            self.fail(Fault.TIME, f"not finished after {limits.answer_s:g} s")
        except OSError as error:
            self.fail(Fault.REFUSED, f"no connection: {error}")
        finally:
            self._run.in_flight -= 1
            if self._transport is not None:
                self._transport.abort()
            else:
                sock.close()
        if self._mistake is not None:
            raise self._mistake

    def _due(self) -> None:
        """Called a tick early; others run until the time has come, for epoll alone would be up to a tick late."""
        now_s = self._loop.time()
        if now_s < self.scheduled_s:
            self._loop.call_soon(self._due)
            return
        self.started_s = now_s
        self._is_due = True
        self._send()

    def _send(self) -> None:
        """As soon as it is time and there is a connection."""
        if self._is_due and self._transport is not None and not self._ended.is_set():
            self._sent_s = self._loop.time()
            self._transport.write(self._bytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        now_s = self._loop.time()  # first of all
        if self._ended.is_set():
            return
        try:
            if self._sent_s is None and data:
                raise BadAnswer(Fault.FORMAT, "an answer before there was a request")
            self._run.bytes_left -= len(data)
            if self._run.bytes_left < 0:
                raise BadAnswer(Fault.SIZE, f"all answers have more than {self._run.limits.total_bytes:,} bytes")
            if self._answer.feed(data, now_s):
                self._end(now_s)
        except BadAnswer as bad:
            self.fail(bad.fault, bad.detail)
        except Exception as error:  # asyncio would log it and close the connection
            self._mistake = error
            self._end(now_s)

    def eof_received(self) -> None:
        self.data_received(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(Fault.REFUSED, f"the connection broke: {exc or 'closed'}")

    def fail(self, fault: Fault, detail: str) -> None:
        if not self._ended.is_set():
            self._fault, self._detail = fault, detail
            self._end(self._loop.time())

    def _end(self, now_s: float) -> None:
        self._ended_s = max(now_s, self.scheduled_s)
        self._ended.set()
        if self._transport is not None:
            self._transport.abort()

    def record(self, index: int, warmup: bool, start_s: float, count_tokens: Callable[[str], int]) -> Record:
        text = self._answer.text
        fault, detail, request = self._fault, self._detail, self._request
        tokens = count_tokens(text) if fault is None else 0
        if fault is None and tokens < request.min_tokens:
            fault, detail = Fault.SHORT, f"{tokens} tokens, at least {request.min_tokens} were asked for"
        elif fault is None and request.max_tokens is not None and tokens > request.max_tokens:
            fault, detail = Fault.LONG, f"{tokens} tokens, at most {request.max_tokens} were asked for"
        return Record(
            index=index,
            request=request,
            warmup=warmup,
            scheduled_s=self.scheduled_s - start_s,
            started_s=self.started_s - start_s,
            sent_s=None if self._sent_s is None else self._sent_s - start_s,
            chunk_times_s=tuple(time_s - start_s for time_s in self._answer.times_s),
            ended_s=self._ended_s - start_s,
            text=text,
            tokens=tokens,
            fault=fault,
            detail=detail,
        )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No pause of the garbage collector within; what a run may hold is limited anyway."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
