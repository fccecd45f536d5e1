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
# # A client of a vLLM server: stream, load, measure
#
# `vllm serve` starts a server that speaks the OpenAI API. In this assignment you write everything around it that a
# deployment needs: the command that starts it, a client that streams answers, a load test that does not lie, and the
# numbers that a monitoring system reads. In ten short tasks you
#
# 1. build the server's command line (`serve_command`) and read its log (`kv_capacity`),
# 2. decode server-sent events (`SSEDecoder`) and stream a chat with them (`stream_chat`),
# 3. draw arrival times (`poisson_arrivals`), send requests at these times (`run_load`), and summarise (`summarize`),
# 4. read the server's metrics (`parse_metrics`, `counter_rate`, `histogram_quantile`).
#
# No GPU is needed, and no vLLM: public checks talk to a small server that replays what a real one said. Graders run
# your client against a real vLLM server too. You should know Python, `async`/`await` and the basics of HTTP.
#
# | term | means |
# |---|---|
# | token | a piece of text that a model reads or writes at once; a chunk of a stream may carry none, one or several |
# | SSE | server-sent events: a text format for streams over HTTP |
# | TTFT | time to first token: from the moment at which the request *should* be sent to its first piece of text |
# | TPOT | time per output token after the first one |
# | E2EL | end-to-end latency: from the moment at which the request should be sent to its end |
# | SLO | service level objective: upper limits that a request must keep to be useful |
# | goodput | requests per second that kept the SLO |
#
# **How it is graded.** Only the cells of the ten tasks and the one cell of imports and helpers count. Cells with the
# course's classes are replaced by the original when grading; all others are yours. The cell `check(...)` after each
# task runs its public checks. Hidden checks look at the same rules on other inputs. One call may take 20 s of wall
# time. Times are seconds, as floats, everywhere.

# %% given="types"
import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import httpx


@dataclass(frozen=True)
class ServerConfig:
    """How a server is to be started. `None`: leave the choice to vLLM."""

    model: str
    served_model_name: str | None = None
    host: str | None = None
    port: int | None = None
    dtype: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    block_size: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int | None = None
    enforce_eager: bool = False
    enable_prefix_caching: bool | None = None
    api_key: str | None = None


@dataclass(frozen=True)
class KVCapacity:
    """What vLLM logs about its KV cache: room for `tokens`, or for `concurrency` requests of `max_model_len` tokens."""

    tokens: int
    max_model_len: int
    concurrency: float


@dataclass(frozen=True)
class Usage:
    """Tokens, as the server counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Delta:
    """One piece of a streamed answer: new text (maybe none), why it ended (last piece of text), what it cost (at the end)."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None


