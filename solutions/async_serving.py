# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]

# %% [markdown]
# # Streaming, cancelling, limiting: serving many slow answers at once
#
# An answer of a language model takes seconds and comes token by token. A good server passes each token on at once,
# stops the engine as soon as nobody listens any more, lets no reader fill its memory, and says "not now" before it
# breaks down. All of that is `asyncio`, and all of it is easy to get almost right. In this assignment you build
#
# 1. a bounded queue between an engine and a reader (`TokenStream`),
# 2. a limit on what runs and on what waits (`ConcurrencyLimiter`),
# 3. chat completions, streamed as server-sent events or as a whole (`chat_router`),
# 4. the same over a WebSocket, where the client says how much it can take (`ws_router`),
# 5. jobs, for those who come back later (`jobs_router`).
#
# Task 1 takes about 30 minutes, task 2 about 35, task 3 about 60, tasks 4 and 5 about 40 each. You should know
# `async`/`await`, tasks and their cancellation, and FastAPI as in the assignment before this one.
#
# | term | means |
# |---|---|
# | server-sent events, SSE | a response of type `text/event-stream`: lines `data: ...`, an empty line after each event |
# | WebSocket | a connection on which both sides send messages ("frames" below) at any time |
# | back-pressure | whoever produces too fast is made to wait, so that nothing piles up |
# | credit | the right to send one token. The receiver grants credits; without one the sender waits |
# | abort | to tell the engine that a request's tokens are wanted no more. An engine that is not told goes on to the end |
# | slot | the right to use the engine; there are `max_running` of them |
#
# **How it is graded.** As before: a real server, the official `openai` client, `websockets`, bare sockets; and the
# engine is the grader's. No check measures time. Instead, the engine **makes the next token only after the grader has
# read the one before it**. A server that collects tokens first waits for ever, and the check says so after its limit of
# 10 s; a server that passes them on is right however slow the machine is. In the same way the grader closes a
# connection and waits until your code calls `abort`. Hidden checks look at the same rules on other inputs.
# `TokenStream` and `ConcurrencyLimiter` are driven by `play` (in the next cell): it does one thing after the other,
# lets all tasks run as far as they can, and notes what each came to.
#
# **Rules for all tasks.** Write everything `async`, never block, never poll in a loop with `sleep`. Whatever happens
# (end, error, cancellation, a client that is gone), what was acquired is released exactly once.

# %% given="engine"
import asyncio
import contextlib
import inspect
import itertools
import json
import random
import socket
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from fastapi import APIRouter, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


@dataclass(frozen=True)
class Settings:
    """What the operator of the service decides."""

    model: str = "tiny/toy-1"
    max_running: int = 4
    max_waiting: int = 8
    job_ttl_s: float = 600.0


@dataclass(frozen=True)
class Token:
    """A piece of an answer. The last one has a `finish_reason`, "stop" or "length"; its text may be empty."""

    text: str
    finish_reason: str | None = None


class EngineError(Exception):
    """The engine failed. Its text is for the operator, not for clients."""


class Overloaded(Exception):
    """Everything is taken, and there is no room to wait."""


