"""A server of streamed completions whose timing is known, honest or not: the other side of the load generator's tests.

    python mock_server.py --uds /tmp/x.sock | --port 8000 [--ttft 0.1] [--tpot 0.02] [--tokens 32]

Token k of an answer is written at received + ttft + k * tpot (absolute deadlines, slept to within a loop iteration).
`model` in the request names a behaviour below; `ttft_s`, `tpot_s` and `max_tokens` set its timing; `user` names its line
in `GET /log`, where the server says when, by `time.monotonic`, it really received the request and wrote each piece: that
clock is the same for all processes on Linux, so a client can be judged on a machine of any load.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

# fmt: off
WORDS = [
    "time", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family",
    "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "government", "number", "night", "point", "home", "water", "room", "mother",
    "area",
]
# fmt: on
"""Each is one token of SmolLM2 when a blank stands before it."""


def word(prompt: str, index: int) -> str:
    """Token number `index` of the right answer to a prompt."""
    digest = hashlib.blake2s(f"{prompt}/{index}".encode(), digest_size=4).digest()
    return " " + WORDS[int.from_bytes(digest, "big") % len(WORDS)]


def right_text(prompt: str, tokens: int) -> str:
    """The right answer."""
    return "".join(word(prompt, index) for index in range(tokens))


class Reply:
    """One request, and the connection that takes its answer."""

    def __init__(self, server: Server, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.server, self.writer, self.body = server, writer, body
        self.received_s = self.loop.time()
        self.chat = path.endswith("/chat/completions")
        asked = body.get("prompt") if not self.chat else body["messages"][-1]["content"]
        self.prompt = asked if isinstance(asked, str) else json.dumps(asked)
        options = server.options
        self.tokens = int(body.get("max_tokens") or body.get("max_completion_tokens") or options.tokens)
        self.ttft_s = float(body.get("ttft_s", options.ttft))
        self.tpot_s = float(body.get("tpot_s", options.tpot))
        self.sent_s: list[float] = []
        self.number = server.requests
        server.requests += 1
        server.log[str(body.get("user", self.number))] = self

    async def until(self, time_s: float) -> None:
        await asyncio.sleep(time_s - 0.001 - self.loop.time())
        while self.loop.time() < time_s:
            await asyncio.sleep(0)

    def head(self, status: str = "200 OK", kind: str = "text/event-stream", *more: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Transfer-Encoding: chunked", *more]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def raw(self, data: bytes) -> None:
        """A chunk of HTTP."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    async def event(self, data: str) -> None:
        await self.raw(f"data: {data}\n\n".encode())

    async def piece(self, text: str, at_s: float | None = None) -> None:
        """Some text, not before `at_s`."""
        if at_s is not None:
            await self.until(at_s)
        self.sent_s.append(self.loop.time())
        await self.event(self.chunk(text))

    def chunk(self, text: str) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        choice |= {"delta": {"content": text}} if self.chat else {"text": text}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return json.dumps({"id": "x", "object": kind, "created": 0, "model": "mock", "choices": [choice]})

    def due_s(self, index: int) -> float:
        return self.received_s + self.ttft_s + index * self.tpot_s

    async def finish(self, tokens: int | None = None) -> None:
        last: dict[str, Any] = {"index": 0, "finish_reason": "length", "text": ""}
        if self.chat:
            last["delta"] = {}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head: dict[str, Any] = {"id": "x", "object": kind, "created": 0, "model": "mock"}
        await self.event(json.dumps(head | {"choices": [last]}))
        used = self.tokens if tokens is None else tokens
        usage = {"prompt_tokens": len(self.prompt.split()), "completion_tokens": used, "total_tokens": used}
        await self.event(json.dumps(head | {"choices": [], "usage": usage}))
        await self.done()

    async def done(self) -> None:
        await self.event("[DONE]")
        self.writer.write(b"0\r\n\r\n")

    async def stream(self, texts: list[str], every: int = 1) -> None:
        """Text number k at the time of token k; `every` of them at a time, when the last of them is due."""
        for start in range(0, len(texts), every):
            group = texts[start : start + every]
            await self.piece("".join(group), self.due_s(start + len(group) - 1 if start else 0))

    def words(self) -> list[str]:
        return [word(self.prompt, index) for index in range(self.tokens)]