class ServerError(Exception):
    """The server answered with an error. `status` is its number: the HTTP status, or the `code` of an error in a stream."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class StreamBroken(Exception):
    """The stream ended before `[DONE]`."""


@dataclass(frozen=True)
class RequestRecord:
    """One request of a load test. Times count from the start of the test; `None` where it did not come so far.

    `output_tokens` is what the server counted. `error` is `None` for a request that succeeded.
    """

    scheduled_s: float
    started_s: float | None
    first_token_s: float | None
    finished_s: float | None
    output_tokens: int
    error: str | None


@dataclass(frozen=True)
class Slo:
    """Upper limits in seconds; a request that equals a limit keeps it."""

    ttft_s: float
    tpot_s: float
    e2el_s: float


@dataclass(frozen=True)
class Summary:
    """A load test in numbers. Rates are per second; `ttft_s`, `tpot_s`, `e2el_s` map "mean", "p50", "p99" to seconds."""

    completed: int
    failed: int
    request_throughput: float
    output_throughput: float
    goodput: float
    ttft_s: dict[str, float]
    tpot_s: dict[str, float]
    e2el_s: dict[str, float]


# %% given="drivers"
# The checks call your asynchronous code through these functions.


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of waiting for it: an hour of load takes a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            timer = heapq.heappop(self._scheduled)
            timer._scheduled = False
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0]._when)
        super()._run_once()


def command(fields: dict) -> list:
    """What `serve_command` gives."""
    return list(serve_command(ServerConfig(**fields)))


def capacity(log: str) -> list:
    """The fields of `kv_capacity`."""
    found = kv_capacity(log)
    return [found.tokens, found.max_model_len, found.concurrency]


def metrics(text: str) -> list:
    """What `parse_metrics` gives, as a list."""
    return [[name, labels, value] for (name, labels), value in parse_metrics(text).items()]


def chat(
    url: str, messages: list, model: str, api_key: str | None, params: dict, report: Callable | None = None
) -> list:
    """All deltas of `stream_chat`, as lists. `report` is called with each text at once."""

    async def run() -> list:
        deltas = []
        async with httpx.AsyncClient(timeout=15) as http:
            async for delta in stream_chat(http, url, messages, model, api_key=api_key, **params):
                usage = delta.usage and [delta.usage.prompt_tokens, delta.usage.completion_tokens]
                deltas.append([delta.text, delta.finish_reason, usage])
                if report is not None:
                    report(delta.text)
        return deltas

    return asyncio.run(run())


def chat_and_leave(url: str, messages: list, model: str, wait: Callable) -> str:
    """The first text of an answer; then it is not read any further, and `wait` is called while the client is still open."""

    async def run() -> str:
        async with httpx.AsyncClient(timeout=15) as http:
            stream = stream_chat(http, url, messages, model)
            async for delta in stream:
                if delta.text:
                    break
            await stream.aclose()
            for _ in range(100):
                await asyncio.sleep(0.02)
                if wait():
                    break
            return delta.text

    return asyncio.run(run())


def arrivals_and_generator(n: int, rate: float, seed: int) -> list:
    """The times of `poisson_arrivals`, and whether the global generator is as it was."""
    import random as generator

    before = generator.getstate()
    times = poisson_arrivals(n, rate, seed)
    return [times, generator.getstate() == before]


def load(arrivals: list, max_concurrency: int | None, timeout_s: float | None, plan: Callable) -> list:
    """The records of `run_load` in virtual time. `plan(index, now)` says what happens to a request that is sent now."""

    async def send(index: int) -> AsyncIterator[Delta]:
        for pause_s, text, tokens, error in plan(index, asyncio.get_running_loop().time()):
            await asyncio.sleep(pause_s)
            if error is not None:
                raise ServerError(500, error)
            yield Delta(text, None, None if tokens is None else Usage(1, tokens))

    loop = VirtualLoop()
    try:
        records = loop.run_until_complete(
            run_load(send, arrivals, max_concurrency=max_concurrency, timeout_s=timeout_s)
        )
    finally:
        loop.close()
    return [[r.scheduled_s, r.started_s, r.first_token_s, r.finished_s, r.output_tokens, r.error] for r in records]


def load_at_a_server(url: str, number: int, max_concurrency: int | None) -> list:
    """The `output_tokens` and `error` of each record where all requests are due at once and go to a server, in real time.

    Request `i` asks for `url/i`; the length of the answer's text is its number of tokens.
    """

    async def run() -> list:
        async with httpx.AsyncClient(timeout=15) as http:

            async def send(index: int) -> AsyncIterator[Delta]:
                answer = await http.get(f"{url}/{index}")
                yield Delta(answer.text, None, Usage(1, len(answer.text)))

            return await run_load(send, [0.0] * number, max_concurrency=max_concurrency)

    return [[record.output_tokens, record.error] for record in asyncio.run(run())]


def summary(records: list, duration_s: float, slo: list) -> list:
    """The fields of `summarize`."""
    made = summarize([RequestRecord(*record) for record in records], duration_s, Slo(*slo))
    return [
        made.completed, made.failed, made.request_throughput, made.output_throughput, made.goodput,
        made.ttft_s, made.tpot_s, made.e2el_s,
    ]  # fmt: skip


# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.
import itertools
import json
import math
import random
import re
import statistics

# %% [markdown]
# ## Task 1: the command (about 10 minutes)
#
# A server is started by `vllm serve MODEL --option value ...`. Give the command as a *list*, one word per item, as
# `subprocess.Popen` takes it: a list needs no quotes, and no model name can smuggle a second command in.
#
# - The list begins with `"vllm"`, `"serve"` and the model. Options follow, in any order.
# - A field that is `None` gives no option. The option of a field is its name with dashes: `max_model_len=1024` gives
#   `"--max-model-len", "1024"`. Every item is a `str`.
# - `enforce_eager=True` gives the bare `--enforce-eager`, `False` nothing. `enable_prefix_caching` gives
#   `--enable-prefix-caching`, `--no-enable-prefix-caching`, or for `None` nothing.
# - `api_key` must not stand in the command: everybody on the machine can read it with `ps`. vLLM takes it from the
#   environment variable `VLLM_API_KEY`. So you return two things: the command, and what to add to the environment (an
#   empty dict without a key).
#
# *Example.* `ServerConfig("m", port=8001, enforce_eager=True, api_key="k")` gives `(["vllm", "serve", "m", "--port",
# "8001", "--enforce-eager"], {"VLLM_API_KEY": "k"})`.
#
# *Common mistakes:* `if value:` in place of `if value is not None:` (a value of 0 is a value, and so is `False`); one
# item `"--port 8001"`.


# %% task="serve_command"
def serve_command(config: ServerConfig) -> tuple[list[str], dict[str, str]]:
    """The command that starts the server, and what its environment needs beside the usual.

    Args:
        config: what to start.

    Returns:
        The command as a list of words, and a dict of environment variables.
    """
    ### BEGIN SOLUTION
    command = ["vllm", "serve", config.model]
    for name, value in vars(config).items():
        option = "--" + name.replace("_", "-")
        if name in ("model", "api_key") or value is None:
            continue
        if name == "enforce_eager":
            command += [option] if value else []
        elif name == "enable_prefix_caching":
            command.append(option if value else f"--no-{option[2:]}")
        else:
            command += [option, str(value)]
    return command, {} if config.api_key is None else {"VLLM_API_KEY": config.api_key}
    ### END SOLUTION


# %% [markdown]
# ## Task 2: what the log says (about 10 minutes)
#
# At its start vLLM measures how many tokens fit into its KV cache, and logs it. This is from a real server
# (SmolLM2-135M, 1 GiB of cache, on a CPU; on a GPU it says `GPU KV cache size`):
#
# ```
# INFO [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens, Maximum concurrency for 1,024 tokens per request: 45.50x
# ```
#
# So 46,592 tokens fit, which is 45.5 requests of the longest allowed length (1,024). Older versions write the two
# parts on two lines. Your function finds them in a whole log, among any other lines. A server that was started again
# writes them again: the last ones count (each start in the tests writes both).


# %% task="kv_capacity"
def kv_capacity(log: str) -> KVCapacity:
    """What the last start in `log` says about the KV cache.

    Raises:
        ValueError: the log does not say the size, or not the concurrency.
    """
    ### BEGIN SOLUTION
    sizes = re.findall(r"KV cache size: ([\d,]+) tokens", log)
    most = re.findall(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d,.]+)x", log)
    if not sizes or not most:
        raise ValueError("the log says nothing about the KV cache")
    length, concurrency = most[-1]
    return KVCapacity(
        int(sizes[-1].replace(",", "")), int(length.replace(",", "")), float(concurrency.replace(",", ""))
    )
    ### END SOLUTION


# %% [markdown]
# ## Task 3: server-sent events (about 40 minutes)
#
# A streamed answer is a text in UTF-8, in which events are separated by empty lines:
#
# ```
# : a comment
# data: {"choices": [...]}
#
# data: [DONE]
#
# ```
#
# The rules (of the WHATWG's HTML standard, section "Server-sent events", without those for reconnecting):
#
# - A line ends with `\n`, `\r\n` or `\r`.
# - An empty line ends an event. If the event had lines `data`, its value is these joined by `\n`; else nothing comes
#   of it.
# - A line that begins with `:` is a comment. Otherwise the field's name goes up to the first `:`; *one* space after
#   that is not part of the value. A line without `:` is a name with an empty value: `data` alone gives an event `""`.
#   Of the fields only `data` matters here; `event`, `id`, `retry` and unknown ones are ignored.
# - A byte order mark (bytes `EF BB BF`) at the very beginning is ignored.
# - An event that is not ended by an empty line is *not* an event: the connection broke in the middle of it.
#
# The network cuts this text into chunks *anywhere*: between `\r` and `\n`, or in the middle of a character (`é` has
# two bytes). `feed` gets the chunks one by one and returns the values of the events that are complete by now.
#
# *Example.* `feed(b"data: a\r")` → `[]`, `feed(b"\ndata: b\n")` → `[]`, `feed(b"\n: x\n\ndata:c\n\nda")` → `["a\nb",
# "c"]`. After `\r` you may give an event at once or when you have seen whether a `\n` follows: both are right.
#
# *Common mistakes:* `chunk.decode()` for each chunk; splitting at `"\n\n"` only; `str.splitlines()`, which also
# splits at `\u2028` and seven other characters that may stand in an answer; `strip()`, which eats spaces of the text.


# %% task="SSEDecoder"
class SSEDecoder:
    """Takes the bytes of an event stream in chunks, and gives the data of its events."""

    def __init__(self) -> None:
        ### BEGIN SOLUTION
        self._line = bytearray()
        self._data: list[str] = []
        self._after_cr = False
        self._first = True
        ### END SOLUTION

    def feed(self, chunk: bytes) -> list[str]:
        """The data of all events that `chunk` completes, in order."""
        ### BEGIN SOLUTION
        events = []
        for byte in chunk:
            if byte == 10 and self._after_cr:
                self._after_cr = False
                continue
            self._after_cr = byte == 13
            if byte in (10, 13):
                value = self._end_of_line()
                if value is not None:
                    events.append(value)
            else:
                self._line.append(byte)
        return events

    def _end_of_line(self) -> str | None:
        line = bytes(self._line)
        self._line.clear()
        if self._first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        text = line.decode("utf-8", errors="replace")
        if not text:
            value = "\n".join(self._data) if self._data else None
            self._data = []
            return value
        name, _, value = text.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        return None
        ### END SOLUTION


# %% [markdown]
# ## Task 4: stream a chat (about 60 minutes)
#
# An asynchronous generator that asks for a chat completion and yields each piece as soon as it is there.
#
# - It POSTs to `f"{base_url}/chat/completions"`. The body is JSON with `model`, `messages`, `"stream": true`,
#   `"stream_options": {"include_usage": true}` (without it a stream does not say what it cost), and all of `params`.
# - With an `api_key` it sends the header `Authorization: Bearer KEY`, without one none.
# - A status other than 200 is a `ServerError(status, message)`; the message is `error.message` of the JSON body. If
#   the body is no such JSON, it is the body's text.
# - Every event but `[DONE]` is JSON. One with a key `error` is an error in the middle of the stream:
#   `ServerError(error["code"], error["message"])`. Any other becomes exactly one `Delta`: `text` is
#   `choices[0].delta.content` (missing or null: `""`), `finish_reason` that of `choices[0]`. The last one has empty
#   `choices` and a `usage`.
# - `[DONE]` ends the generator, whatever comes after it. A stream that ends without it is a `StreamBroken`; so is a
#   connection that breaks in the middle of it (`httpx.TransportError` while reading). Where no answer has begun yet,
#   httpx's own error may pass.
# - Whoever stops reading closes the generator, and with it the connection: a server goes on computing for clients
#   that it believes to be there.
#
# This is a real server's answer to "What is the capital of France?", shortened:
#
# ```
# data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}
# data: {"choices":[{"index":0,"delta":{"content":"The"},"finish_reason":null}]}
# ... " capital", " of", " France", " is", " Paris", "."
# data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop","stop_reason":null}]}
# data: {"choices":[],"usage":{"prompt_tokens":37,"total_tokens":45,"completion_tokens":8}}
# data: [DONE]
# ```
#
# Ten events before `[DONE]`, seven with text, and 8 tokens: the one that ends the answer has no text. **Chunks are
# not tokens.** A server may also put several tokens into one chunk.
#
# *Hint:* `async with http.stream("POST", ...) as response:` closes the connection when the generator ends, in
# whatever way; `response.aiter_bytes()` gives chunks, `await response.aread()` the whole body of an error.


# %% task="stream_chat"
async def stream_chat(
    http: httpx.AsyncClient,
    base_url: str,
    messages: list[dict],
    model: str,
    api_key: str | None = None,
    **params: object,
) -> AsyncIterator[Delta]:
    """Ask the server at `base_url` (".../v1") for an answer to `messages` and yield its pieces.

    Args:
        http: makes the connections.
        base_url: what the paths of the API are appended to, without a slash at its end.
        messages: the conversation, as the API wants it.
        model: the model's name.
        api_key: the server's key, if it wants one.
        params: further fields of the request, `temperature=0` for instance.

    Raises:
        ServerError: the server refused, or failed in the middle.
        StreamBroken: the stream ended before `[DONE]`.
    """
    ### BEGIN SOLUTION
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **params}
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    async with http.stream("POST", f"{base_url}/chat/completions", json=body, headers=headers) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode("utf-8", errors="replace")
            try:
                message = json.loads(text)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = text
            raise ServerError(response.status_code, message)
        decoder = SSEDecoder()
        try:
            async for chunk in response.aiter_bytes():
                for data in decoder.feed(chunk):
                    if data == "[DONE]":
                        return
                    event = json.loads(data)
                    if "error" in event:
                        raise ServerError(event["error"]["code"], event["error"]["message"])
                    usage = event.get("usage")
                    counted = Usage(usage["prompt_tokens"], usage["completion_tokens"]) if usage else None
                    choice = event["choices"][0] if event["choices"] else {}
                    text = choice.get("delta", {}).get("content") or ""
                    yield Delta(text, choice.get("finish_reason"), counted)
        except httpx.TransportError as error:
            raise StreamBroken(str(error)) from error
        raise StreamBroken("the stream ended before [DONE]")
    ### END SOLUTION


# %% [markdown]
# ## Task 5: when requests arrive (about 15 minutes)
#
# People do not wait for each other: they come at random. The usual model is a Poisson process: the gaps between
# arrivals are independent and exponentially distributed with mean $1/\text{rate}$.
#
# `poisson_arrivals(n, rate, seed)` gives the `n` times of arrival, in seconds from the start, ascending. The first
# one comes after the first gap. A rate of `math.inf` means that all come at once, at 0.0. The same seed gives the
# same times, and the global generator (`random.random()`) is neither used nor changed: use `random.Random(seed)` or
# `numpy.random.default_rng(seed)`.
#
# *Example.* With rate 2 the gaps are 0.5 s on average; 13.5 % of them are longer than 1 s ($e^{-2}$).


# %% task="poisson_arrivals"
def poisson_arrivals(n: int, rate: float, seed: int) -> list[float]:
    """`n` times of arrival at `rate` requests per second, as Python floats.

    Raises:
        ValueError: `n` is negative or `rate` is not above 0. The text names the argument.
    """
    ### BEGIN SOLUTION
    if n < 0:
        raise ValueError("n must not be negative")
    if not rate > 0:
        raise ValueError("rate must be above 0")
    draw = random.Random(seed)
    times, now = [], 0.0
    for _ in range(n):
        now += 0.0 if math.isinf(rate) else draw.expovariate(rate)
        times.append(now)
    return times
    ### END SOLUTION


# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(6, 1.8))
ax.eventplot([poisson_arrivals(40, 4.0, seed=1), [i / 4 for i in range(1, 41)]], linelengths=0.8)
ax.set(
    yticks=[0, 1], yticklabels=["Poisson", "even gaps"], xlabel="seconds", title="40 arrivals, 4 per second on average"
)
plt.show()

# %% [markdown]
# ## Task 6: the load test (about 60 minutes)
#
# `run_load` sends request `i` at the time `arrivals[i]`, **whether or not earlier ones have been answered**. That is
# an *open loop*. A *closed loop*, which waits for an answer before it sends the next request, slows down with the
# server and so hides that the server is slow.
#
# - `send(i)` gives an asynchronous iterator of `Delta`s. A request begins when you start to iterate (`started_s`),
#   and ends when the iterator does (`finished_s`). `first_token_s` is when the first delta *with text* came.
#   `output_tokens` is `usage.completion_tokens` of the delta that has a usage (0 if none has), not the number of
#   deltas.
# - At most `max_concurrency` requests are on their way at once (`None`: no limit). The others wait, first come, first
#   served (of equal arrivals the first in the list). `scheduled_s` stays what it was: **the wait counts**, because a
#   user would wait too.
# - A request that has not ended `timeout_s` after its `scheduled_s` is cancelled, with the error `"timeout"` (`None`:
#   no limit). One that raises has the error `"ServerError: 500: no"`: the class's name, `": "`, the exception's text.
#   Either way `finished_s` is `None`, what else is known (the other times, the tokens) is kept, and all
#   other requests go on. One that ends in the very moment of its deadline may count as either.
# - All times count from the moment at which `run_load` is called, by `asyncio.get_running_loop().time()`; most checks
#   have a loop whose time jumps, one has a real server. The records stand in the order of `arrivals`.
#
# *Example.* `arrivals=[0.0, 1.0]`, `max_concurrency=1`, every answer takes 3 s and has its text after 1 s: the second
# request is scheduled at 1, starts at 3, has its first text at 4 and ends at 6. Its TTFT is 3 s, not 1 s.
#
# *Hint:* one task per request (`asyncio.create_task`, or a `TaskGroup`), `asyncio.Semaphore`, `asyncio.timeout_at`.


# %% task="run_load"
async def run_load(
    send: Callable[[int], AsyncIterator[Delta]],
    arrivals: list[float],
    *,
    max_concurrency: int | None = None,
    timeout_s: float | None = None,
) -> list[RequestRecord]:
    """Send `len(arrivals)` requests at their times and record what came of each.

    Args:
        send: gives the answer to request `i`, piece by piece.
        arrivals: when each is to be sent, in seconds from now, ascending.
        max_concurrency: how many may be on their way at once.
        timeout_s: how long after its time of arrival each is given up.
    """
    ### BEGIN SOLUTION
    loop = asyncio.get_running_loop()
    begin = loop.time()
    slots = asyncio.Semaphore(max_concurrency or max(1, len(arrivals)))

    async def request(index: int, scheduled: float) -> RequestRecord:
        started = first = finished = error = None
        tokens = 0
        await asyncio.sleep(begin + scheduled - loop.time())
        try:
            async with asyncio.timeout_at(None if timeout_s is None else begin + scheduled + timeout_s), slots:
                started = loop.time() - begin
                async for delta in send(index):
                    if delta.text and first is None:
                        first = loop.time() - begin
                    if delta.usage is not None:
                        tokens = delta.usage.completion_tokens
                finished = loop.time() - begin
        except TimeoutError:
            error = "timeout"
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        return RequestRecord(scheduled, started, first, finished, tokens, error)

    return list(await asyncio.gather(*(request(i, when) for i, when in enumerate(arrivals))))
    ### END SOLUTION


# %% [markdown]
# ## Task 7: what it means (about 30 minutes)
#
# The definitions are those of `vllm bench serve`. Over the requests that *succeeded* (`error` is `None`):
#
# - TTFT = `first_token_s` - `scheduled_s`; E2EL = `finished_s` - `scheduled_s`.
# - TPOT = (E2EL - TTFT) / (output tokens - 1): the first token is paid by the TTFT. A request with fewer than two
#   tokens has no TPOT and is left out of its statistics.
# - `request_throughput` = requests / `duration_s`, `output_throughput` = output tokens / `duration_s`: the total over
#   the wall time, not a mean of every request's own speed.
# - `goodput`: requests per second that kept *all three* limits (`<=`). One without a TPOT counts with a TPOT of 0.
# - `"mean"`, `"p50"`, `"p99"` of each: percentiles are interpolated linearly, as numpy does. Without any value all
#   three are `math.nan`.
#
# A failed request counts in `failed`, and nowhere else. *Example.* Two requests scheduled at 0 with first text at 0.5
# and 1.0 s, ends at 3.0 and 2.0 s and 5 and 1 tokens, in 4 s: TPOT 0.625 s (of the first only), output throughput 6 /
# 4 = 1.5 tokens per second, p50 of the TTFT 0.75 s, p99 0.995 s. With limits of 1 s, 0.4 s and 9 s only the second is
# good: goodput 0.25 per second.


# %% task="summarize"
def summarize(records: list[RequestRecord], duration_s: float, slo: Slo) -> Summary:
    """The load test `records`, which took `duration_s` seconds, in numbers.

    Every record without an error has at least one piece of text, so a `first_token_s` and a `finished_s`.

    Raises:
        ValueError: `duration_s` is not above 0. The text names it.
    """
    ### BEGIN SOLUTION
    if not duration_s > 0:
        raise ValueError("duration_s must be above 0")

    def statistic(values: list[float]) -> dict[str, float]:
        if not values:
            return dict.fromkeys(("mean", "p50", "p99"), math.nan)
        ordered = sorted(values)

        def percentile(share: float) -> float:
            place = share * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

        return {"mean": statistics.fmean(ordered), "p50": percentile(0.5), "p99": percentile(0.99)}

    done = [record for record in records if record.error is None]
    ttft = [record.first_token_s - record.scheduled_s for record in done]
    e2el = [record.finished_s - record.scheduled_s for record in done]
    tpot = [
        (total - first) / (record.output_tokens - 1) if record.output_tokens > 1 else None
        for record, first, total in zip(done, ttft, e2el, strict=True)
    ]
    good = sum(
        first <= slo.ttft_s and (each or 0.0) <= slo.tpot_s and total <= slo.e2el_s
        for first, each, total in zip(ttft, tpot, e2el, strict=True)
    )
    return Summary(
        len(done),
        len(records) - len(done),
        len(done) / duration_s,
        sum(record.output_tokens for record in done) / duration_s,
        good / duration_s,
        statistic(ttft),
        statistic([each for each in tpot if each is not None]),
        statistic(e2el),
    )
    ### END SOLUTION


# %% [markdown]
# Now the picture that every load test ends with: latency over load. The server here is imaginary: it computes eight
# requests at a time, 0.5 s each, so it can do 16 per second. Watch what happens near that.

# %%
slo = Slo(ttft_s=1.0, tpot_s=0.2, e2el_s=2.0)
rates, p50, p99, good = [2, 4, 8, 10, 12, 13, 14, 15, 16, 18], [], [], []
for rate in rates:
    plan = lambda index, now: [(0.1, "a", None, None), (0.4, "b", 5, None)]  # noqa: E731
    records = load(poisson_arrivals(400, rate, seed=3), 8, None, plan)
    numbers = summary(records, max(record[3] for record in records), [slo.ttft_s, slo.tpot_s, slo.e2el_s])
    p50.append(numbers[7]["p50"])
    p99.append(numbers[7]["p99"])
    good.append(numbers[4])

fig, ax = plt.subplots(figsize=(6, 3.5))
ax.plot(rates, p50, "o-", label="E2EL p50")
ax.plot(rates, p99, "s-", label="E2EL p99")
ax.axhline(slo.e2el_s, color="tab:red", linestyle="--", label="SLO")
ax.set(xlabel="requests per second", ylabel="seconds", yscale="log", title="A server that can do 16 per second")
right = ax.twinx()
right.fill_between(rates, good, alpha=0.15, color="tab:green")
right.set_ylabel("goodput (requests per second)")
ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# ## Task 8: read the metrics (about 20 minutes)
#
# `GET /metrics` of a vLLM server gives text in Prometheus' format, one sample per line:
#
# ```
# # HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# # TYPE vllm:kv_cache_usage_perc gauge
# vllm:kv_cache_usage_perc{engine="0",model_name="SmolLM2-135M-Instruct"} 0.0
# vllm:generation_tokens_total{engine="0",model_name="SmolLM2-135M-Instruct"} 8.0
# ```
#
# Names change between versions, and dashboards silently show nothing then. In 0.32 it is `vllm:kv_cache_usage_perc`
# and `vllm:inter_token_latency_seconds`; published notebooks still say `vllm:gpu_cache_usage_perc` and
# `vllm:time_per_output_token_seconds`.
#
# `parse_metrics` gives a dict. Its keys are pairs `(name, labels)`, where `labels` is a tuple of pairs `(label,
# value)` sorted by label; its values are floats. Lines that begin with `#`, and empty ones, are skipped. A sample may
# have no labels at all (`up 1`), or a time stamp behind its value, which is ignored. In a label's value `\"` is a
# quote, `\\` a backslash and `\n` a new line, and there is no other escape; it may hold commas, braces, spaces and
# any other character but those three. Values are written as Python's `float` reads them (`1e+06`, `+Inf`, `NaN`).


# %% task="parse_metrics"
def parse_metrics(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples of `text`: (name, labels sorted by name) to value.

    Every line of `text` is a correct one.
    """
    ### BEGIN SOLUTION
    unescaped = {'\\"': '"', "\\\\": "\\", "\\n": "\n"}
    samples = {}
    for line in text.split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        name = re.match(r"[a-zA-Z_:][a-zA-Z0-9_:]*", line).group()
        labels, rest = {}, line[len(name) :]
        if rest.startswith("{"):
            pattern = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?\s*')
            rest = rest[1:].lstrip()
            while not rest.startswith("}"):
                found = pattern.match(rest)
                labels[found[1]] = re.sub(r"\\.", lambda each: unescaped.get(each[0], each[0]), found[2])
                rest = rest[found.end() :]
            rest = rest[1:]
        samples[name, tuple(sorted(labels.items()))] = float(rest.split()[0])
    return samples
    ### END SOLUTION


