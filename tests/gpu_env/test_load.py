"""The load generator against a real server of known timing: what it measures, and every way to deceive or harm it.

No test trusts this machine to be quiet: times are compared with the server's own log (one monotonic clock serves all
processes on Linux), give the client as much slack as it says it was late, or are lower bounds.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import itertools
import random
import socket
import statistics
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_env.load import Fault, Limits, LoadResult, Record, Request, Target, run_load, schedule
from gpu_env.sequential import Verdict
from gpu_env.slo import Slo, audit, judge_slo, repeat_test

MOCK = Path(__file__).with_name("mock_server.py")
TTFT_S, TPOT_S, TOKENS = 0.1, 0.02, 12
ANY = Slo(ttft_s=1000, tpot_s=1000)
"""An objective that every complete answer meets."""
names = itertools.count()

spec = importlib.util.spec_from_file_location("mock_server", MOCK)
assert spec is not None
assert spec.loader is not None
mock: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mock)


def count_words(text: str) -> int:
    """The mock's tokenizer."""
    return len(text.split())


def is_right(request: Request, text: str) -> bool:
    """What an independent oracle would say."""
    expected: str = mock.right_text(request.body["prompt"], request.body["max_tokens"])
    return text == expected


@dataclass
class Mock:
    """A running mock server and what it says about itself."""

    target: Target
    http: httpx.Client

    def log(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.http.get("/log").json()
        return answer


@pytest.fixture(scope="module", params=["unix", "tcp"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    """The mock server in a process of its own, on a Unix socket and on TCP."""
    path = str(tmp_path_factory.mktemp("mock") / "s")
    where = ["--uds", path] if request.param == "unix" else ["--port", "0"]
    command = [sys.executable, str(MOCK), *where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if request.param == "unix":
            yield Mock(Target(path), httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://mock"))
        else:
            yield Mock(Target(("127.0.0.1", int(said))), httpx.Client(base_url=f"http://127.0.0.1:{said}"))


def ask(model: str = "mock", prompt: str | None = None, repeat: bool = False, **body: Any) -> Request:
    """A request for 12 tokens, quickly, with a prompt of its own."""
    name = f"request {next(names)}"
    quick = {"ttft_s": 0.01, "tpot_s": 0.001, "max_tokens": TOKENS, "stream": True, "user": name}
    whole = {"model": model, "prompt": prompt or name, **quick, **body}
    return Request(whole, min_tokens=whole["max_tokens"], max_tokens=whole["max_tokens"], repeat=repeat)


def load(
    server: Mock, requests: list[Request], rate_per_s: float = 200.0, limits: Limits | None = None, **options: Any
) -> LoadResult:
    """A run at a constant rate whose client counts as punctual: how late it is says something about this machine only."""
    at_s = schedule(len(requests), rate_per_s, 0, "constant")
    result = run_load(server.target, requests, at_s, count_tokens=count_words, limits=limits, **options)
    return replace(result, client_lag_p99_s=0.0)


def one(server: Mock, model: str, limits: Limits | None = None, **body: Any) -> Record:
    """The record of a single request."""
    (record,) = load(server, [ask(model, **body)], limits=limits).records
    return record


# ------------------------------------------------------------------------------------------------ what is measured


def test_latencies_are_those_that_the_server_logged(server: Mock) -> None:
    """TTFT and TPOT lie within 2 % of what was set, beside what the machine delayed on either side, as both logged it."""
    requests = [ask(ttft_s=TTFT_S, tpot_s=TPOT_S) for _ in range(30)]
    at_s = schedule(len(requests), 20, seed=1)
    result = run_load(server.target, requests, at_s, count_tokens=count_words)
    log = server.log()
    late_s = result.client_lag_p99_s
    ttft_errors, tpot_errors = [], []
    for record in result.records:
        theirs = log[record.request.body["user"]]
        received_s = theirs["received_s"] - result.start_s
        sent_s = [time_s - result.start_s for time_s in theirs["sent_s"]]
        assert record.fault is None
        assert record.ttft_s is not None
        assert record.tpot_s is not None
        # an effect is not before its cause
        assert record.scheduled_s <= record.started_s <= received_s
        assert all(ours >= their for ours, their in zip(record.chunk_times_s, sent_s, strict=True))
        ttft_errors.append(record.ttft_s - (sent_s[0] - record.scheduled_s))
        tpot_errors.append(abs(record.tpot_s - (sent_s[-1] - sent_s[0]) / (TOKENS - 1)))
        assert record.ttft_s >= TTFT_S - 1e-6
        assert record.e2e_s is not None
        assert record.e2e_s >= TTFT_S + (TOKENS - 1) * TPOT_S - 1e-6
    assert statistics.median(ttft_errors) <= 0.02 * TTFT_S + late_s
    assert statistics.median(tpot_errors) <= 0.02 * TPOT_S + late_s / (TOKENS - 1)


def test_requests_go_out_at_their_times_however_slow_the_server_is(server: Mock) -> None:
    """S12: with a server that serves one at a time, the queue is in the latencies and does not slow down the load."""
    # 11 tokens after the first one: 0.1 s and more each, asked for every 0.02 s
    result = load(server, [ask("stalling", ttft_s=0.05, tpot_s=0.005) for _ in range(12)], rate_per_s=50)
    assert all(record.fault is None for record in result.records)
    last = result.records[-1]
    assert last.ttft_s is not None
    assert last.ttft_s >= 0.05 + 11 * (0.105 - 0.02)
    log = server.log()
    # it was sent while the first ones were being served, not after them
    assert last.sent_s is not None
    assert last.sent_s + result.start_s < log[last.request.body["user"]]["received_s"]
    assert not Slo(ttft_s=0.3).met_by(last)


def test_a_client_that_cannot_keep_up_says_so_and_blames_nobody(server: Mock) -> None:
    """Two threads of ours that compute keep a client of 60 requests at one instant from sending in time: INCONCLUSIVE."""
    requests = [ask() for _ in range(60)]
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            pass

    others = [threading.Thread(target=compute) for _ in range(2)]  # each turn of theirs is one switch interval, 5 ms
    for other in others:
        other.start()
    try:
        result = run_load(server.target, requests, [0.0] * 60, count_tokens=count_words)
    finally:
        over.set()
        for other in others:
            other.join()
    assert result.client_lag_p99_s > 0.005
    verdict = judge_slo(result, Slo(ttft_s=0.001), audit=None)
    assert verdict.verdict is Verdict.INCONCLUSIVE
    assert "client" in verdict.reason


def test_warm_up_and_repeats_are_recorded_but_not_counted(server: Mock) -> None:
    """Objectives are about the other requests."""
    result = load(server, [ask(), ask(), ask(repeat=True), ask()], warmup=1)
    assert [record.index for record in result.counted] == [1, 3]
    assert result.summary()["requests"] == 2


def test_chat_completions_are_read_like_completions(server: Mock) -> None:
    """The text of `delta.content` and that of `text` are the same."""
    messages = [{"role": "user", "content": "hello"}]
    request = Request({"model": "mock", "messages": messages, "max_tokens": 5, "ttft_s": 0, "tpot_s": 0})
    chat = replace(server, target=replace(server.target, path="/v1/chat/completions"))
    (record,) = load(chat, [request]).records
    assert record.text == mock.right_text("hello", 5)


@pytest.mark.parametrize("model", ["mock", "speculative", "role_first", "other_spelling", "until_close", "forged"])
def test_honest_spellings_of_a_stream_give_the_same_text(server: Mock, model: str) -> None:
    """However a server cuts and frames its answer, all requests meet the objective and the audit finds nothing."""
    result = load(server, [ask(model) for _ in range(30)])
    assert [record.fault for record in result.records] == [None] * 30
    found = audit(result, is_right, random.Random(1))
    assert (len(found.checked), found.wrong) == (20, ())
    assert judge_slo(result, ANY, audit=found).verdict is Verdict.PASS


# --------------------------------------------------------------------------------------------- rows S1 to S13


def test_a_cache_of_answers_is_seen_in_repeated_prompts(server: Mock) -> None:
    """S1: REVIEW for a server that remembers prompts."""
    load(server, [ask("cached", prompt="again", ttft_s=0.4, tpot_s=0.01)])
    requests = [
        ask("cached", prompt=prompt, repeat=bool(prompt), ttft_s=0.4, tpot_s=0.01) for prompt in 12 * ["again", None]
    ]
    test = repeat_test(load(server, requests, rate_per_s=40))
    assert test.verdict is Verdict.REVIEW
    assert test.low > 1.1


def test_a_server_without_cache_is_not_suspected(server: Mock) -> None:
    """S1, honest twin: with the same mix of prompts, nothing is sure to be faster."""
    requests = [ask(prompt=prompt, repeat=bool(prompt), ttft_s=0.1) for prompt in 12 * ["again", None]]
    assert repeat_test(load(server, requests, rate_per_s=40)).verdict is not Verdict.REVIEW


@pytest.mark.parametrize(
    ("model", "fault"), [("truncated", Fault.SHORT), ("padded", Fault.LONG), ("one_token", Fault.SHORT)]
)
def test_answers_of_another_length_are_misses(server: Mock, model: str, fault: Fault) -> None:
    """S2, S3: half the tokens, twice the tokens, or a single one, however quickly they come."""
    result = load(server, [ask(model) for _ in range(30)])
    assert {record.fault for record in result.records} == {fault}
    assert judge_slo(result, ANY, audit=None).verdict is Verdict.FAIL


def test_an_objective_on_time_per_token_needs_two_tokens(server: Mock) -> None:
    """S3: where one token would do as an answer, TPOT would be undefined, so the judge refuses the question."""
    result = load(server, [replace(ask("one_token"), min_tokens=1)])
    assert result.records[0].fault is None
    assert result.records[0].tpot_s is None
    assert not Slo(tpot_s=1000).met_by(result.records[0])
    with pytest.raises(ValueError, match="min_tokens"):
        judge_slo(result, Slo(tpot_s=1000), audit=None)
    assert judge_slo(result, Slo(ttft_s=1000), audit=None).met == 1


def test_an_empty_first_chunk_does_not_end_the_wait_for_the_first_token(server: Mock) -> None:
    """S4: chunks without text come at once, the first token at its time."""
    record = one(server, "role_first", ttft_s=0.2)
    assert record.ttft_s is not None
    assert record.ttft_s >= 0.2 - 1e-6


@pytest.mark.parametrize("model", ["garbage", "smaller_model"])
def test_wrong_text_fails_however_fast_it_is(server: Mock, model: str) -> None:
    """S5, S8, S13: every latency is fine, and the audit of answers that were timed fails the server."""
    result = load(server, [ask(model) for _ in range(30)])
    found = audit(result, is_right, random.Random(1))
    assert found.wrong == found.checked
    assert judge_slo(result, ANY, audit=None).verdict is Verdict.PASS
    assert judge_slo(result, ANY, audit=found).verdict is Verdict.FAIL


def test_bundled_tokens_do_not_shorten_the_time_per_token(server: Mock) -> None:
    """S6: four tokens a chunk, and still (last - first) / (tokens - 1), whatever the gaps between chunks."""
    record = one(server, "speculative", tpot_s=0.02)
    assert len(record.chunk_times_s) == TOKENS // 4
    assert record.tokens == TOKENS
    theirs = server.log()[record.request.body["user"]]
    expected_s = (theirs["sent_s"][-1] - theirs["sent_s"][0]) / (TOKENS - 1)
    assert record.tpot_s is not None
    assert record.tpot_s < 2 * expected_s  # 5.5 times, were chunks tokens


def test_figures_of_the_server_count_for_nothing(server: Mock) -> None:
    """S7: usage and headers tell of a hundred times as many tokens and 1 ms."""
    record = one(server, "forged", ttft_s=0.1)
    assert record.tokens == TOKENS
    assert record.ttft_s is not None
    assert record.ttft_s >= 0.1 - 1e-6


def test_a_run_can_look_like_the_checks(server: Mock) -> None:
    """S9: the client's headers are the caller's, so a server cannot tell load from checks; one that tries is found out."""
    plain = load(server, [ask("detecting") for _ in range(20)])
    assert audit(plain, is_right, random.Random(1)).wrong
    as_checks = replace(server, target=replace(server.target, headers={"User-Agent": "checks/1"}))
    alike = load(as_checks, [ask("detecting") for _ in range(20)])
    assert not audit(alike, is_right, random.Random(1)).wrong


def test_rejected_requests_are_misses(server: Mock) -> None:
    """S11: a server that turns away every second request fails, though all others are quick."""
    result = load(server, [ask("rejecting") for _ in range(30)])
    verdict = judge_slo(result, ANY, audit=None)
    assert (verdict.verdict, verdict.met) == (Verdict.FAIL, 15)
    assert {record.fault for record in result.records} == {None, Fault.STATUS}


# ------------------------------------------------------------------------------------------ bytes that do harm

TIGHT = Limits(answer_s=60, answer_bytes=1_000_000, line_bytes=20_000, pieces=2_000)


@pytest.mark.parametrize(
    ("model", "fault"),
    {
        "endless": Fault.SIZE,
        "no_newline": Fault.SIZE,
        "many_data_lines": Fault.SIZE,
        "tiny_chunks": Fault.SIZE,
        "blank_lines": Fault.SIZE,
        "endless_head": Fault.FORMAT,
        "endless_continue": Fault.SIZE,
        "bomb": Fault.FORMAT,
        "wrong_json": Fault.FORMAT,
        "no_object": Fault.FORMAT,
        "wrong_types": Fault.FORMAT,
        "deep_json": Fault.SIZE,
        "half_character": Fault.FORMAT,
        "error_object": Fault.ERROR,
        "redirecting": Fault.STATUS,
        "html": Fault.FORMAT,
        "no_http": Fault.FORMAT,
        "after_done": Fault.SHORT,
        "trailing": None,
        "cut": Fault.CUT,
        "broken_off": None,
        "hanging_up": Fault.CUT,
    }.items(),
)
def test_a_hostile_answer_is_a_named_fault_and_a_bounded_one(server: Mock, model: str, fault: Fault | None) -> None:
    """Neither bytes nor lines nor waits are without limit, and an honest request beside it is served all the same."""
    hostile, honest = load(server, [ask(model), ask()], limits=TIGHT).records
    if model == "broken_off":  # which of the two a reset is depends on what had been read before
        assert hostile.fault in (Fault.REFUSED, Fault.CUT)
    else:
        assert (hostile.fault, hostile.detail == "") == (fault, fault is None)
    assert len(hostile.detail) <= 200
    assert len(hostile.text) <= TIGHT.answer_bytes
    assert honest.fault is None


@pytest.mark.parametrize("model", ["dripping", "silent"])
def test_an_answer_has_a_time_limit_as_a_whole(server: Mock, model: str) -> None:
    """A byte now and then does not buy more time."""
    record = one(server, model, limits=Limits(answer_s=0.3))
    assert record.fault is Fault.TIME
    assert record.ended_s - record.scheduled_s >= 0.3


def test_depth_of_nesting_is_no_way_to_crash_the_client(server: Mock) -> None:
    """Sixty thousand brackets within the limit of a line are a fault like any other."""
    assert one(server, "deep_json").fault is Fault.FORMAT


def test_many_hostile_answers_share_one_budget_of_bytes(server: Mock) -> None:
    """All answers of a run together stay below its limit, and so does what the client holds."""
    limits = Limits(total_bytes=2_000_000)
    tracemalloc.start()
    try:
        result = load(server, [ask("endless") for _ in range(20)], limits=limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {record.fault for record in result.records} == {Fault.SIZE}
    assert sum(len(record.text) for record in result.records) < limits.total_bytes
    assert peak < 10 * limits.total_bytes


def test_a_server_that_leaves_everything_unanswered_is_not_sent_more(server: Mock) -> None:
    """Requests beyond the limit are misses at once: open files are limited too."""
    result = load(server, [ask("silent") for _ in range(10)], limits=Limits(answer_s=1.0, in_flight=4))
    assert [record.fault for record in result.records] == [Fault.TIME] * 4 + [Fault.CROWDED] * 6


def test_an_answer_before_the_request_is_no_fast_answer(tmp_path: Path) -> None:
    """Connections are made ahead of time; what a server says on one before it was asked is a fault."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def hurry() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                connection.sendall(b'data: {"choices": [{"text": "a b c"}]}\n\ndata: [DONE]\n\n')
                connection.recv(1)

        thread = threading.Thread(target=hurry)
        thread.start()
        result = run_load(Target(str(tmp_path / "s")), [ask()], [5.0], count_tokens=count_words)
        thread.join()
    (record,) = result.records
    assert (record.fault, record.sent_s, record.text) == (Fault.FORMAT, None, "")


def test_a_server_that_accepts_nobody_is_waited_for_until_time_is_up(tmp_path: Path) -> None:
    """A full queue of connections is the server's delay, for those in it and for those that do not get in."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        limits = Limits(answer_s=0.3)
        result = run_load(Target(str(tmp_path / "s")), [ask()] * 5, [0] * 5, count_tokens=count_words, limits=limits)
    assert {record.fault for record in result.records} == {Fault.TIME}
    assert sum(record.sent_s is None for record in result.records) == 4


@pytest.mark.parametrize("address", ["/nowhere/at/all", ("127.0.0.1", 9)])
def test_nobody_there_is_a_fault_of_every_request(address: str | tuple[str, int]) -> None:
    """Not an exception: a server that died in the middle looks the same."""
    result = run_load(Target(address), [ask()] * 40, [0] * 40, count_tokens=count_words)
    assert {record.fault for record in result.records} == {Fault.REFUSED}
    verdict = judge_slo(replace(result, client_lag_p99_s=0), ANY, audit=None)
    assert (verdict.verdict, verdict.goodput_per_s) == (Verdict.FAIL, 0)


def test_a_mistake_of_the_callers_is_not_taken_for_the_servers(server: Mock) -> None:
    """What a tokenizer raises reaches the caller."""

    def broken(text: str) -> int:
        raise KeyError(text)

    with pytest.raises(KeyError):
        run_load(server.target, [ask()], [0], count_tokens=broken)


def test_a_run_inside_an_event_loop_is_refused(server: Mock) -> None:
    """A judge that is asynchronous itself starts a thread, where it works."""

    async def inside() -> None:
        load(server, [ask()])

    with pytest.raises(RuntimeError):
        asyncio.run(inside())
    results: list[LoadResult] = []
    thread = threading.Thread(target=lambda: results.append(load(server, [ask()])))
    thread.start()
    thread.join()
    assert results[0].records[0].fault is None


# ------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("kind", ["poisson", "constant", "gamma"])
def test_a_schedule_is_drawn_from_its_seed_alone(kind: Any) -> None:
    """The same seed gives the same times, in order, at the rate that was asked for."""
    times = schedule(4000, 50, 7, kind, shape=0.5)
    assert times == schedule(4000, 50, 7, kind, shape=0.5)
    assert list(times) == sorted(times)
    assert times[-1] == pytest.approx(80, rel=0.15)  # 4000 gaps of gamma 0.5: standard deviation 2.2 %
    assert (times == schedule(4000, 50, 8, kind, shape=0.5)) is (kind == "constant")


@pytest.mark.parametrize(("kind", "shape", "variation"), [("poisson", 1, 1), ("gamma", 4, 0.5), ("gamma", 0.25, 2)])
def test_gaps_vary_as_their_distribution_says(kind: Any, shape: float, variation: float) -> None:
    """Standard deviation over mean is 1 / sqrt(shape), and 1 for Poisson."""
    times = (0.0, *schedule(20_000, 10, 3, kind, shape))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(variation, rel=0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: schedule(0, 1, 0),
        lambda: schedule(1, 0, 0),
        lambda: schedule(1, float("inf"), 0),
        lambda: schedule(1, 1, 0, "gamma", 0),
        lambda: schedule(1, 1, 0, "uniform"),  # type: ignore[arg-type]
        lambda: run_load(Target("/x"), [], [], count_tokens=count_words),
        lambda: run_load(Target("/x"), [ask()], [0, 1], count_tokens=count_words),
        lambda: run_load(Target("/x"), [ask()], [0], count_tokens=count_words, warmup=1),
        lambda: run_load(Target("/x"), [ask(), ask()], [1, 0], count_tokens=count_words),
        lambda: run_load(Target("/x"), [ask()], [-1], count_tokens=count_words),
        lambda: run_load(Target("/x"), [ask()], [float("nan")], count_tokens=count_words),
    ],
)
def test_senseless_arguments_are_refused(call: Callable[[], object]) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match=r"must|do not fit"):
        call()


@pytest.mark.parametrize("module", ["load", "slo", "sse"])
def test_the_client_imports_nothing_heavy(module: str) -> None:
    """No torch, no HTTP client, nothing of the autograder: a judge, and a student's notebook, import it."""
    code = f"import sys, gpu_env.{module}; print([m for m in ('torch', 'httpx', 'numpy', 'autograder') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []
