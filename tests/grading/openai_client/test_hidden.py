"""The hidden checks of `openai_client`. They ask for nothing that the handout does not say."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import httpx
import numpy as np

from autograder.checks import expect_close, expect_equal, expect_raises, fail
from autograder.judging.upstream import Reply, Request, reachable
from grading.openai_client import oracles
from grading.openai_client.test_public import ANSWER, DELTAS, LINE, MESSAGES, event, expect_record, sse, stream

WAIT_S = 5.0
"""How long a server of ours waits for a client to do what an honest one does within milliseconds."""
INF = math.inf


# ------------------------------------------------------------------------------------------------------ serve_command


def test_command_all_fields(submission, rng):
    """Every field gives its option and its value, values of 0 and False too; the key never stands in the command.

    Hint: None is the only value that means "nothing". Every item is a text.
    """
    fields: dict[str, Any] = {
        "served_model_name": "a name with spaces; ls", "host": "::1", "port": 0, "dtype": "bfloat16",
        "max_model_len": rng.randrange(1, 9999), "max_num_seqs": rng.randrange(1, 99), "block_size": 32,
        "gpu_memory_utilization": 0.85, "tensor_parallel_size": 2,
    }  # fmt: skip
    for chosen in (fields, dict(rng.sample(sorted(fields.items()), 4)), {}):
        for caching, flag in ((True, ["--enable-prefix-caching"]), (False, ["--no-enable-prefix-caching"]), (None, [])):
            key = f"key-{rng.random()}"
            given = {"model": "org/model", "enable_prefix_caching": caching, "api_key": key, **chosen}
            command, environment = submission.command(given)
            if type(command) is not list or any(type(word) is not str for word in command):
                fail("The command must be a list of texts.", value=command)
            expect_equal(command[:3], ["vllm", "serve", "org/model"], "The beginning of the command")
            expected = [[f"--{name.replace('_', '-')}", str(value)] for name, value in chosen.items()]
            expected += [flag] if flag else []
            words, found = command[3:], []
            while words:
                size = 2 if len(words) > 1 and not words[1].startswith("--") else 1
                found.append(words[:size])
                words = words[size:]
            expect_equal(sorted(found), sorted(expected), f"The options for {given}")
            expect_equal(environment, {"VLLM_API_KEY": key}, "The environment")


# -------------------------------------------------------------------------------------------------------- kv_capacity


def test_capacity_of_long_logs(submission, rng):
    """The last start in a log counts, its two parts may stand on two lines, and other lines do not disturb.

    Hint: Find all, take the last. The two parts are found independently of each other.
    """
    recorded = (oracles.recording() / "log.txt").read_text(encoding="utf-8")
    expect_equal(submission.capacity(recorded), [46_592, 1_024, 45.5], "The capacity in a real server's log")
    tokens, length = rng.randrange(2_000_000, 9_000_000), rng.randrange(1_000, 200_000)
    ratio = f"{tokens / length * 100:.2f}"
    later = f"INFO [a.py:1] GPU KV cache size: {tokens:,} tokens\nINFO [a.py:2] Maximum concurrency for {length:,} tokens per "
    later += f"request: {float(ratio):,.2f}x\n"
    noise = "INFO KV cache layout\nINFO Using 12,345 tokens\n"
    log = noise + f"INFO CPU {LINE}\n" + noise + later + noise
    expect_equal(submission.capacity(log), [tokens, length, float(ratio)], "The capacity of the second start")
    for part in (f"CPU {LINE}".split(", Max")[0], "Maximum concurrency for 1,024 tokens per request: 45.50x"):
        expect_raises("ValueError", lambda part=part: submission.capacity(part), f"kv_capacity of {part!r}")


# --------------------------------------------------------------------------------------------------------- SSEDecoder


def decoded(submission: Any, chunks: list[bytes]) -> list[str]:
    """What a fresh decoder makes of the chunks."""
    answers = submission.SSEDecoder().feed.each([(chunk,) for chunk in chunks])
    if any(type(values) is not list for values in answers):
        fail("feed must return a list.", value=answers)
    return [value for values in answers for value in values]


def test_sse_every_split(submission):
    """A real answer, and one with every kind of line end, come out the same wherever they are cut in two.

    Hint: Cut your own example at every place and compare.
    """
    real = (oracles.recording() / "chat.sse").read_bytes()
    values = [line.removeprefix("data: ") for line in real.decode().splitlines() if line]
    mixed = "\ufeffdata: é1\r\ndata:2\r\n\r\n: c\r\rdata: \u2028\x853\r\rid\ndata\ndata\n\n".encode()
    for text, expected in ((real, values), (mixed, ["é1\n2", "\u2028\x853", "\n"])):
        step = max(1, len(text) // 120)
        for at in range(0, len(text) + 1, step):
            expect_equal(
                decoded(submission, [text[:at], text[at:]]), expected, f"The events of {text[:60]!r}..., cut at {at},"
            )
        expect_equal(
            decoded(submission, [text[i : i + 1] for i in range(len(text))]),
            expected,
            f"The events of {text[:60]!r}..., byte by byte",
        )


def test_sse_random_streams(submission, rng):
    """Random streams, cut at random places, give their events and nothing else.

    Hint: Read the rules again one by one: which spaces, which line ends, which names.
    """
    for _ in range(40):
        text, expected = oracles.events(rng, rng.randrange(1, 8))
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))
        chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        expect_equal(decoded(submission, chunks), expected, f"The events of {text!r}")


# -------------------------------------------------------------------------------------------------------- stream_chat


def test_chat_is_a_stream(submission, rng):
    """Each piece is yielded as soon as its event has arrived, however its bytes were cut.

    Hint: Do not collect. The server sends the next piece only when you have yielded the one before.
    """
    words = [f"{rng.choice(['né', '中', 'a b', ''])}{i}" for i in range(8)]
    events = [json.dumps(event(word), ensure_ascii=False).encode() for word in words]
    reported: list[str] = []
    late: list[int] = []

    async def answer(request: Request, reply: Reply) -> None:
        await reply.start(200, "text/event-stream")
        for number, each in enumerate(events):
            for part in (b"data: " + each[:25], each[25:-3], each[-3:] + b"\n", b"\n"):
                await reply.send(part)
                await asyncio.sleep(0.002)
            for _ in range(round(WAIT_S / 0.005)):
                if len(reported) > number or late:
                    break
                await asyncio.sleep(0.005)
            else:
                late.append(number)
        await reply.send(b"data: [DONE]\n\n")
        await reply.end()

    with reachable(submission, answer) as server:
        deltas = submission.chat(f"{server.url}/v1", MESSAGES, "tiny", None, {}, reported.append)
        expect_equal(deltas, [[word, None, None] for word in words], "The deltas")
    if late:
        fail(f"Piece {late[0] + 1} of {len(words)} had arrived, and was not yielded within {WAIT_S:g} s.")


def test_chat_errors_in_the_middle(submission):
    """An error in the middle of a stream, and an answer that is no JSON, are ServerErrors with what the server said.

    Hint: Look for the key "error" before you look for "choices". Not every error is in JSON.
    """
    middle = sse([event("The"), {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 503}}])

    async def answer(request: Request, reply: Reply) -> None:
        if request.number == 0:
            await stream(reply, middle)
        elif request.number == 1:
            await reply.start(502, "text/html")
            await reply.send(b"<h1>Bad Gateway</h1>")
            await reply.end()
        else:
            await reply.whole(422, ["no", "object"])

    with reachable(submission, answer) as server:
        for what, status, message in (
            ("An error in the middle", 503, "EngineCore died"),
            ("An error in HTML", 502, "<h1>Bad Gateway</h1>"),
            ("An error in other JSON", 422, '["no", "object"]'),
        ):
            call = lambda: submission.chat(f"{server.url}/v1", MESSAGES, "tiny", None, {})  # noqa: E731
            raised = expect_raises("ServerError", call, what)
            expect_equal(raised.data.get("status"), status, f"{what}: the status")
            expect_equal(raised.data.get("message"), message, f"{what}: the message")


def test_chat_broken_streams(submission):
    """A stream without [DONE] is broken, whether it ends or breaks; with [DONE] it is complete, whatever follows.

    Hint: There are three ways out of the loop over the chunks. Which of them are good?
    """

    async def answer(request: Request, reply: Reply) -> None:
        if request.number == 0:
            await stream(reply, sse(ANSWER, done=False))
        elif request.number == 1:
            await stream(reply, sse(ANSWER)[:-1])  # [DONE] without the end of its event
        elif request.number == 2:
            await reply.start(200, "text/event-stream")
            await reply.send(sse(ANSWER, done=False))  # and the connection breaks
        else:
            await reply.start(200, "text/event-stream")
            await reply.send(sse(ANSWER) + b"data: {not JSON\n\n")
            for _ in range(round(WAIT_S / 0.01)):  # it stays open until the client has had enough
                if reply.gone.is_set():
                    return
                await asyncio.sleep(0.01)
            await reply.send(b"data: {}\n\n")

    with reachable(submission, answer) as server:
        call = lambda: submission.chat(f"{server.url}/v1", MESSAGES, "tiny", None, {})  # noqa: E731
        for what in ("A stream that ends without [DONE]", "A stream cut in [DONE]", "A connection that breaks"):
            expect_raises("StreamBroken", call, what)
        expect_equal(call(), DELTAS, "The deltas before [DONE]")


def test_chat_closes_the_connection(submission):
    """Who stops reading closes the connection, so that the server can stop computing.

    Hint: A response that was opened with `async with` is closed when the generator is.
    """
    gone: list[int] = []

    async def answer(request: Request, reply: Reply) -> None:
        await reply.start(200, "text/event-stream")
        await reply.send(sse([event(""), event("The"), event(" end")], done=False))
        await asyncio.wait_for(asyncio.shield(reply.gone.wait()), 60)
        gone.append(1)

    noticed: list[bool] = []  # while the client is still open: when it ends, every connection does

    def wait() -> bool:
        noticed.append(bool(gone))
        return noticed[-1]

    with reachable(submission, answer) as server:
        text = submission.chat_and_leave(f"{server.url}/v1", MESSAGES, "tiny", wait)
        expect_equal(text, "The", "The first text")
    if not any(noticed):
        fail("The generator was closed, and the connection to the server stayed open for 2 s.")


def test_chat_with_real_vllm(submission):
    """A real vLLM server's answer arrives whole: its pieces, why it ended, its usage, and its refusals.

    Hint: Compare with curl -N, which shows the bytes as they come.
    """
    import openai._streaming

    real = oracles.server()
    bodies: list[bytes] = []

    async def answer(request: Request, reply: Reply) -> None:
        body = request.json()
        if (
            request.path != "/v1/chat/completions"
            or type(body) is not dict
            or body.get("max_tokens") not in (24, 99_999)
        ):
            await reply.whole(404, {"error": {"message": "not forwarded", "code": 404}})
            return
        transport = httpx.AsyncHTTPTransport(uds=real.socket)
        async with (
            httpx.AsyncClient(transport=transport, base_url=real.url, timeout=100) as client,
            client.stream("POST", request.path, json=body) as response,
        ):
            number = len(bodies)
            bodies.append(b"")  # before anything is sent: a client may leave as soon as it has read [DONE]
            await reply.start(response.status_code, response.headers["content-type"])
            async for chunk in response.aiter_raw():
                bodies[number] += chunk
                await reply.send(chunk)
            await reply.end()

    with reachable(submission, answer) as server:
        call = lambda tokens: submission.chat(  # noqa: E731
            f"{server.url}/v1", MESSAGES, oracles.MODEL, None, {"temperature": 0, "max_tokens": tokens}
        )
        deltas = call(24)
        if len(bodies) != 1:
            fail("The request did not reach the real server: one POST to /v1/chat/completions was expected.")
        values = [each.data for each in openai._streaming.SSEDecoder().iter_bytes(iter(bodies))]
        events = [json.loads(value) for value in values if value != "[DONE]"]
        expected = []
        for each in events:
            choice = each["choices"][0] if each["choices"] else {"delta": {}}
            usage = each.get("usage") and [each["usage"]["prompt_tokens"], each["usage"]["completion_tokens"]]
            expected.append([choice["delta"].get("content") or "", choice.get("finish_reason"), usage])
        if "Paris" not in "".join(text for text, _, _ in expected):
            raise RuntimeError(f"the real server gave nonsense: {expected}")
        expect_equal(deltas, expected, "The deltas of a real answer")
        raised = expect_raises("ServerError", lambda: call(99_999), "A request for more tokens than there is room")
        expect_equal(raised.data.get("status"), 400, "The status of the real server's refusal")
        expect_equal(raised.data.get("message"), json.loads(bodies[1])["error"]["message"], "The real server's message")


# --------------------------------------------------------------------------------------------------- poisson_arrivals


def test_arrivals_are_poisson(submission, rng):
    """The gaps are independent and exponentially distributed, and the global generator stays as it was.

    Hint: Draw a histogram of the gaps beside rate * exp(-rate * gap).
    """
    # False alarms: Dvoretzky-Kiefer-Wolfowitz gives P(D > d) <= 2 exp(-2 n d²) = 1e-7 for each of two samples; the correlation of
    # n independent pairs beyond 5.6/sqrt(n) has 2e-8. Together below 1e-6. Power: even gaps on [0, 2/rate] have D = 0.16,
    # constant ones 0.63, a mean that is 8 % off 0.03; all but 1e-9 of them beyond the bound of 0.0205.
    n = 20_000
    bound = math.sqrt(math.log(2 / 1e-7) / (2 * n))
    for rate in (rng.uniform(0.2, 2), rng.uniform(20, 200)):
        times, undisturbed = submission.arrivals_and_generator(n, rate, rng.randrange(1 << 30))
        if type(times) is not list or len(times) != n or any(type(each) is not float for each in times):
            fail("The times must be a list of as many floats as requests.", value=times)
        shares = 1 - np.exp(-rate * np.diff(np.array([0.0, *times])))
        ordered = np.sort(shares)
        steps = np.arange(n + 1) / n
        distance = float(max(np.max(steps[1:] - ordered), np.max(ordered - steps[:-1])))
        if not distance <= bound:
            fail(
                f"The gaps at rate {rate:.3g} are not exponentially distributed with mean 1/rate.",
                value=distance,
                expected=f"at most {bound:.4f}",
            )
        correlation = float(np.corrcoef(shares[1:], shares[:-1])[0, 1])
        if not abs(correlation) <= 5.6 / math.sqrt(n):
            fail("A gap depends on the one before it.", value=correlation)
        expect_equal(undisturbed, True, "Whether the global generator is as it was")


# ----------------------------------------------------------------------------------------------------------- run_load


def test_load_agrees_with_a_queue(submission, rng):
    """All times of random load agree with a queue's, without a limit, with one place, with several.

    Hint: Compute a small case by hand. Text may come late, and tokens are what the usage says.
    """
    for limit, number in ((None, 60), (1, 30), (5, 80)):
        now, arrivals = 0.0, []
        for _ in range(number):
            now += rng.expovariate(2.0)
            arrivals.append(now)
        plans: list[list[list[Any]]] = []
        for _ in arrivals:
            texts = [*[""] * rng.randrange(3), *["word"] * rng.randrange(1, 5)]
            plans.append([[rng.uniform(0.01, 1), text, None, None] for text in texts])
            plans[-1].append([rng.uniform(0.01, 1), "", rng.randrange(1, 99), None])
        starts = oracles.queue(arrivals, [sum(step[0] for step in plan) for plan in plans], limit)
        asked: dict[int, float] = {}

        def plan(index: int, now: float, plans: Any = plans, asked: Any = asked) -> Any:
            asked[index] = now
            return plans[index]

        records = submission.load(arrivals, limit, None, plan)
        expect_equal(len(records), number, "The number of records")
        for index, (record, arrival, start, steps) in enumerate(zip(records, arrivals, starts, plans, strict=True)):
            first = next(i for i, step in enumerate(steps) if step[1])
            text_s, end_s = (start + sum(step[0] for step in steps[:to]) for to in (first + 1, len(steps)))
            what = f"request {index} (limit: {limit})"
            if abs(asked.get(index, -1.0) - start) > 1e-6:
                fail(f"{what} was not sent when it should be.", value=asked.get(index), expected=f"{start:.6f} s")
            expect_record(record, [arrival, start, text_s, end_s, steps[-1][2], None], what)


def test_load_failures(submission):
    """A request that fails is recorded with its error and what was known; the others go on, and its place is free again.

    Hint: Catch exceptions around one request, not around all. `async with` gives the place back.
    """

    def plan(index: int, now: float) -> list[list[Any]]:
        return [
            [[0.5, "a", None, None], [0.5, "", None, "no memory"]],
            [[0.25, "", None, "refused"]],
            [[1.0, "a", 3, None], [1.0, "b", None, None]],
        ][index % 3]

    expected = [
        [0.0, 0.0, 0.5, None, 0, "ServerError: 500: no memory"],
        [0.1, 1.0, None, None, 0, "ServerError: 500: refused"],
        [0.2, 1.25, 2.25, 3.25, 3, None],
        [0.3, 3.25, 3.75, None, 0, "ServerError: 500: no memory"],
    ]
    records = submission.load([0.0, 0.1, 0.2, 0.3], 1, None, plan)
    expect_equal(len(records), 4, "The number of records")
    for index, (record, wanted) in enumerate(zip(records, expected, strict=True)):
        expect_record(record, wanted, f"request {index}, of which two in three fail,")


def test_load_timeouts(submission):
    """A request is given up when its time is over, counted from when it should have been sent, and its place is free again.

    Hint: asyncio.timeout_at takes the time at which it is over. The wait for a place is inside.
    """

    def plan(index: int, now: float) -> list[list[Any]]:
        return [[[0.5, "a", None, None], [9.0, "b", 5, None]], [[0.25, "a", None, None], [0.25, "b", 2, None]]][
            index % 2
        ]

    expected = [
        [0.0, 0.0, 0.5, None, 0, "timeout"],  # until 2.0
        [1.0, 2.0, 2.25, 2.5, 2, None],
        [1.25, 2.5, 3.0, None, 0, "timeout"],  # until 3.25
        [1.5, 3.25, None, None, 0, "timeout"],  # until 3.5, as its text comes
    ]
    arrivals = [0.0, 1.0, 1.25, 1.45]
    expected[3][0] = 1.45  # until 3.45
    records = submission.load(arrivals, 1, 2.0, plan)
    expect_equal(len(records), 4, "The number of records")
    for index, (record, wanted) in enumerate(zip(records, expected, strict=True)):
        expect_record(record, wanted, f"request {index} with 2 s of time")


def test_load_at_a_server(submission, rng):
    """A server that answers only when as many requests are there as may be: all of them come, and never more than the limit.

    Hint: All that are due are sent before any of them is answered, up to max_concurrency. Which of your lines waits?
    """
    number = 9
    for limit in (None, 3):
        together = limit or number
        lengths = [rng.randrange(1, 60) for _ in range(number)]
        server = Gathering(together, lengths)
        with reachable(submission, server.answer) as upstream:
            found = submission.load_at_a_server(upstream.url, number, limit)
        what = f"{number} requests that are due at once, with max_concurrency={limit},"
        if server.late:
            fail(
                f"Of {what} no more were sent within {WAIT_S:g} s than these.",
                value=server.arrived,
                expected="the next",
            )
        expect_equal(server.most, together, f"How many of {what} were on their way at once")
        expect_equal(found, [[length, None] for length in lengths], f"The list of output_tokens and errors of {what}")


class Gathering:
    """A server that waits until `together` requests are there, and answers these one by one, the last one first."""

    def __init__(self, together: int, lengths: list[int]) -> None:
        self.together, self.lengths = together, lengths
        self.arrived = self.answered = self.most = 0
        self.late = False

    async def answer(self, request: Request, reply: Reply) -> None:
        self.arrived += 1
        self.most = max(self.most, self.arrived - self.answered)
        first = request.number - request.number % self.together
        turn = first + self.together - 1 - request.number % self.together
        for _ in range(round(WAIT_S / 0.005)):
            if self.late or (self.arrived >= first + self.together and self.answered >= turn):
                break
            await asyncio.sleep(0.005)
        else:
            self.late = True
        self.answered += 1  # before the client can know, and send the next
        place = request.path.strip("/")
        length = self.lengths[int(place)] if place in map(str, range(len(self.lengths))) else 0
        await reply.start(200, "text/plain")
        await reply.send(b"x" * length)
        await reply.end()


# ---------------------------------------------------------------------------------------------------------- summarize


def expect_summary(found: Any, records: list[list[Any]], duration_s: float, slo: list[float]) -> None:
    """The summary that numpy gives."""
    done = [each for each in records if each[5] is None]
    ttft = [each[2] - each[0] for each in done]
    e2el = [each[3] - each[0] for each in done]
    tpots = [
        (last - first) / (each[4] - 1) if each[4] > 1 else 0.0
        for each, first, last in zip(done, ttft, e2el, strict=True)
    ]
    good = sum(a <= slo[0] and b <= slo[1] and c <= slo[2] for a, b, c in zip(ttft, tpots, e2el, strict=True))
    expect_equal(found[:2], [len(done), len(records) - len(done)], "Completed and failed requests")
    rates = (len(done) / duration_s, sum(each[4] for each in done) / duration_s, good / duration_s)
    for value, expected, what in zip(found[2:5], rates, ("Requests/s", "Tokens/s", "Goodput"), strict=True):
        expect_close(value, expected, what)
    several = [tpot for tpot, each in zip(tpots, done, strict=True) if each[4] > 1]
    for group, what, values in ((found[5], "TTFT", ttft), (found[6], "TPOT", several), (found[7], "E2EL", e2el)):
        for name, number in oracles.statistics(values).items():
            value = group.get(name) if type(group) is dict else None
            if math.isnan(number):
                if not (type(value) is float and math.isnan(value)):
                    fail(f"{name} of the {what} of no requests must be nan.", value=value)
            else:
                expect_close(value, number, f"{name} of the {what}")


def test_summary_of_random_records(submission, rng):
    """The summaries of random load tests agree with numpy's, failed and one-token requests among them.

    Hint: Each statistic is over the requests that have it. Throughput is a total over the wall time.
    """
    for number in (1, 2, 7, 150):
        records: list[list[Any]] = []
        for index in range(number):
            at = rng.uniform(0, 50)
            first = at + rng.uniform(0.1, 3)
            record = [
                at,
                at + 0.05,
                first,
                first + rng.uniform(0, 9),
                rng.choice([1, 1, 2, 5, rng.randrange(2, 300)]),
                None,
            ]
            if index == 0:
                record[4] = 9  # at least one has a TPOT
            elif rng.random() < 0.25:
                record = [at, at, rng.choice([None, first]), None, rng.randrange(9), "timeout"]
            records.append(record)
        for slo in ([2.0, 0.5, 6.0], [9.0, 9.0, 3.0], [0.5, 9.0, 99.0]):
            expect_summary(submission.summary(records, 61.5, slo), records, 61.5, slo)


def test_summary_edges(submission):
    """Limits that are just met are met, nothing completed gives nan, and a duration of 0 is an error.

    Hint: The mean of no numbers is not 0. Without a TPOT a request cannot miss its limit.
    """
    exact = [[0.0, 0.0, 0.5, 1.5, 3, None], [0.0, 0.0, 0.5, 0.5, 1, None]]
    expect_summary(submission.summary(exact, 2.0, [0.5, 0.5, 1.5]), exact, 2.0, [0.5, 0.5, 1.5])
    one_token = [[0.0, 0.0, 0.5, 0.75, 1, None]]
    expect_summary(submission.summary(one_token, 1.0, [1.0, 0.0, 1.0]), one_token, 1.0, [1.0, 0.0, 1.0])
    failed = [[0.0, 0.0, 0.25, None, 3, "timeout"]]
    for records in (failed, []):
        expect_summary(submission.summary(records, 2.0, [1.0, 1.0, 1.0]), records, 2.0, [1.0, 1.0, 1.0])
    expect_raises(
        "ValueError", lambda: submission.summary(exact, 0.0, [1.0, 1.0, 1.0]), "duration_s=0", naming="duration_s"
    )


# ------------------------------------------------------------------------------------- parse_metrics, rate, quantile


def test_metrics_of_real_vllm(submission):
    r"""All samples of a real server's /metrics are found, and labels with quotes, backslashes and braces.

    Hint: A label's value ends at the first quote without a backslash before it; \\" is a backslash and then that quote.
    """
    text = (oracles.recording() / "metrics.txt").read_text(encoding="utf-8")
    expected = oracles.samples(text)
    found = submission.metrics(text)
    if type(found) is not list or len(found) != len(expected):
        fail("The number of samples is not what it should be.", value=len(found), expected=str(len(expected)))
    by_key = {(name, labels): value for name, labels, value in map(tuple, found) if type(labels) is tuple}
    for name, labels, value in expected:
        expect_equal(by_key.get((name, labels)), value, f"The sample {name}{dict(labels)}")
    odd = r'm{b="say \"hi\", {x}",a="c:\\n\\",n="1\n2",} +Inf' + "\n"
    wanted = [["m", (("a", "c:\\n\\"), ("b", 'say "hi", {x}'), ("n", "1\n2")), INF]]
    expect_equal(submission.metrics(odd), wanted, "The sample with odd labels")


def test_rate_restarts(submission, rng):
    """Counters that were restarted several times, and times in a wrong order.

    Hint: Go through neighbouring pairs.
    """
    now, value, grown = rng.uniform(0, 9), rng.uniform(0, 99), 0.0
    samples = [(now, value)]
    for _ in range(60):
        now += rng.uniform(0.5, 20)
        step = rng.uniform(1, 50)
        value = step / 100 if rng.random() < 0.2 else value + step
        grown += value if value < samples[-1][1] else value - samples[-1][1]
        samples.append((now, value))
    expect_close(submission.counter_rate(samples), grown / (samples[-1][0] - samples[0][0]), "The rate", rel=1e-6)
    expect_close(submission.counter_rate([(0.0, 5.0), (2.0, 5.0)]), 0.0, "The rate of a counter that stands still")
    for wrong in ([], [(0.0, 1.0), (0.0, 2.0)], [(0.0, 1.0), (3.0, 2.0), (1.0, 3.0)]):
        expect_raises("ValueError", lambda wrong=wrong: submission.counter_rate(wrong), f"counter_rate({wrong})")


def test_quantile_rules(submission, rng):
    """Every rule of Prometheus: first and last bucket, buckets in any order, no values, a q outside of 0 to 1.

    Hint: Take the rules one by one, in the order in which they stand.
    """
    for _ in range(20):
        bounds = sorted(rng.uniform(0.001, 10) for _ in range(rng.randrange(1, 9)))
        counts = [float(each) for each in np.cumsum([rng.randrange(1, 20) for _ in bounds])]
        buckets = [*zip(bounds, counts, strict=True), (INF, counts[-1] + rng.choice([0, 5]))]
        q = rng.uniform(0.01, 1)
        rank = q * buckets[-1][1]
        expected = float(np.interp(rank, [0.0, *counts], [0.0, *bounds]))  # beyond the last finite bucket: its bound
        rng.shuffle(buckets)
        found = submission.histogram_quantile(q, buckets)
        expect_close(found, expected, f"The quantile {q:.3f} of {sorted(buckets)}", rel=1e-6)
    some = [(0.1, 2.0), (0.5, 6.0), (INF, 8.0)]
    for q, buckets, wanted in (
        (0.75, some, 0.5),
        (1.0, some, 0.5),
        (-0.1, some, -INF),
        (1.1, some, INF),
        (0.2, [(-1.0, 3.0), (1.0, 5.0), (INF, 5.0)], -1.0),
        (0.8, [(-1.0, 3.0), (1.0, 5.0), (INF, 5.0)], 0.0),
        (0.5, [(0.1, 0.0), (0.2, 4.0), (INF, 4.0)], 0.15),
    ):
        value = submission.histogram_quantile(q, buckets)
        if type(value) is float and abs(value - wanted) < 1e-9:
            continue
        expect_equal(value, wanted, f"The quantile {q} of {buckets}")
    for buckets in ([(0.1, 0.0), (INF, 0.0)], [(0.1, 2.0), (0.5, 6.0)], [(INF, 8.0)], []):
        value = submission.histogram_quantile(0.5, buckets)
        if not (type(value) is float and math.isnan(value)):
            fail(f"The median of {buckets} must be nan.", value=value)