Behaviour = Callable[[Reply], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    BEHAVIOURS[function.__name__] = function
    return function


# ------------------------------------------------------------------------------------------------ honest ones


@behaviour
async def mock(reply: Reply) -> None:
    """One token a chunk, at its time."""
    reply.head()
    await reply.stream(reply.words())
    await reply.finish()


@behaviour
async def speculative(reply: Reply) -> None:
    """Some tokens a chunk, as with speculative decoding; also S6, bundling: the last token is not earlier for it."""
    reply.head()
    await reply.stream(reply.words(), every=4)
    await reply.finish()


@behaviour
async def role_first(reply: Reply) -> None:
    """A chunk without text before the first token, as OpenAI's chat has; also S4, an empty chunk to fake TTFT."""
    reply.head()
    await reply.event(json.dumps({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
    await reply.event(reply.chunk(""))
    await reply.stream(reply.words())
    await reply.finish()


@behaviour
async def other_spelling(reply: Reply) -> None:
    """The same events with CR LF, comments, event names, a byte order mark, and cut anywhere."""
    reply.head("200 OK", "Text/Event-Stream; charset=utf-8")
    body = "\ufeff: ping\r\n\r\n" + "".join(
        f"event: message\r\nid: 1\r\ndata:{reply.chunk(text)}\r\n\r\n" for text in reply.words()
    )
    data = (body + "data: [DONE]\r\r").encode()
    for start in range(0, len(data), 7):
        await reply.raw(data[start : start + 7])
    reply.writer.write(b"0\r\n\r\n")


@behaviour
async def until_close(reply: Reply) -> None:
    """HTTP/1.0 style: no chunks, the connection's end is the body's."""
    reply.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    for text in reply.words():
        reply.writer.write(f"data: {reply.chunk(text)}\n\n".encode())
    reply.writer.write(b"data: [DONE]\n\n")
    await reply.writer.drain()
    reply.writer.close()


# ---------------------------------------------------------------------------------- dishonest ones, rows S1 to S13


@behaviour
async def cached(reply: Reply) -> None:
    """S1: a prompt that was seen before is answered at once."""
    if reply.prompt in reply.server.seen:
        reply.ttft_s = reply.tpot_s = 0.0005
    reply.server.seen.add(reply.prompt)
    await mock(reply)


@behaviour
async def truncated(reply: Reply) -> None:
    """S2: half the answer."""
    reply.tokens //= 2
    await mock(reply)


@behaviour
async def padded(reply: Reply) -> None:
    """S2: twice as many tokens, the second half at once, which halves the time per token."""
    reply.head()
    await reply.stream(reply.words())
    await reply.piece(" the" * reply.tokens)
    await reply.finish()


@behaviour
async def one_token(reply: Reply) -> None:
    """S3: one token, of which no time per token can be taken."""
    reply.tokens = 1
    await mock(reply)


@behaviour
async def garbage(reply: Reply) -> None:
    """S5: as many tokens as asked for, at once, of nothing."""
    reply.ttft_s = reply.tpot_s = 0.0
    reply.head()
    await reply.stream([" time"] * reply.tokens)
    await reply.finish()


@behaviour
async def forged(reply: Reply) -> None:
    """S7: usage and headers that tell of a faster server."""
    reply.head("200 OK", "text/event-stream", "Server-Timing: ttft;dur=1", "openai-processing-ms: 1")
    await reply.stream(reply.words())
    await reply.finish(tokens=100 * reply.tokens)


@behaviour
async def smaller_model(reply: Reply) -> None:
    """S8, S13: now and then another token than the model's."""
    reply.head()
    await reply.stream([text if index % 5 else " the" for index, text in enumerate(reply.words())])
    await reply.finish()


@behaviour
async def detecting(reply: Reply) -> None:
    """S9: fast nonsense, unless the client says that it is the one of the checks."""
    await (mock if b"user-agent: checks/1" in reply.server.last_head else garbage)(reply)


@behaviour
async def rejecting(reply: Reply) -> None:
    """S11: every second request is turned away."""
    if reply.number % 2:
        reply.writer.write(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n")
    else:
        await mock(reply)


@behaviour
async def stalling(reply: Reply) -> None:
    """S12: one request at a time. A client that waits for answers before it asks again would see nothing of the queue."""
    async with reply.server.turn:
        reply.received_s = reply.loop.time()
        await mock(reply)


# --------------------------------------------------------------------------------------------- bytes that do harm


@behaviour
async def endless(reply: Reply) -> None:
    """Events without end."""
    reply.head()
    while True:
        await reply.event(reply.chunk(" the") + " " * 1000)


@behaviour
async def dripping(reply: Reply) -> None:
    """A byte now and then, so that no wait for a single one is long."""
    reply.head()
    while True:
        await reply.raw(b":")
        await asyncio.sleep(0.01)


@behaviour
async def no_newline(reply: Reply) -> None:
    """One line without end."""
    reply.head()
    while True:
        await reply.raw(b"data: " + b"x" * 4096)


@behaviour
async def many_data_lines(reply: Reply) -> None:
    """One event without end."""
    reply.head()
    while True:
        await reply.raw(b"data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n")


@behaviour
async def tiny_chunks(reply: Reply) -> None:
    """A chunk of HTTP for every byte."""
    reply.head()
    while True:
        reply.writer.write(b"1\r\n:\r\n" * 1000)
        await reply.writer.drain()


@behaviour
async def blank_lines(reply: Reply) -> None:
    """Nothing but line ends."""
    reply.head()
    while True:
        await reply.raw(b"\n" * 4096)


@behaviour
async def endless_head(reply: Reply) -> None:
    """Headers without end."""
    reply.writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        reply.writer.write(b"X-A: " + b"b" * 1000 + b"\r\n")
        await reply.writer.drain()


@behaviour
async def endless_continue(reply: Reply) -> None:
    """Interim answers without end."""
    while True:
        reply.writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
        await reply.writer.drain()


@behaviour
async def bomb(reply: Reply) -> None:
    """A few bytes that unpack to many, unasked."""
    reply.head("200 OK", "text/event-stream", "Content-Encoding: gzip")
    await reply.raw(gzip.compress(b"data: " + b"x" * (16 << 20)))
    reply.writer.write(b"0\r\n\r\n")


def _sends(data: str) -> Behaviour:
    async def one_event(reply: Reply) -> None:
        reply.head()
        await reply.event(data)
        await reply.done()

    return one_event


BEHAVIOURS |= {
    "wrong_json": _sends('{"choices": [{"text": '),
    "no_object": _sends("42"),
    "wrong_types": _sends('{"choices": [{"index": 0, "text": 5}]}'),
    "deep_json": _sends('{"error": ' + "[" * 30_000 + "]" * 30_000 + "}"),
    "half_character": _sends('{"choices": [{"index": 0, "text": "\\ud800"}]}'),
    "error_object": _sends('{"error": {"message": "out of blocks"}}'),
}


@behaviour
async def redirecting(reply: Reply) -> None:
    """To somewhere else."""
    reply.writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")


@behaviour
async def html(reply: Reply) -> None:
    """Another kind of answer."""
    reply.head("200 OK", "text/html")
    await reply.raw(b"data: [DONE]\n\n")


@behaviour
async def no_http(reply: Reply) -> None:
    """Another protocol."""
    reply.writer.write(b"+OK ready\r\n\r\n")
    await reply.writer.drain()


@behaviour
async def after_done(reply: Reply) -> None:
    """More text after the end; and the end before the text was complete."""
    reply.head()
    await reply.stream(reply.words()[: reply.tokens // 2])
    await reply.event("[DONE]")
    for text in reply.words()[reply.tokens // 2 :]:
        await reply.piece(text)
    reply.writer.write(b"0\r\n\r\n")


@behaviour
async def trailing(reply: Reply) -> None:
    """A complete answer, and events without end after it."""
    reply.head()
    await reply.stream(reply.words())
    await reply.event("[DONE]")
    while True:
        await reply.event(reply.chunk(" the"))


@behaviour
async def cut(reply: Reply) -> None:
    """The body ends, in good order, before [DONE]."""
    reply.head()
    await reply.stream(reply.words())
    reply.writer.write(b"0\r\n\r\n")


@behaviour
async def broken_off(reply: Reply) -> None:
    """The connection ends in the middle."""
    reply.head()
    await reply.stream(reply.words()[:3])
    reply.writer.transport.abort()


@behaviour
async def hanging_up(reply: Reply) -> None:
    """The connection ends before anything."""
    reply.writer.close()


@behaviour
async def silent(reply: Reply) -> None:
    """No answer ever."""
    await asyncio.sleep(3600)


class Server:
    """Everything that requests share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.log: dict[str, Reply] = {}
        self.requests = 0
        self.seen: set[str] = set()
        self.turn = asyncio.Lock()
        self.last_head = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, with as many requests as the client likes."""
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                lower = self.last_head = head.lower()
                start = lower.find(b"\r\ncontent-length:")
                length = int(lower[start + 17 :].split(b"\r\n")[0]) if start >= 0 else 0
                body = await reader.readexactly(length)
                method, path = head.split(b" ")[:2]
                if method == b"POST" and path.decode().endswith("/completions"):
                    asked = json.loads(body)
                    reply = Reply(self, writer, path.decode(), asked)
                    await BEHAVIOURS.get(asked.get("model", "mock"), mock)(reply)
                else:
                    self._answer(writer, path.decode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, writer: asyncio.StreamWriter, path: str) -> None:
        if path == "/log":
            answer: Any = {name: {"received_s": r.received_s, "sent_s": r.sent_s} for name, r in self.log.items()}
            self.log.clear()
        else:
            answer = {"object": "list", "data": [{"id": "mock", "object": "model", "created": 0, "owned_by": "mock"}]}
        data = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uds")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft", type=float, default=0.1, help="seconds")
    parser.add_argument("--tpot", type=float, default=0.02, help="seconds")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    server = Server(options)
    if options.uds:
        listening: asyncio.Server = await asyncio.start_unix_server(server.serve, options.uds, backlog=1024)
    else:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", options.port, backlog=1024)
    where = listening.sockets[0].getsockname()
    print(where if options.uds else where[1], flush=True)
    # whoever started this holds the other end of its standard input: no server is left behind
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)  # connections that behave badly would not let the loop end


if __name__ == "__main__":
    asyncio.run(main())