class StreamClosed(Exception):
    """The reader is gone; nothing more is wanted."""


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions` and of `POST /v1/jobs`."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None

    def chat(self) -> list[dict[str, str]]:
        """The messages as the engine takes them."""
        return [message.model_dump() for message in self.messages]


def error_body(message: str, kind: str = "server_error", code: str | None = None) -> dict[str, Any]:
    """An OpenAI error body."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Engine(Protocol):
    """What your code may ask of an engine."""

    async def count(self, messages: list[dict[str, str]]) -> int:
        """The number of tokens of a prompt."""

    def generate(self, request_id: str, messages: list[dict[str, str]], max_tokens: int) -> AsyncIterator[Token]:
        """The tokens of an answer, to be used with `async for`. May raise `EngineError` at any of them.

        It begins with the first `anext`. To stop iterating does not stop the engine: that is what `abort` is for.
        """

    def abort(self, request_id: str) -> None:
        """Stop a request that has not ended. Only sends a message, so it needs no `await`."""

    def now(self) -> float:
        """The engine's clock, in seconds. Only differences mean something."""


class ToyEngine:
    """An engine without a model, which takes `token_s` seconds per token."""

    WORDS = ("the", "cache", "of", "a", "token", "is", "never", "quite", "full", "but", "every", "block", "knows")

    def __init__(self, token_s: float = 0.05) -> None:
        self.token_s = token_s
        self.aborted: list[str] = []
        self._stopped: set[str] = set()

    async def count(self, messages: list[dict[str, str]]) -> int:
        return sum(8 + len(message["content"]) // 4 for message in messages)

    async def generate(self, request_id: str, messages: list[dict[str, str]], max_tokens: int) -> AsyncIterator[Token]:
        draw = random.Random(messages[-1]["content"])
        for number in range(max_tokens):
            await asyncio.sleep(self.token_s)
            last = number == max_tokens - 1
            yield Token(draw.choice(self.WORDS) + " ", "length" if last else None)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def now(self) -> float:
        return time.monotonic()


class EngineClient:
    """An engine in another process, which answers JSON lines over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connecting = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._inboxes: dict[int, asyncio.Queue[tuple[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._now = 0.0

    async def count(self, messages: list[dict[str, str]]) -> int:
        async with contextlib.aclosing(self._ask("count", messages=messages)) as answers:
            return int(await anext(answers))

    async def generate(self, request_id: str, messages: list[dict[str, str]], max_tokens: int) -> AsyncIterator[Token]:
        answers = self._ask("generate", request_id=request_id, messages=messages, max_tokens=max_tokens)
        async with contextlib.aclosing(answers):
            async for answer in answers:
                yield Token(**answer)

    def abort(self, request_id: str) -> None:
        self._send("abort", request_id=request_id)

    def now(self) -> float:
        return self._now

    def _send(self, op: str, **args: Any) -> int:
        number = next(self._numbers)
        if self._writer is not None:
            self._writer.write(json.dumps({"id": number, "op": op, "args": args}).encode() + b"\n")
        return number

    async def _ask(self, op: str, **args: Any) -> AsyncIterator[Any]:
        async with self._connecting:
            if self._writer is None:
                reader, self._writer = await asyncio.open_connection(sock=self._connection, limit=1 << 24)
                self._reading = asyncio.create_task(self._read(reader))
        number = self._send(op, **args)
        inbox = self._inboxes[number] = asyncio.Queue()
        try:
            event = ""
            while event != "result":
                event, value = await inbox.get()
                if event == "error":
                    raise EngineError(value["text"])
                yield value
        finally:
            del self._inboxes[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            message = json.loads(line)
            if message["event"] == "clock":
                self._now = message["value"]
            elif message["id"] in self._inboxes:
                self._inboxes[message["id"]].put_nowait((message["event"], message["value"]))


class NoLimit:
    """Takes the place of your `ConcurrencyLimiter` where a check is not about limits."""

    async def acquire(self) -> None: ...

    def release(self) -> None: ...


# How the grader drives your work.


def play(kind: str, arguments: list[Any], steps: list[list[list[Any]]]) -> list[dict[str, Any]]:
    """Make an object of the class `kind` and do things with it; what each step came to, by the names of its actions.

    A step is a list of actions `[name, method, *values]`. Each starts a task that calls the method (`"next"` stands for
    `anext`); `[name, "cancel"]` cancels the task of that name, in its turn. After a step all tasks run until they wait.
    The outcome of a task is "waiting", ["returned", value], ["raised", type] or ["cancelled"]. Counts `running` and
    `waiting` are noted as "state" if the object has them.
    """

    async def call(thing: Any, method: str, values: list[Any]) -> Any:
        if method == "next":
            return await anext(thing)
        if method == "fail":
            values = [EngineError(*values)]
        value = getattr(thing, method)(*values)
        return await value if inspect.isawaitable(value) else value

    def outcome(task: asyncio.Task[Any]) -> Any:
        if not task.done():
            return "waiting"
        if task.cancelled():
            return ["cancelled"]
        error = task.exception()
        return ["raised", type(error).__name__] if error else ["returned", task.result()]

    async def run() -> list[dict[str, Any]]:
        thing = globals()[kind](*arguments)
        tasks: dict[str, asyncio.Task[Any]] = {}
        notes = []
        for step in steps:
            for name, method, *values in step:
                if method == "cancel":
                    asyncio.get_running_loop().call_soon(tasks[name].cancel)
                else:
                    tasks[name] = asyncio.create_task(call(thing, method, values))
            for _ in range(30):
                await asyncio.sleep(0)
            note = {name: outcome(task) for name, task in tasks.items()}
            if hasattr(thing, "running"):
                note["state"] = [thing.running, thing.waiting]
            notes.append(note)
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return notes

    with ThreadPoolExecutor(1) as pool:  # a notebook's own thread has a running event loop already
        return pool.submit(lambda: asyncio.run(run())).result()


def serve_chat(settings: dict[str, Any], engine: socket.socket, limited: bool = False) -> FastAPI:
    """Only your router of task 3, with your limiter of task 2 if `limited`."""
    app, made = FastAPI(), Settings(**settings)
    limiter = ConcurrencyLimiter(made.max_running, made.max_waiting) if limited else NoLimit()
    app.include_router(chat_router(EngineClient(engine), made, limiter))
    return app


def serve_ws(settings: dict[str, Any], engine: socket.socket, limited: bool = False) -> FastAPI:
    """Only your router of task 4, with your limiter of task 2 if `limited`."""
    app, made = FastAPI(), Settings(**settings)
    limiter = ConcurrencyLimiter(made.max_running, made.max_waiting) if limited else NoLimit()
    app.include_router(ws_router(EngineClient(engine), made, limiter))
    return app


def serve_jobs(settings: dict[str, Any], engine: socket.socket) -> FastAPI:
    """Only your router of task 5."""
    app = FastAPI()
    app.include_router(jobs_router(EngineClient(engine), Settings(**settings)))
    return app


# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.

# %% [markdown]
# ## Task 1: a bounded queue (about 30 minutes)
#
# Between an engine that produces and a client that reads stands a queue. Without a bound, one slow phone on a train
# fills your memory; with a bound that drops tokens, its answer has holes. So the producer must **wait** while the queue
# is full. And the reader must learn how the stream ended. `asyncio.Queue` does the first; ends and errors it leaves to
# you.
#
# One producer and one reader use a `TokenStream(max_size)`:
#
# | call | does |
# |---|---|
# | `await put(item)` | appends it, once fewer than `max_size` items are queued; `StreamClosed` once the reader has closed |
# | `finish()` | the end: after what is still queued, the reader gets `StopAsyncIteration` |
# | `fail(error)` | the end by an error: after what is still queued, the reader gets `error` |
# | `close()` | the reader is gone: what is queued is dropped, and a producer that waits or comes later gets `StreamClosed` |
# | `async for item in stream` | the items in order. Waits if there is none and no end yet |
#
# `finish`, `fail` and `close` are plain functions: they can be called in a `finally` where awaiting is not possible any
# more. A call that is cancelled while it waits changes nothing. After its end the stream stays ended, however often it
# is asked. What `put` does after `finish` or `fail`, what `anext` does after `close`, and a second end (`fail` after
# `finish`, or the other way round) are not tested. A `max_size` below 1 is a `ValueError`.
#
# *Example*, `TokenStream(2)`:
#
# | step | outcome |
# |---|---|
# | `put("a")`, `put("b")` | both return |
# | `put("c")` | waits |
# | `anext` | returns `"a"`, and now `put("c")` returns |
# | `finish()` | |
# | `anext`, `anext`, `anext` | `"b"`, `"c"`, `StopAsyncIteration` |
#
# *Common mistakes:* `deque(maxlen=...)`, which drops silently; a sentinel that has to wait for a place in the full
# queue; an error that overtakes the tokens before it; a producer that waits for ever after its reader has gone.


# %% task="TokenStream"
class TokenStream:
    """A bounded queue with an end, for one producer and one reader."""

    def __init__(self, max_size: int) -> None:
        ### BEGIN SOLUTION
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1, not {max_size}")
        self._max_size = max_size
        self._items: deque[Any] = deque()
        self._end: BaseException | None = None
        self._closed = False
        self._waiting: list[asyncio.Future[None]] = []
        ### END SOLUTION

    async def put(self, item: Any) -> None:
        """Append `item`, as soon as there is room.

        Raises:
            StreamClosed: the reader has closed the stream.
        """
        ### BEGIN SOLUTION
        while len(self._items) >= self._max_size and not self._closed:
            await self._change()
        if self._closed:
            raise StreamClosed
        self._items.append(item)
        self._changed()
        ### END SOLUTION

    def finish(self) -> None:
        """The producer has nothing more."""
        ### BEGIN SOLUTION
        self._end = StopAsyncIteration()
        self._changed()
        ### END SOLUTION

    def fail(self, error: BaseException) -> None:
        """The producer has failed."""
        ### BEGIN SOLUTION
        self._end = error
        self._changed()
        ### END SOLUTION

    def close(self) -> None:
        """The reader wants nothing more."""
        ### BEGIN SOLUTION
        self._closed = True
        self._items.clear()
        self._end = self._end or StopAsyncIteration()
        self._changed()
        ### END SOLUTION

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> Any:
        """The next item. Raises `StopAsyncIteration` at the end, or the error that `fail` was given."""
        ### BEGIN SOLUTION
        while not self._items:
            if self._end is not None:
                raise self._end
            await self._change()
        item = self._items.popleft()
        self._changed()
        return item

    async def _change(self) -> None:
        change = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        await change

    def _changed(self) -> None:
        for change in self._waiting:
            if not change.done():
                change.set_result(None)
        self._waiting.clear()
        ### END SOLUTION


# %% [markdown]
# The example, played: three puts, a look, an end.

# %%
for note in play(
    "TokenStream",
    [2],
    [[["a", "put", "a"], ["b", "put", "b"], ["c", "put", "c"]], [["1", "next"]], [["end", "finish"]]],
):
    print(note)

# %% [markdown]
# ## Task 2: how many at once (about 35 minutes)
#
# An engine that runs everything at once makes everybody slow, and a queue without end turns an overload of a minute
# into an hour of answers that nobody waits for any more. So `max_running` requests run, up to `max_waiting` more wait,
# in the order in which they came, and all others are refused at once: clients can then try another server.
#
# - `await acquire()`: returns when the caller has a slot. If all slots are taken and fewer than `max_waiting` callers
#   wait, it waits its turn; otherwise it raises `Overloaded` **at once**.
# - `release()`: gives a slot back. It goes to whoever has waited longest. A newcomer never overtakes. Without a slot
#   taken it is a `RuntimeError`.
# - `running`, `waiting`: how many slots are taken, and how many callers wait, now (attributes or properties).
# - A caller that is cancelled while it waits leaves the queue, and takes no slot with it: also if it is
#   cancelled in the very moment in which a slot was given to it, before it could run. (Then the slot must go on to the
#   next one.)
# - `max_running` below 1 or `max_waiting` below 0 is a `ValueError`.
#
# *Example*, `ConcurrencyLimiter(1, 1)`: `A` acquires; `B` waits; `C` gets `Overloaded`; `A` releases, and `B` has the
# slot (`running` 1, `waiting` 0).
#
# *Common mistakes:* a loop that sleeps and looks again; `asyncio.Semaphore.locked()` as a count of those who wait; a
# slot that is lost when its waiter is cancelled; a newcomer that takes a free slot which belongs to somebody who has
# been woken but has not run yet.


# %% task="ConcurrencyLimiter"
class ConcurrencyLimiter:
    """At most `max_running` callers have a slot, at most `max_waiting` more wait for one, first come first served."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        ### BEGIN SOLUTION
        if max_running < 1:
            raise ValueError(f"max_running must be at least 1, not {max_running}")
        if max_waiting < 0:
            raise ValueError(f"max_waiting must be at least 0, not {max_waiting}")
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._queue: deque[asyncio.Future[None]] = deque()
        self.running = 0
        ### END SOLUTION

    async def acquire(self) -> None:
        """Take a slot, now or when its turn has come.

        Raises:
            Overloaded: all slots are taken and `max_waiting` callers wait already.
        """
        ### BEGIN SOLUTION
        if self.running < self._max_running:
            self.running += 1
            return
        if self.waiting >= self._max_waiting:
            raise Overloaded
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was given to us already
                self.release()
            raise
        ### END SOLUTION

    def release(self) -> None:
        """Give a slot back. Raises `RuntimeError` if none is taken."""
        ### BEGIN SOLUTION
        if self.running == 0:
            raise RuntimeError("release() without a slot that is taken")
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    @property
    def waiting(self) -> int:
        return sum(not turn.done() for turn in self._queue)
        ### END SOLUTION


# %% [markdown]
# The example, played.

# %%
for note in play(
    "ConcurrencyLimiter", [1, 1], [[["A", "acquire"], ["B", "acquire"], ["C", "acquire"]], [["end of A", "release"]]]
):
    print(note)

# %% [markdown]
# ## Task 3: chat completions (about 60 minutes)
#
# `POST /v1/chat/completions` with a `ChatRequest`. Make a `request_id` that begins with `chatcmpl-` and is new each
# time: it is the engine's `request_id` and the answer's `id`. One slot of the limiter is held from before the engine is
# asked until the answer has ended in whatever way. `model` in the answer is the settings'. (Requests for another model
# are not tested, neither here nor in task 5.)
#
# An engine *is asked* by `generate`, not by `count`, which you may call whenever you need it (its `EngineError` counts
# like any other). An answer *has ended* with the token that has a `finish_reason`, or with an error: one of the two
# always comes, unless you abort.
#
# **As a whole** (`stream` false): status 200 with `{"id", "object": "chat.completion", "created", "model", "choices":
# [{"index": 0, "message": {"role": "assistant", "content"}, "finish_reason"}], "usage"}`. `usage` has `prompt_tokens`
# (of `engine.count`), `completion_tokens` (one per `Token`, the last one too, even if its text is empty) and
# `total_tokens`.
#
# **As a stream** (`stream` true): status 200, `Content-Type: text/event-stream`, `Cache-Control: no-cache`, and
# `X-Accel-Buffering: no`, which keeps nginx from collecting the stream. Each event is `data: ` + one line of JSON + an
# empty line. In this order:
#
# | event | `choices` | |
# |---|---|---|
# | first | `[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]` | once |
# | token | `[{"index": 0, "delta": {"content": "the text"}, "finish_reason": null}]` | one for each token with a text |
# | last | `[{"index": 0, "delta": {}, "finish_reason": "stop"}]` | once, after the last token's text |
# | usage | `[]`, and beside it `usage` as above | only if `stream_options.include_usage` |
# | `data: [DONE]` | | the end, no JSON |
#
# Every event but `[DONE]` (and an error, see below) has `id`, `object` (`"chat.completion.chunk"`), `created` and
# `model`, the same in all of them. No token's text holds half of a surrogate pair.
#
# **Each token at once.** The event of a token is sent before the engine is asked for the next one.
#
# **Errors.** A status can be sent only before the first byte of the body. So the answer begins when the **first token**
# is there:
#
# | what | before the first token | after it (stream) |
# |---|---|---|
# | `EngineError` | 500, code `internal_error`, without the error's text | such a body as an event, then `data: [DONE]` |
# | `Overloaded` | 503, code `overloaded`, header `Retry-After: 1` | |
#
# The bodies are made by `error_body(message, code=...)`; the event is `data: {"error": {...}}`.
#
# **The client goes away.** Then, in whatever state its request is (waiting for a slot, for the first token, or in the
# middle of a stream, or of an answer as a whole), the engine is told `abort(request_id)` if it was asked and has not
# ended, and the slot is released. Nobody will ask you about it: **you must notice.** Starlette's `StreamingResponse`
# listens for the disconnect (under uvicorn, which speaks ASGI 2.3) and cancels the task that iterates your generator.
# Where no `StreamingResponse` runs (yet), nobody listens: an `async def` endpoint runs to its end for nobody. There you
# race the work against a task that waits for `{"type": "http.disconnect"}` from `await request.receive()` (FastAPI has
# read the body already), as vLLM does. Finished requests are never aborted. What you answer to a client that is gone
# does not matter: nobody reads it.
#
# - Cancelling a task raises `CancelledError` where it waits. It is no `Exception`, so `except Exception` does not see
#   it; `finally` does. Inside `StreamingResponse` it is raised again at *every* further `await`, so clean up with plain
#   functions: `abort` and `release` are such.
# - A generator that was never started has no `finally` to run: if the client leaves between your endpoint's `return`
#   and the first event, a slot that only the generator releases is lost. One way: a subclass of `StreamingResponse`
#   whose `__call__` has the `finally`.
#
# *Example.* Tokens `Token("Hel")`, `Token("lo")`, `Token("", "stop")` give five events: first, `Hel`, `lo`, last,
# `[DONE]`; with usage six.
#
# *Common mistakes:* all tokens in a list first; one newline instead of two; no `[DONE]`; the slot released when the
# endpoint returns and not when the stream ends; an error after status 200 as plain text; the abort forgotten for
# answers as a whole.


# %% task="chat_router"
def chat_router(engine: Engine, settings: Settings, limiter: Any) -> APIRouter:
    """The endpoint `POST /v1/chat/completions`."""
    ### BEGIN SOLUTION
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        answer = _Answer(engine, settings, limiter, body)
        try:
            if body.stream:
                await _unless_gone(request, answer.begin())
                return _Stream(answer)
            return JSONResponse(await _unless_gone(request, answer.whole()))
        except Overloaded:
            error = error_body("All slots are taken. Try again later.", code="overloaded")
            return JSONResponse(error, 503, {"Retry-After": "1"})
        except EngineError:
            return JSONResponse(error_body("The engine failed.", code="internal_error"), 500)
        except _Gone:
            return Response(status_code=499)

    return router


class _Gone(Exception):
    pass


async def _unless_gone(request: Request, work: Any) -> Any:
    """What `work` returns; `_Gone` if the client leaves before."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.create_task(work), asyncio.create_task(leaves())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if task.cancelled():
        raise _Gone
    return task.result()


class _Answer:
    """One request, from its slot to its end."""

    def __init__(self, engine: Engine, settings: Settings, limiter: Any, body: ChatRequest) -> None:
        self.engine, self.limiter, self.body = engine, limiter, body
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.about = {"id": self.id, "created": int(time.time()), "model": settings.model}
        self.held = self.asked = False
        self.count = 0
        self.reason: str | None = None

    def end(self) -> None:
        if self.asked and self.reason is None:
            self.engine.abort(self.id)
        if self.held:
            self.held = False
            self.limiter.release()

    async def next(self) -> Token:
        try:
            token = await anext(self.tokens)
        except EngineError:
            self.asked = False
            raise
        self.count += 1
        self.reason = token.finish_reason
        return token

    async def begin(self) -> None:
        try:
            await self.limiter.acquire()
            self.held = True
            self.prompt = await self.engine.count(self.body.chat())
            self.tokens = self.engine.generate(self.id, self.body.chat(), self.body.max_tokens)
            self.asked = True
            self.first = await self.next()
        except BaseException:
            self.end()
            raise

    def usage(self) -> dict[str, int]:
        total = self.prompt + self.count
        return {"prompt_tokens": self.prompt, "completion_tokens": self.count, "total_tokens": total}

    async def whole(self) -> dict[str, Any]:
        await self.begin()
        try:
            text = self.first.text
            while self.reason is None:
                text += (await self.next()).text
        finally:
            self.end()
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.reason}
        return {**self.about, "object": "chat.completion", "choices": [choice], "usage": self.usage()}

    async def events(self) -> AsyncIterator[str]:
        def event(delta: dict[str, str] | None, reason: str | None = None, **more: Any) -> str:
            choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
            return (
                f"data: {json.dumps({**self.about, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"
            )

        yield event({"role": "assistant", "content": ""})
        token = self.first
        try:
            while True:
                if token.text:
                    yield event({"content": token.text})
                if self.reason is not None:
                    break
                token = await self.next()
            yield event({}, self.reason)
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield event(None, usage=self.usage())
        except EngineError:
            yield f"data: {json.dumps(error_body('The engine failed.', code='internal_error'))}\n\n"
        yield "data: [DONE]\n\n"


class _Stream(StreamingResponse):
    def __init__(self, answer: _Answer) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(answer.events(), media_type="text/event-stream", headers=headers)
        self.answer = answer

    async def __call__(self, *connection: Any) -> None:
        try:
            await super().__call__(*connection)
        finally:
            self.answer.end()

    ### END SOLUTION


# %% [markdown]
# When does each token arrive? This starts your app under a real server on this machine and reads two answers of the
# same engine: one streamed, one as a whole. (httpx's and Starlette's test clients would collect the stream first.) The
# right picture: if both curves are one vertical line, your stream is none.

# %%
import httpx
import matplotlib.pyplot as plt
import uvicorn


@contextlib.asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[str]:
    """The address of a server that runs `app`."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


async def arrivals(stream: bool) -> list[float]:
    """When each piece of an answer came, in seconds."""
    app, times = FastAPI(), []
    app.include_router(chat_router(ToyEngine(), Settings(), NoLimit()))
    body = {"model": "tiny/toy-1", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, "max_tokens": 20}
    async with running(app) as address, httpx.AsyncClient() as client:
        began = time.perf_counter()
        async with client.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if not stream:
                    times += [time.perf_counter() - began] * 20
                elif '"content"' in line and '""' not in line:
                    times.append(time.perf_counter() - began)
    return times


figure = plt.figure(figsize=(6, 3))
for stream, label in ((True, "streamed"), (False, "as a whole")):
    times = await arrivals(stream)
    plt.step(times, range(1, len(times) + 1), where="post", label=label)
plt.xlabel("time (s)")
plt.ylabel("tokens at the client")
plt.legend()
plt.title("A stream is a staircase")
plt.show()

# %% [markdown]
# ## Task 4: a WebSocket with credits (about 40 minutes)
#
# Over SSE a slow reader is slowed by TCP alone, after megabytes of buffers. Over a WebSocket the client can say how
# much it can take. `WS /v1/stream`; every frame is a text with a JSON object. Frames of the client:
#
# | frame | means |
# |---|---|
# | `{"type": "start", "messages": [...], "max_tokens": 16, "credits": 0}` | the first frame, and only that |
# | `{"type": "credit", "n": 5}` | five more tokens may be sent; `n` at least 1 |
# | `{"type": "cancel"}` | no more, please |
#
# In `start`, `max_tokens` (at least 1) and `credits` (at least 0) may be left out; above are their defaults.
#
# Frames of the server: `{"type": "token", "text": "..."}` for each `Token` with a text, which **uses one credit**
# (without one the server waits); then `{"type": "done", "finish_reason": "stop"}`, which needs none. A last token with
# a text is sent as a token first, for a credit. How it ends:
#
# | what | last frame | close code | engine |
# |---|---|---|---|
# | done | `done` | 1000 | |
# | `cancel` | `{"type": "cancelled"}` | 1000 | aborted if it was asked and has not ended |
# | `EngineError` | `{"type": "error", "message": "..."}`, without the error's text | 1011 | |
# | a frame that is none of these, no JSON, or binary | | 1008 | aborted if it was asked and has not ended |
# | `Overloaded` | | 1013 | never asked |
# | the client leaves | | | aborted if it was asked and has not ended |
#
# Values out of range (`"credits": -1`, no message) and frames at the wrong time (a `credit` first, a second `start`)
# are "none of these". Whether `"1"` or `true` passes for a number, and what further keys do, is not tested.
#
# Accept the connection first: a close before that becomes a plain 403. A slot of the limiter is held from before the
# engine is asked until it has ended or is aborted (at the latest until the connection closes), and frames are read also
# while the request waits for a slot, for a token, or for a credit. So you need two tasks: one that reads frames, one
# that sends tokens. `WebSocket.receive()` gives raw messages (`receive_text` cannot tell a binary frame from its own
# error); a client that left is `WebSocketDisconnect`, or a message of type `websocket.disconnect`. The `request_id`
# begins with `ws-`.
#
# *Example.* `start` with `credits` 1; the engine has `Hel`, `lo`, and an empty token with `stop`. The client gets
# `token` (`Hel`) and then nothing until it sends `{"type": "credit", "n": 1}`: then `token` (`lo`) and `done`.
#
# *Common mistakes:* credits checked but not waited for; `cancel` that is only read between two tokens; the reading task
# left behind.


# %% task="ws_router"
def ws_router(engine: Engine, settings: Settings, limiter: Any) -> APIRouter:
    """The endpoint `WS /v1/stream`."""
    ### BEGIN SOLUTION
    router = APIRouter()

    @router.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        request_id, granted = f"ws-{uuid.uuid4().hex}", asyncio.Event()
        credits, active = 0, False

        async def frame() -> Any:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            return _FRAMES.validate_json(message.get("text") or "")

        async def read() -> None:
            nonlocal credits
            while True:
                match await frame():
                    case _Credit(n=n):
                        credits += n
                        granted.set()
                    case _Cancel():
                        return
                    case _Start():
                        raise ValueError("a second start")

        async def send(start: "_Start") -> None:
            nonlocal credits, active
            await limiter.acquire()
            try:
                active = True
                messages = [message.model_dump() for message in start.messages]
                async for token in engine.generate(request_id, messages, start.max_tokens):
                    active = token.finish_reason is None
                    if token.text:
                        while not credits:
                            granted.clear()
                            await granted.wait()
                        credits -= 1
                        await socket.send_json({"type": "token", "text": token.text})
                    if token.finish_reason:
                        await socket.send_json({"type": "done", "finish_reason": token.finish_reason})
            except EngineError:
                active = False
                raise
            finally:
                if active:
                    engine.abort(request_id)
                limiter.release()

        tasks: set[asyncio.Task[None]] = set()
        try:
            start = await frame()
            if not isinstance(start, _Start):
                raise ValueError("no start")
            credits = start.credits
            sending, reading = asyncio.create_task(send(start)), asyncio.create_task(read())
            tasks = {sending, reading}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                reading.result()
                await _stop({sending})
                await socket.send_json({"type": "cancelled"})
            await socket.close(1000)
        except ValueError:
            await _stop(tasks)
            await socket.close(1008)
        except Overloaded:
            await socket.close(1013)
        except EngineError:
            await socket.send_json({"type": "error", "message": "The engine failed."})
            await socket.close(1011)
        except WebSocketDisconnect:
            pass
        finally:
            await _stop(tasks)

    return router


async def _stop(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Start(BaseModel):
    type: Literal["start"]
    messages: list[Message] = Field(min_length=1)
    max_tokens: int = Field(16, ge=1)
    credits: int = Field(0, ge=0)


class _Credit(BaseModel):
    type: Literal["credit"]
    n: int = Field(ge=1)


class _Cancel(BaseModel):
    type: Literal["cancel"]


_FRAMES: TypeAdapter[Any] = TypeAdapter(_Start | _Credit | _Cancel)
### END SOLUTION


# %% [markdown]
# ## Task 5: jobs (about 40 minutes)
#
# Some answers take longer than a connection lives. A job is asked for, runs by itself, and is looked up later. Jobs
# need no slot here.
#
# - `POST /v1/jobs` with a `ChatRequest` (`stream` is ignored): status **202** with the job, and a header `Location:
#   /v1/jobs/{id}`. The engine is asked at once, whether anybody looks or not; the job goes on when the client has gone.
# - `GET /v1/jobs/{id}`: 200 with the job as it is now: `{"id", "status", "text", "finish_reason"}`. `status` is
#   `running`, then `done` or `failed` (after an `EngineError`; the engine raises nothing else). `text` is what has been
#   generated so far, also of a job that failed; `finish_reason` is `null` until the job is done.
# - `DELETE /v1/jobs/{id}`: 204 without a body. A running job is cancelled, and the engine told to `abort` (before the
#   204 or right after it); the job is forgotten.
# - An id that is unknown or forgotten: 404 with `error_body(..., "invalid_request_error", "job_not_found")`, for `GET`
#   and `DELETE`.
# - A job that has ended (done or failed) is forgotten once `settings.job_ttl_s` seconds have passed since its end, by
#   `engine.now()`: no other clock, for the grader sets this one. Exactly at that time it is still there. A running job
#   is never forgotten. Forgotten jobs must not stay in memory when nobody asks for them: clean up whenever a job is
#   created.
#
# Ids begin with `job-`, are also the engine's `request_id`, and cannot be guessed. asyncio keeps only weak references
# to tasks: keep one yourself until the task has ended.
#
# *Example.* `POST` gives `{"id": "job-5f...", "status": "running", "text": "", "finish_reason": null}`; after two
# tokens `GET` gives `"text": "Hello"`; after the end `"status": "done", "finish_reason": "stop"`; ten minutes later
# 404.
#
# *Common mistakes:* the answer awaited before the 202; a failed job that stays `running` for ever; time to live counted
# from the start; `DELETE` that only forgets.


# %% task="jobs_router"
def jobs_router(engine: Engine, settings: Settings) -> APIRouter:
    """The endpoints `POST /v1/jobs`, `GET` and `DELETE /v1/jobs/{id}`."""
    ### BEGIN SOLUTION
    router = APIRouter()
    jobs: dict[str, dict[str, Any]] = {}
    tasks: dict[str, asyncio.Task[None]] = {}
    ended: dict[str, float] = {}

    def forget_old() -> None:
        for name in [name for name, at in ended.items() if engine.now() - at > settings.job_ttl_s]:
            del jobs[name], ended[name]

    async def run(job: dict[str, Any], body: ChatRequest) -> None:
        try:
            async for token in engine.generate(job["id"], body.chat(), body.max_tokens):
                job["text"] += token.text
                job["finish_reason"] = token.finish_reason
            job["status"] = "done"
        except EngineError:
            job["status"] = "failed"
        ended[job["id"]] = engine.now()
        del tasks[job["id"]]

    def missing() -> JSONResponse:
        return JSONResponse(error_body("There is no such job.", "invalid_request_error", "job_not_found"), 404)

    @router.post("/v1/jobs", status_code=202)
    async def create(body: ChatRequest, response: Response) -> dict[str, Any]:
        forget_old()
        name = f"job-{uuid.uuid4().hex}"
        jobs[name] = {"id": name, "status": "running", "text": "", "finish_reason": None}
        tasks[name] = asyncio.create_task(run(jobs[name], body))
        response.headers["Location"] = f"/v1/jobs/{name}"
        return jobs[name]

    @router.get("/v1/jobs/{name}", response_model=None)
    async def look(name: str) -> Any:
        forget_old()
        return jobs.get(name) or missing()

    @router.delete("/v1/jobs/{name}")
    async def cancel(name: str) -> Response:
        forget_old()
        if name not in jobs:
            return missing()
        del jobs[name]
        ended.pop(name, None)
        if task := tasks.pop(name, None):
            task.cancel()
            engine.abort(name)
        return Response(status_code=204)

    return router
    ### END SOLUTION


# %% [markdown]
# A job from its beginning to its end, under a real server.

# %%
app = FastAPI()
app.include_router(jobs_router(ToyEngine(), Settings()))
async with running(app) as address, httpx.AsyncClient(base_url=address) as client:
    body = {"model": "tiny/toy-1", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    response = await client.post("/v1/jobs", json=body)
    print(response.status_code, response.headers["Location"])
    for _ in range(4):
        print((await client.get(response.headers["Location"])).json())
        await asyncio.sleep(0.1)
