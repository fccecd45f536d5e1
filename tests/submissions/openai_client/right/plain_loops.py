"""Plain loops, one `if` per field, a buffer of text and an incremental decoder."""

# %% helpers="helpers"
import asyncio
import codecs
import itertools
import json
import math
import random
import re
import statistics

# %% task="serve_command"
def serve_command(config):
    words = ["vllm", "serve", config.model]
    if config.enforce_eager:
        words.append("--enforce-eager")
    if config.enable_prefix_caching is True:
        words.append("--enable-prefix-caching")
    if config.enable_prefix_caching is False:
        words.append("--no-enable-prefix-caching")
    for option, value in [
        ("--tensor-parallel-size", config.tensor_parallel_size),
        ("--gpu-memory-utilization", config.gpu_memory_utilization),
        ("--block-size", config.block_size),
        ("--max-num-seqs", config.max_num_seqs),
        ("--max-model-len", config.max_model_len),
        ("--dtype", config.dtype),
        ("--port", config.port),
        ("--host", config.host),
        ("--served-model-name", config.served_model_name),
    ]:
        if value is not None:
            words.extend((option, f"{value}"))
    environment = {}
    if config.api_key is not None:
        environment["VLLM_API_KEY"] = config.api_key
    return words, environment


# %% task="kv_capacity"
def kv_capacity(log):
    tokens = longest = ratio = None
    for line in log.splitlines():
        if "KV cache size: " in line:
            tokens = int(line.split("KV cache size: ")[1].split(" tokens")[0].replace(",", ""))
        if "Maximum concurrency for " in line:
            rest = line.split("Maximum concurrency for ")[1]
            longest = int(rest.split(" tokens")[0].replace(",", ""))
            ratio = float(rest.split("per request: ")[1].split("x")[0].replace(",", ""))
    if tokens is None or ratio is None:
        raise ValueError("no capacity in this log")
    return KVCapacity(tokens=tokens, max_model_len=longest, concurrency=ratio)


# %% task="SSEDecoder"
class SSEDecoder:
    def __init__(self):
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""
        self.begun = False
        self.values = None

    def feed(self, chunk):
        self.text += self.utf8.decode(chunk)
        if not self.begun and self.text:
            self.begun = True
            if self.text[0] == "\ufeff":
                self.text = self.text[1:]
        events = []
        while True:
            ends = [at for at in (self.text.find("\n"), self.text.find("\r")) if at >= 0]
            if not ends:
                return events
            end = min(ends)
            if self.text[end] == "\r" and end + 1 == len(self.text):
                return events  # a line feed may follow
            line = self.text[:end]
            self.text = self.text[end + (2 if self.text[end : end + 2] == "\r\n" else 1) :]
            if line == "":
                if self.values is not None:
                    events.append("\n".join(self.values))
                self.values = None
            elif line == "data" or line.startswith("data:"):
                value = line[5:]
                if value.startswith(" "):
                    value = value[1:]
                self.values = [*(self.values or []), value]


# %% task="stream_chat"
async def stream_chat(http, base_url, messages, model, api_key=None, **params):
    request = http.build_request(
        "POST",
        base_url + "/chat/completions",
        json=dict(params, model=model, messages=messages, stream=True, stream_options=dict(include_usage=True)),
    )
    if api_key is not None:
        request.headers["Authorization"] = "Bearer " + api_key
    response = await http.send(request, stream=True)
    try:
        if response.status_code != 200:
            await response.aread()
            message = response.text
            try:
                body = response.json()
            except ValueError:
                body = None
            if isinstance(body, dict) and isinstance(body.get("error"), dict):
                message = body["error"]["message"]
            raise ServerError(response.status_code, message)
        decoder = SSEDecoder()
        chunks = response.aiter_raw()
        while True:
            try:
                chunk = await chunks.__anext__()
            except (StopAsyncIteration, httpx.TransportError):
                raise StreamBroken("no [DONE]") from None
            for data in decoder.feed(chunk):
                if data == "[DONE]":
                    return
                piece = json.loads(data)
                if piece.get("error"):
                    raise ServerError(piece["error"]["code"], piece["error"]["message"])
                text, reason, usage = "", None, None
                if piece["choices"]:
                    text = piece["choices"][0]["delta"].get("content") or ""
                    reason = piece["choices"][0].get("finish_reason")
                if piece.get("usage"):
                    usage = Usage(piece["usage"]["prompt_tokens"], piece["usage"]["completion_tokens"])
                yield Delta(text, reason, usage)
    finally:
        await response.aclose()


# %% task="poisson_arrivals"
def poisson_arrivals(n, rate, seed):
    if n < 0:
        raise ValueError("n is negative")
    if rate <= 0:
        raise ValueError("rate is not above 0")
    generator = random.Random(seed)
    times = []
    for _ in range(n):
        gap = 0.0 if rate == float("inf") else -math.log(1.0 - generator.random()) / rate
        times.append(times[-1] + gap if times else gap)
    return times


# %% task="histogram_quantile"
def histogram_quantile(q, buckets):
    buckets = sorted(buckets)
    if len(buckets) < 2 or buckets[-1][0] != float("inf") or buckets[-1][1] == 0:
        return float("nan")
    if q < 0:
        return float("-inf")
    if q > 1:
        return float("inf")
    rank = q * buckets[-1][1]
    low, before = 0.0, 0.0
    for number, (high, count) in enumerate(buckets):
        if count >= rank:
            if high == float("inf"):
                return low
            if number == 0 and high <= 0:
                return high
            return low + (high - low) * (rank - before) / (count - before)
        low, before = high, count