# %% [markdown]
# ## Task 9: from counters to rates (about 10 minutes)
#
# A counter (`..._total`) only grows, until the server is started again: then it begins at 0. From samples `(time,
# value)` you get the average growth per second: the sum of all increases, divided by the time from the first sample
# to the last. A value below the one before it means a restart; the increase is then the new value itself.
#
# *Example.* `[(0, 100), (10, 160), (20, 30)]`: 60, then a restart and 30: 90 in 20 s, 4.5 per second.


# %% task="counter_rate"
def counter_rate(samples: list[tuple[float, float]]) -> float:
    """Average growth per second of a counter, given as (time, value), times ascending.

    Raises:
        ValueError: there are fewer than two samples, or a time is not after the one before it.
    """
    ### BEGIN SOLUTION
    if len(samples) < 2:
        raise ValueError("samples must be at least two")
    grown = 0.0
    for (before_s, before), (after_s, after) in itertools.pairwise(samples):
        if not after_s > before_s:
            raise ValueError("samples must be in the order of their times")
        grown += after if after < before else after - before
    return grown / (samples[-1][0] - samples[0][0])
    ### END SOLUTION


# %% [markdown]
# ## Task 10: quantiles of a histogram (about 25 minutes)
#
# vLLM gives latencies as histograms: for each upper bound `le` how many values were at most that large. These are
# counts from the first bucket on (*cumulative*), and the last bound is `+Inf`. `histogram_quantile(q, buckets)`
# estimates below which value the share `q` lies, as Prometheus does (`promql/quantile.go`):
#
# - The rank is `q` × (count of the `+Inf` bucket). The quantile lies in the first bucket whose count is at least the
#   rank.
# - Inside it values are taken to be spread evenly: go linearly from its lower bound to its upper bound, by how far
#   the rank has come from the count before it to its own (0/0 is not tested). The lower bound is the upper one of the
#   bucket before; of the first bucket it is 0 (if its upper bound is 0 or less, the result is that bound).
# - If it lies in the `+Inf` bucket, the result is the last finite bound: nobody knows more.
# - `math.nan` if there are no values, no `+Inf` bucket, or fewer than two buckets. `q` below 0 gives `-math.inf`,
#   above 1 `math.inf`.
#
# *Example.* Buckets `(0.1, 2)`, `(0.5, 6)`, `(inf, 8)`; `q=0.5`: the rank is 4, in the second bucket; $(4-2)/(6-2)$
# of the way from 0.1 to 0.5, so 0.3. `q=0.9`: rank 7.2, in the last one: 0.5.


