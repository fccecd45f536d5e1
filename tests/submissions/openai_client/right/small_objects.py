"""Small objects: a decoder of lines below the one of events, a class for each request, a timeout of its own."""

# %% helpers="helpers"
import asyncio
import contextlib
import itertools
import json
import math
import random
import re
import statistics


class Lines:
    """Bytes to lines, without their ends."""

    def __init__(self):
        self.rest = b""
        self.begun = False

    def feed(self, chunk):
        self.rest += chunk
        *lines, self.rest = re.split(rb"\r\n|\n|\r(?!\n|\Z)", self.rest)
        for line in lines:
            if not self.begun:
                self.begun = True
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield line.decode("utf-8", "replace")


class Ask:
    """What goes to the server."""

    def __init__(self, base_url, api_key):
        self.url = f"{base_url}/chat/completions"
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def body(self, model, messages, params):
        return {"stream": True, "stream_options": {"include_usage": True}, "model": model, "messages": messages} | params


# %% task="SSEDecoder"
class SSEDecoder:
    def __init__(self):
        self.lines = Lines()
        self.event = []

    def feed(self, chunk):
        return [data for line in self.lines.feed(chunk) if (data := self.take(line)) is not None]

    def take(self, line):
        if line:
            if (match := re.fullmatch(r"data(?:: ?(.*))?", line, re.DOTALL)) is not None:
                self.event.append(match[1] or "")
            return None
        event, self.event = self.event, []
        return "\n".join(event) if event else None


# %% task="stream_chat"
async def stream_chat(http, base_url, messages, model, api_key=None, **params):
    ask = Ask(base_url, api_key)
    async with contextlib.AsyncExitStack() as stack:
        response = await stack.enter_async_context(
            http.stream("POST", ask.url, json=ask.body(model, messages, params), headers=ask.headers)
        )
        if response.is_error or response.status_code != 200:
            body = await response.aread()
            with contextlib.suppress(ValueError, TypeError, KeyError):
                raise ServerError(response.status_code, json.loads(body)["error"]["message"])
            raise ServerError(response.status_code, body.decode())
        decoder = SSEDecoder()
        source = aiter(response.aiter_bytes())
        while True:
            try:
                chunk = await anext(source)
            except (StopAsyncIteration, httpx.TransportError) as error:
                raise StreamBroken(repr(error)) from None
            for data in decoder.feed(chunk):
                match data if data == "[DONE]" else json.loads(data):
                    case "[DONE]":
                        return
                    case {"error": {"code": code, "message": message}}:
                        raise ServerError(code, message)
                    case {"choices": [], "usage": {"prompt_tokens": asked, "completion_tokens": said}}:
                        yield Delta("", None, Usage(asked, said))
                    case {"choices": [{"delta": delta, **rest}], **around}:
                        yield Delta(delta.get("content") or "", rest.get("finish_reason"))


# %% task="run_load"
class Running:
    def __init__(self, index, at, zero):
        self.index, self.at, self.zero = index, at, zero
        self.started = self.first = self.finished = self.error = None
        self.tokens = 0

    def now(self):
        return asyncio.get_running_loop().time() - self.zero

    async def answer(self, send):
        self.started = self.now()
        async for delta in send(self.index):
            if delta.text:
                self.first = self.now() if self.first is None else self.first
            self.tokens = delta.usage.completion_tokens if delta.usage else self.tokens
        self.finished = self.now()

    async def run(self, send, limit, timeout_s):
        await asyncio.sleep(max(0.0, self.at - self.now()))
        async with limit:
            task = asyncio.create_task(self.answer(send))
            left = None if timeout_s is None else max(0.0, self.at + timeout_s - self.now())
            done, _ = await asyncio.wait([task], timeout=left)
            if not done:
                task.cancel()
                await asyncio.wait([task])
                self.error = "timeout"
            elif (raised := task.exception()) is not None:
                self.error = f"{type(raised).__name__}: {raised}"
        return RequestRecord(self.at, self.started, self.first, self.finished, self.tokens, self.error)


async def run_load(send, arrivals, *, max_concurrency=None, timeout_s=None):
    zero = asyncio.get_running_loop().time()
    limit = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(Running(i, at, zero).run(send, limit, timeout_s)) for i, at in enumerate(arrivals)
        ]
    return [task.result() for task in tasks]
