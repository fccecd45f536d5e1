"""The public checks of `openai_client`: worked examples with the numbers of the handout. Released with the assignment."""

from __future__ import annotations

import json
from typing import Any

from autograder.checks import SubmissionRaised, expect_close, expect_equal, expect_raises, fail
from autograder.judging.upstream import Reply, Request, reachable

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
LINE = "KV cache size: 46,592 tokens, Maximum concurrency for 1,024 tokens per request: 45.50x"


def event(text: str | None, finish_reason: str | None = None) -> dict[str, Any]:
    """One piece of an answer, as vLLM sends it."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}]}


WORDS = ["", "The", " capital", " of", " France", " is", " Paris", "."]
ANSWER: list[Any] = [*map(event, WORDS), event("", "stop")]
ANSWER += [{"choices": [], "usage": {"prompt_tokens": 37, "total_tokens": 45, "completion_tokens": 8}}]
DELTAS = [*([word, None, None] for word in WORDS), ["", "stop", None], ["", None, [37, 8]]]


def sse(events: list[Any], done: bool = True) -> bytes:
    """A stream of `events`."""
    values = [*map(json.dumps, events), *(["[DONE]"] if done else [])]
    return "".join(f"data: {value}\n\n" for value in values).encode()


async def stream(reply: Reply, *chunks: bytes) -> None:
    """Answer by an event stream, one chunk after the other."""
    await reply.start(200, "text/event-stream; charset=utf-8")
    for chunk in chunks:
        await reply.send(chunk)
    await reply.end()


# ------------------------------------------------------------------------------------------------------ serve_command


def test_command_options(submission):
    """The command is a list of words: an option for every field that is given, and the key in the environment.

    Hint: Look at the fields one by one. Only None means that nothing was said.
    """
    command, environment = submission.command({"model": "m", "port": 8001, "enforce_eager": True, "api_key": "k"})
    expect_equal(command[:3], ["vllm", "serve", "m"], "The beginning of the command")
    options = command[3:]
    if options == ["--enforce-eager", "--port", "8001"]:
        options = ["--port", "8001", "--enforce-eager"]
    expect_equal(options, ["--port", "8001", "--enforce-eager"], "The options")
    expect_equal(environment, {"VLLM_API_KEY": "k"}, "The environment")
    expect_equal(submission.command({"model": "m"}), [["vllm", "serve", "m"], {}], "The command without options")


# -------------------------------------------------------------------------------------------------------- kv_capacity


def test_capacity_of_a_log(submission):
    """The size of the KV cache and the concurrency are found in a log, of a CPU as of a GPU.

    Hint: A regular expression for each part. Numbers above 999 have commas.
    """
    for device in ("CPU", "GPU"):
        log = f"INFO loading\n(EngineCore pid=31) INFO 11-23 13:10:06 [kv_cache_utils.py:2327] {device} {LINE}\nINFO ready\n"
        expect_equal(submission.capacity(log), [46_592, 1_024, 45.5], f"The capacity of a log of a {device}")
    expect_raises(
        "ValueError", lambda: submission.capacity("INFO ready\n"), "kv_capacity of a log that does not say it"
    )


# --------------------------------------------------------------------------------------------------------- SSEDecoder


def test_sse_events(submission):
    """Lines `data` become events at an empty line; comments and other fields are skipped; data on several lines is joined.

    Hint: Collect the data of one event in a list. What ends the event, and what if the list is empty?
    """
    for stream, expected in (
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b": hello\n\ndata: a\n\n", ["a"]),
        (b"event: x\nid: 7\ndata: a\nretry: 10\n\n", ["a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
        (b"data:a\n\ndata:  b \n\n", ["a", " b "]),
        (b"data: a\n\ndata: b\n", ["a"]),
    ):
        expect_equal(submission.SSEDecoder().feed(stream), expected, f"The events of {stream!r}")


def test_sse_chunks(submission):
    """Chunks may end anywhere, also between a carriage return and its line feed, and inside a character.

    Hint: Keep the bytes of a line that has not ended. Decode whole lines only.
    """
    for chunks, expected in (
        ((b"data: a\r", b"\ndata: b\n", b"\n: x\n\ndata:c\n\nda"), ["a\nb", "c"]),
        ((b"da", b"ta", b": a", b"\n", b"\n"), ["a"]),
        (("data: é\n\n".encode()[:7], "data: é\n\n".encode()[7:]), ["é"]),
    ):
        decoder = submission.SSEDecoder()
        found = [value for values in decoder.feed.each([(chunk,) for chunk in chunks]) for value in values]
        expect_equal(found, expected, f"The events of {chunks!r}")


# -------------------------------------------------------------------------------------------------------- stream_chat


def test_chat_text_and_usage(submission):
    """Every event becomes one Delta: its text, why it ended, and at the end what it cost.

    Hint: The last event before [DONE] has no choices but a usage. Content may be null.
    """

    async def answer(request: Request, reply: Reply) -> None:
        await stream(reply, sse(ANSWER))

    with reachable(submission, answer) as server:
        deltas = submission.chat(f"{server.url}/v1", MESSAGES, "tiny", None, {})
        expect_equal(deltas, DELTAS, "The deltas (text, finish_reason, usage)")


def test_chat_request(submission):
    """The request is a POST of JSON that asks for a stream with usage, with the key, if there is one, in its header.

    Hint: httpx makes the body and its headers from `json=...`.
    """

    async def answer(request: Request, reply: Reply) -> None:
        await stream(reply, sse(ANSWER))

    with reachable(submission, answer) as server:
        submission.chat(f"{server.url}/v1", MESSAGES, "tiny", "secret", {"temperature": 0, "max_tokens": 16})
        submission.chat(f"{server.url}/v1", MESSAGES, "tiny", None, {})
        if len(server.requests) != 2:
            fail("Two calls must make two requests.", value=len(server.requests), expected="2")
        first, second = server.requests
        expect_equal((first.method, first.path), ("POST", "/v1/chat/completions"), "Method and path")
        body = {"model": "tiny", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
        expect_equal(first.json(), body | {"temperature": 0, "max_tokens": 16}, "The body")
        expect_equal(first.headers.get("authorization"), "Bearer secret", "The header Authorization")
        expect_equal(second.headers.get("authorization"), None, "The header Authorization without a key")


def test_chat_refused(submission):
    """A status other than 200 is a ServerError with the status and the server's own message.

    Hint: The body of a streamed response must be read before it can be looked at.
    """

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(404, {"error": {"message": "The model `nope` does not exist.", "code": 404}})

    with reachable(submission, answer) as server:
        call = lambda: submission.chat(f"{server.url}/v1", MESSAGES, "nope", None, {})  # noqa: E731
        raised: SubmissionRaised = expect_raises("ServerError", call, "An unknown model")
        expect_equal(raised.data.get("status"), 404, "The error's status")
        expect_equal(raised.data.get("message"), "The model `nope` does not exist.", "The error's message")


# --------------------------------------------------------------------------------------------------- poisson_arrivals


def test_arrivals_shape(submission):
    """As many ascending times as asked for, the same for the same seed; all at once for an infinite rate.

    Hint: Add up the gaps. Make a generator of your own from the seed.
    """
    times = submission.poisson_arrivals(200, 4.0, 1)
    expect_equal(len(times), 200, "The number of times")
    expect_equal(sorted(times), times, "The times, sorted,")
    if not (times and times[0] > 0 and 25 < times[-1] < 100):  # 50 s, five standard deviations are 18 s
        fail("200 requests at 4 per second take about 50 s, and the first comes after the first gap.", value=times[-1:])
    expect_equal(submission.poisson_arrivals(200, 4.0, 1), times, "The times of the same seed")
    if submission.poisson_arrivals(200, 4.0, 2) == times:
        fail("Another seed must give other times.")
    expect_equal(submission.poisson_arrivals(3, float("inf"), 1), [0.0, 0.0, 0.0], "The times at an infinite rate")
    expect_equal(submission.poisson_arrivals(0, 4.0, 1), [], "No times")
    expect_raises("ValueError", lambda: submission.poisson_arrivals(-1, 4.0, 1), "n=-1", naming="n")
    expect_raises("ValueError", lambda: submission.poisson_arrivals(1, 0.0, 1), "rate=0.0", naming="rate")


# ----------------------------------------------------------------------------------------------------------- run_load


def expect_record(record: Any, expected: list[Any], what: str) -> None:
    """Times within a microsecond, everything else equal."""
    names = ("scheduled_s", "started_s", "first_token_s", "finished_s", "output_tokens", "error")
    if type(record) is not list or len(record) != len(names):
        fail(f"{what} is no record.", value=record)
    expect_equal(record[-1], expected[-1], f"The error of {what}")  # first: it says why times are missing
    for name, value, wanted in zip(names, record, expected, strict=True):
        if type(wanted) is float and type(value) in (int, float) and abs(value - wanted) < 1e-6:
            continue
        expect_equal(value, wanted, f"The {name} of {what}")


def three_seconds(index: int, now: float) -> list[list[Any]]:
    """Text after 1 s, the end after 3 s, 5 tokens."""
    return [[1.0, "a", None, None], [2.0, "b", 5, None]]


def test_load_open_loop(submission):
    """Requests are sent at their times, whether or not earlier ones have been answered.

    Hint: Start a task for each request; await none of them before all are started.
    """
    records = submission.load([0.0, 1.0, 1.5], None, None, three_seconds)
    expect_equal(len(records), 3, "The number of records")
    for record, at in zip(records, (0.0, 1.0, 1.5), strict=True):
        expect_record(record, [at, at, at + 1, at + 3, 5, None], f"the request of {at} s")


def test_load_limit(submission):
    """With a limit, requests wait their turn, and the time that they were scheduled for stays what it was.

    Hint: A semaphore around the sending only. scheduled_s comes from the arrivals.
    """
    records = submission.load([0.0, 1.0], 1, None, three_seconds)
    expect_equal(len(records), 2, "The number of records")
    expect_record(records[0], [0.0, 0.0, 1.0, 3.0, 5, None], "the first request")
    expect_record(records[1], [1.0, 3.0, 4.0, 6.0, 5, None], "the second request")


# ---------------------------------------------------------------------------------------------------------- summarize


def test_summary_example(submission):
    """The summary of the handout's two requests.

    Hint: Work the example out by hand, and print yours.
    """
    records = [[0.0, 0.0, 0.5, 3.0, 5, None], [0.0, 0.0, 1.0, 2.0, 1, None], [0.0, 0.1, None, None, 0, "timeout"]]
    found = submission.summary(records, 4.0, [1.0, 0.4, 9.0])
    expect_equal(found[:2], [2, 1], "Completed and failed requests")
    for value, expected, what in zip(found[2:5], (0.5, 1.5, 0.25), ("Requests/s", "Tokens/s", "Goodput"), strict=True):
        expect_close(value, expected, what)
    for group, what, expected in (
        (found[5], "TTFT", {"mean": 0.75, "p50": 0.75, "p99": 0.995}),
        (found[6], "TPOT", {"mean": 0.625, "p50": 0.625, "p99": 0.625}),
        (found[7], "E2EL", {"mean": 2.5, "p50": 2.5, "p99": 2.99}),
    ):
        expect_equal(sorted(group), sorted(expected), f"The statistics of the {what}")
        for name, number in expected.items():
            expect_close(group[name], number, f"The {name} of {what}")


# ------------------------------------------------------------------------------------- parse_metrics, rate, quantile


def test_metrics_lines(submission):
    """Samples are found with their labels and values; comments are skipped.

    Hint: First the name, then what stands in braces, then the value.
    """
    text = '# TYPE a:b gauge\na:b{engine="0",model_name="m"} 0.5\nup 1\n\nc_total{x="a, b}"} 1e+06 1700000000000\n'
    expected = [
        ["a:b", (("engine", "0"), ("model_name", "m")), 0.5],
        ["up", (), 1.0],
        ["c_total", (("x", "a, b}"),), 1e6],
    ]
    expect_equal(submission.metrics(text), expected, "The samples (name, labels, value)")


def test_rate_example(submission):
    """The growth of a counter that was restarted once.

    Hint: After a restart the counter began at 0.
    """
    expect_close(submission.counter_rate([(0.0, 100.0), (10.0, 160.0), (20.0, 30.0)]), 4.5, "The rate")
    expect_raises("ValueError", lambda: submission.counter_rate([(0.0, 1.0)]), "One sample")


def test_quantile_example(submission):
    """The two quantiles of the handout.

    Hint: Find the bucket first. Counts are cumulative already.
    """
    buckets = [(0.1, 2.0), (0.5, 6.0), (float("inf"), 8.0)]
    expect_close(submission.histogram_quantile(0.5, buckets), 0.3, "The median")
    expect_close(submission.histogram_quantile(0.9, buckets), 0.5, "The quantile 0.9")