# %% task="histogram_quantile"
def histogram_quantile(q: float, buckets: list[tuple[float, float]]) -> float:
    """The value below which the share `q` lies. `buckets` are (upper bound, cumulative count), in any order."""
    ### BEGIN SOLUTION
    ordered = sorted(buckets)
    if len(ordered) < 2 or ordered[-1][0] != math.inf or not ordered[-1][1] > 0 or math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    rank = q * ordered[-1][1]
    index = next(i for i, (_, count) in enumerate(ordered) if count >= rank)
    if index == len(ordered) - 1:
        return ordered[-2][0]
    upper, count = ordered[index]
    if index == 0 and upper <= 0:
        return upper
    lower, below = ordered[index - 1] if index else (0.0, 0.0)
    return lower + (upper - lower) * ((rank - below) / (count - below) if count > below else 0.0)
    ### END SOLUTION


# %% [markdown]
# If you have a server (`vllm serve HuggingFaceTB/SmolLM2-135M-Instruct`), try your client on it. Without one this
# cell says so.

# %%
try:
    deltas = chat(
        "http://127.0.0.1:8000/v1",
        [{"role": "user", "content": "What is the capital of France?"}],
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        None,
        {"temperature": 0, "max_tokens": 16},
    )
    print("".join(text for text, _, _ in deltas), deltas[-1])
except httpx.ConnectError as error:
    print("No server here:", error)
