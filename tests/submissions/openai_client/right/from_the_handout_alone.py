"""Solved by somebody who had nothing but the handout and the public checks."""

# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.
import contextlib
import itertools
import json
import math
import random
import re
from dataclasses import fields


def error_message(text: str) -> str:
    """`error.message` of the JSON body of an error; the body itself if it has none."""
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return text
    return message if isinstance(message, str) else text


def to_delta(event: dict) -> Delta:
    """One event of a chat stream as a Delta. Raises ServerError for an event that is an error."""
    if "error" in event:
        raise ServerError(event["error"]["code"], event["error"]["message"])
    text, finish_reason, usage = "", None, event.get("usage")
    if event.get("choices"):
        choice = event["choices"][0]
        text = (choice.get("delta") or {}).get("content") or ""
        finish_reason = choice.get("finish_reason")
    return Delta(text, finish_reason, usage and Usage(usage["prompt_tokens"], usage["completion_tokens"]))


def percentile(ordered: list[float], share: float) -> float:
    """Linear interpolation between the two neighbours, as numpy does."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def statistics_of(values: list[float]) -> dict[str, float]:
    """Mean, median and 99th percentile, nan without values."""
    if not values:
        return {"mean": math.nan, "p50": math.nan, "p99": math.nan}
    ordered = sorted(values)
    return {"mean": math.fsum(ordered) / len(ordered), "p50": percentile(ordered, 0.5), "p99": percentile(ordered, 0.99)}


LABEL = re.compile(r'[\s,]*([^\s=,{}"]+)\s*=\s*"((?:[^"\\]|\\.)*)"')
ESCAPES = {"n": "\n", '"': '"', "\\": "\\"}


# %% task="serve_command"
def serve_command(config: ServerConfig) -> tuple[list[str], dict[str, str]]:
    """The command that starts the server, and what its environment needs beside the usual.

    Args:
        config: what to start.

    Returns:
        The command as a list of words, and a dict of environment variables.
    """
    command, environment = ["vllm", "serve", config.model], {}
    for field in fields(config):
        value = getattr(config, field.name)
        option = "--" + field.name.replace("_", "-")
        if field.name == "model" or value is None:
            continue
        if field.name == "api_key":
            environment["VLLM_API_KEY"] = value
        elif field.name == "enforce_eager":
            if value:
                command.append(option)
        elif field.name == "enable_prefix_caching":
            command.append(option if value else option.replace("--", "--no-", 1))
        else:
            command += [option, str(value)]
    return command, environment


# %% task="kv_capacity"
def kv_capacity(log: str) -> KVCapacity:
    """What the last start in `log` says about the KV cache.

    Raises:
        ValueError: the log does not say the size, or not the concurrency.
    """
    sizes = re.findall(r"KV cache size: ([\d,]+) tokens", log)
    rates = re.findall(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d,.]+)x", log)
    if not sizes:
        raise ValueError("the log does not say the size of the KV cache")
    if not rates:
        raise ValueError("the log does not say the maximum concurrency")
    (length, concurrency) = rates[-1]
    number = lambda text: text.replace(",", "")  # noqa: E731
    return KVCapacity(int(number(sizes[-1])), int(number(length)), float(number(concurrency)))


# %% task="SSEDecoder"
class SSEDecoder:
    """Takes the bytes of an event stream in chunks, and gives the data of its events."""

    def __init__(self) -> None:
        self._line = []  # pieces of the line that has not ended
        self._data = []  # values of the lines `data` of the event that has not ended
        self._first = True  # no line has ended so far: a byte order mark may come
        self._after_cr = False  # the last byte was a carriage return; a line feed now belongs to it

    def feed(self, chunk: bytes) -> list[str]:
        """The data of all events that `chunk` completes, in order."""
        if not chunk:
            return []
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
            if not chunk:
                return []
        self._after_cr = chunk.endswith(b"\r")
        head, *rest = re.split(rb"\r\n|\n|\r", chunk)
        self._line.append(head)
        events = []
        for piece in rest:
            line = b"".join(self._line)
            self._line = [piece]
            self._end_line(line, events)
        return events

    def _end_line(self, line: bytes, events: list[str]) -> None:
        if self._first:
            self._first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                events.append("\n".join(self._data))
                self._data = []
            return
        name, _, value = line.partition(b":")  # a comment has the name b""
        if name == b"data":
            self._data.append(value.removeprefix(b" ").decode("utf-8", errors="replace"))


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
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **params,
    }
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    async with http.stream("POST", f"{base_url}/chat/completions", json=body, headers=headers) as response:
        if response.status_code != 200:
            try:
                await response.aread()
            except httpx.TransportError as error:
                raise StreamBroken(f"in the middle of an error {response.status_code}: {error}") from error
            raise ServerError(response.status_code, error_message(response.text))
        decoder = SSEDecoder()
        chunks = response.aiter_bytes()
        while True:
            try:
                chunk = await anext(chunks, None)
            except httpx.TransportError as error:
                raise StreamBroken(f"the connection broke: {error!r}") from error
            if chunk is None:
                raise StreamBroken("the stream ended before [DONE]")
            for data in decoder.feed(chunk):
                if data == "[DONE]":
                    return
                yield to_delta(json.loads(data))


# %% task="poisson_arrivals"
def poisson_arrivals(n: int, rate: float, seed: int) -> list[float]:
    """`n` times of arrival at `rate` requests per second, as Python floats.

    Raises:
        ValueError: `n` is negative or `rate` is not above 0. The text names the argument.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, but is {n}")
    if not rate > 0:
        raise ValueError(f"rate must be above 0, but is {rate}")
    if rate == math.inf:
        return [0.0] * n
    generator = random.Random(seed)
    return list(itertools.accumulate(generator.expovariate(rate) for _ in range(n)))


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
    loop = asyncio.get_running_loop()
    begin = loop.time()
    slots = contextlib.nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
    records: list[RequestRecord] = [None] * len(arrivals)

    async def request(index: int) -> None:
        started = first = finished = error = None
        tokens = 0
        deadline = None if timeout_s is None else begin + arrivals[index] + timeout_s
        try:
            async with asyncio.timeout_at(deadline) as limit:
                try:
                    async with slots:
                        stream = send(index)
                        started = loop.time() - begin
                        async for delta in stream:
                            if delta.text and first is None:
                                first = loop.time() - begin
                            if delta.usage is not None:
                                tokens = delta.usage.completion_tokens
                        finished = loop.time() - begin
                except Exception as problem:  # a TimeoutError of the request itself too
                    error = f"{type(problem).__name__}: {problem}"
        except TimeoutError:
            pass
        if limit.expired():
            finished, error = None, "timeout"
        records[index] = RequestRecord(float(arrivals[index]), started, first, finished, tokens, error)

    # Timers of the same moment fire in any order, so one loop starts all requests, in the order of their arrival.
    async with asyncio.TaskGroup() as group:
        for index, arrival in enumerate(arrivals):
            wait = begin + arrival - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(request(index))
    return records


# %% task="summarize"
def summarize(records: list[RequestRecord], duration_s: float, slo: Slo) -> Summary:
    """The load test `records`, which took `duration_s` seconds, in numbers.

    Every record without an error has at least one piece of text, so a `first_token_s` and a `finished_s`.

    Raises:
        ValueError: `duration_s` is not above 0. The text names it.
    """
    if not duration_s > 0:
        raise ValueError(f"duration_s must be above 0, but is {duration_s}")
    done = [record for record in records if record.error is None]
    ttfts, tpots, e2els, good = [], [], [], 0
    for record in done:
        ttft = record.first_token_s - record.scheduled_s
        e2el = record.finished_s - record.scheduled_s
        tpot = 0.0
        if record.output_tokens >= 2:
            tpot = (e2el - ttft) / (record.output_tokens - 1)
            tpots.append(tpot)
        ttfts.append(ttft)
        e2els.append(e2el)
        good += ttft <= slo.ttft_s and tpot <= slo.tpot_s and e2el <= slo.e2el_s
    return Summary(
        completed=len(done),
        failed=len(records) - len(done),
        request_throughput=len(done) / duration_s,
        output_throughput=sum(record.output_tokens for record in done) / duration_s,
        goodput=good / duration_s,
        ttft_s=statistics_of(ttfts),
        tpot_s=statistics_of(tpots),
        e2el_s=statistics_of(e2els),
    )


# %% task="parse_metrics"
def parse_metrics(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples of `text`: (name, labels sorted by name) to value.

    Every line of `text` is a correct one.
    """
    samples = {}
    for line in text.split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name = re.match(r"[^\s{]+", line).group()
        rest = line[len(name) :].lstrip()
        labels = {}
        if rest.startswith("{"):
            position = 1
            while not (end := re.compile(r"[\s,]*\}").match(rest, position)):
                label = LABEL.match(rest, position)
                labels[label[1]] = re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[0]), label[2])
                position = label.end()
            rest = rest[end.end() :]
        samples[name, tuple(sorted(labels.items()))] = float(rest.split()[0])
    return samples


# %% task="counter_rate"
def counter_rate(samples: list[tuple[float, float]]) -> float:
    """Average growth per second of a counter, given as (time, value), times ascending.

    Raises:
        ValueError: there are fewer than two samples, or a time is not after the one before it.
    """
    if len(samples) < 2:
        raise ValueError("a rate needs at least two samples")
    growth = 0.0
    for (before, old), (now, new) in itertools.pairwise(samples):
        if not now > before:
            raise ValueError(f"the time {now} is not after {before}")
        growth += new - old if new >= old else new
    return growth / (samples[-1][0] - samples[0][0])


# %% task="histogram_quantile"
def histogram_quantile(q: float, buckets: list[tuple[float, float]]) -> float:
    """The value below which the share `q` lies. `buckets` are (upper bound, cumulative count), in any order."""
    if math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    buckets = sorted(buckets)
    if len(buckets) < 2 or buckets[-1][0] != math.inf or not buckets[-1][1] > 0:
        return math.nan
    rank = q * buckets[-1][1]
    index = next(i for i, (_, count) in enumerate(buckets) if count >= rank)
    upper, count = buckets[index]
    if upper == math.inf:
        return buckets[index - 1][0]
    if index == 0 and upper <= 0:
        return upper
    lower, before = buckets[index - 1] if index else (0.0, 0.0)
    if count == before:  # only the first bucket, when it is empty and the rank is 0
        return lower
    return lower + (upper - lower) * (rank - before) / (count - before)
