"""The public checks of `continuous_batching`, released with the assignment."""

from __future__ import annotations

import math
from typing import Any

import torch

from autograder.checks import expect_close, expect_equal, fail, show

INF = math.inf
ROW = [2.0, 1.0, 0.0, -1.0]
PIECE = "my U"
"""Its end could be the beginning of "User:"."""


def expect_logits(value: Any, expected: torch.Tensor, what: str) -> None:
    """`value` must be a tensor like `expected`: -inf at the same places, elsewhere close (fp32, any order of operations)."""
    if type(value) is not torch.Tensor or value.shape != expected.shape or value.dtype != torch.float32:
        fail(f"{what} is not of the right kind.", value=value, expected=show(expected))
    for place in ((), *((row,) for row in range(len(expected)))) if expected.dim() > 1 else ((),):
        got, wanted = value[place], expected[place]
        if wanted.dim() > 1:
            continue
        row = f"Row {place[0]} of {what}" if place else what
        if got.isnan().any():
            fail(f"{row} has NaN in it.", value=got.tolist(), expected=show(rounded(wanted)))
        if (got.isneginf() != wanted.isneginf()).any():
            kept, right = int((~got.isneginf()).sum()), int((~wanted.isneginf()).sum())
            said = f"{row} keeps other tokens." if kept == right else f"{row} keeps {kept} tokens."
            fail(said, value=rounded(got), expected=show(rounded(wanted)))
        if not torch.allclose(got, wanted, rtol=1e-5, atol=1e-6):
            fail(f"{row} is not what it should be.", value=rounded(got), expected=show(rounded(wanted)))


def rounded(row: torch.Tensor) -> list[float]:
    """A row as it is shown."""
    return [round(number, 4) for number in row.tolist()]


# ------------------------------------------------------------------------------------------------------------- logits


def test_temperature_example(submission):
    """Logits are divided by the temperature; with temperature 0 only the largest one of each row is left.

    Hint: Handle 0 before you divide. torch.argmax gives the first of equals.
    """
    for logits, temperature, expected in (
        (ROW, 2, [1.0, 0.5, 0.0, -0.5]),
        (ROW, 0.5, [4.0, 2.0, 0.0, -2.0]),
        (ROW, 1.0, ROW),
        (ROW, 0, [2.0, -INF, -INF, -INF]),
        ([[0.0, 3.0, 1.0], [2.0, -1.0, 2.0]], 0.0, [[-INF, 3.0, -INF], [2.0, -INF, -INF]]),
    ):
        got = submission.apply_temperature(torch.tensor(logits), temperature)
        expect_logits(got, torch.tensor(expected), f"apply_temperature({logits}, {temperature})")


def test_top_k_example(submission):
    """The k largest logits of each row are kept, with all that equal the k-th; k = 0 keeps everything.

    Hint: torch.topk gives the k largest of the last dimension; the last of these is the limit.
    """
    for logits, k, expected in (
        (ROW, 2, [2.0, 1.0, -INF, -INF]),
        (ROW, 0, ROW),
        (ROW, 4, ROW),
        (ROW, 9, ROW),
        ([1.0, 3.0, 1.0, 0.0], 2, [1.0, 3.0, 1.0, -INF]),
        ([[5.0, 6.0, 7.0], [3.0, 2.0, 1.0]], 1, [[-INF, -INF, 7.0], [3.0, -INF, -INF]]),
    ):
        got = submission.apply_top_k(torch.tensor(logits), k)
        expect_logits(got, torch.tensor(expected), f"apply_top_k({logits}, {k})")


def test_top_p_example(submission):
    """As few tokens as reach probability p together are kept, the one that reaches it included.

    Hint: For each token, likeliest first: is what stands before it less than p? Then it is kept.
    """
    for logits, p, expected in (
        (ROW, 0.6, [2.0, -INF, -INF, -INF]),
        (ROW, 0.8, [2.0, 1.0, -INF, -INF]),
        (ROW, 0.95, [2.0, 1.0, 0.0, -INF]),
        (ROW, 1, ROW),
        (ROW, 0.0001, [2.0, -INF, -INF, -INF]),
        ([[-1.0, 0.0, 1.0, 2.0], ROW], 0.8, [[-INF, -INF, 1.0, 2.0], [2.0, 1.0, -INF, -INF]]),
    ):
        got = submission.apply_top_p(torch.tensor(logits), p)
        expect_logits(got, torch.tensor(expected), f"apply_top_p({logits}, {p})")


def test_min_p_example(submission):
    """Tokens are kept that are at least min_p times as likely as the likeliest one of their row.

    Hint: Print the probabilities, and min_p times the largest of them.
    """
    for logits, min_p, expected in (
        (ROW, 0.2, [2.0, 1.0, -INF, -INF]),
        (ROW, 0.1, [2.0, 1.0, 0.0, -INF]),
        (ROW, 0, ROW),
        (ROW, 1, [2.0, -INF, -INF, -INF]),
        ([[0.0, 0.0, -3.0], [4.0, 0.0, 3.9]], 0.5, [[0.0, 0.0, -INF], [4.0, -INF, 3.9]]),
    ):
        got = submission.apply_min_p(torch.tensor(logits), min_p)
        expect_logits(got, torch.tensor(expected), f"apply_min_p({logits}, {min_p})")


def test_penalty_example(submission):
    """Logits of tokens that stand in the text are divided by the penalty if positive, multiplied if negative, once each.

    Hint: What must happen to -1 so that it becomes smaller? And which token ids are different ones?
    """
    for penalty, text, expected in (
        (1.5, [0, 3, 0], [2 / 1.5, 1.0, 0.0, -1.5]),
        (1.5, [], ROW),
        (1.0, [0, 1, 2, 3], ROW),
        (0.5, [1, 3, 3, 2], [2.0, 2.0, 0.0, -0.5]),
    ):
        got = submission.apply_repetition_penalty(torch.tensor(ROW), penalty, text)
        expect_logits(got, torch.tensor(expected), f"apply_repetition_penalty({ROW}, {penalty}, {text})")


# ------------------------------------------------------------------------------------------------------------- sample


def drawn(
    submission: Any, logits: torch.Tensor, params: list[Any], generators: list[Any], texts: list[list[int]], what: str
) -> list[int]:
    """What `sample` gives, as a list; it must be a tensor of token ids."""
    got = submission.sample(logits, params, generators, texts)
    if type(got) is not torch.Tensor or got.dtype != torch.int64 or tuple(got.shape) != (len(params),):
        fail(f"{what} is not of the right kind.", value=got, expected=f"tensor of shape ({len(params)},), torch.int64")
    tokens: list[int] = got.tolist()
    if not all(0 <= token < logits.shape[1] for token in tokens):
        fail(f"{what} has tokens that do not exist.", value=tokens, expected=f"0 to {logits.shape[1] - 1}")
    return tokens


def test_sample_certain(submission):
    """Where the parameters leave one token only, that one is drawn: each request by its own parameters and its own text.

    Hint: Go through the requests one by one, and through the five functions in the order of the handout.
    """
    cases = [
        ({"temperature": 0}, [], 0),
        ({"top_k": 1}, [], 0),
        ({"top_p": 0.5}, [], 0),
        ({"min_p": 0.9}, [], 0),
        ({"temperature": 0, "repetition_penalty": 4.0}, [0], 1),
        ({"temperature": 0.0, "repetition_penalty": 4.0}, [2, 0, 1], 0),
        ({"top_k": 1, "repetition_penalty": 4.0}, [3, 0], 1),
    ]
    params = [submission.SamplingParams(**wanted) for wanted, _, _ in cases]
    generators = [submission.make_generator(seed) for seed in range(len(cases))]
    logits = torch.tensor([ROW] * len(cases))
    got = drawn(
        submission, logits, params, generators, [text for _, text, _ in cases], f"sample of {len(cases)} requests"
    )
    for (wanted, text, token), value in zip(cases, got, strict=True):
        expect_equal(value, token, f"The token for the logits {ROW}, {wanted}, after the text {text},")


def test_sample_example(submission):
    """With temperature 2 and top-p 0.8, three tokens of the example are drawn, with the shares of the handout.

    Hint: What are the probabilities that top-p sees: those before or after the temperature?
    """
    # Of 2,000 draws, a share strays by 0.08 with probability at most 2 exp(-2 * 2,000 * 0.08^2) = 2e-11 (Hoeffding).
    many = 1_000
    params = [submission.SamplingParams(temperature=2, top_p=0.8)] * many
    generators = submission.make_generator.each([(seed,) for seed in range(many)])
    logits = torch.tensor([ROW] * many)
    what = "sample of 1000 requests"
    tokens = [t for _ in range(2) for t in drawn(submission, logits, params, generators, [[]] * many, what)]
    for token, wanted in enumerate((0.5065, 0.3072, 0.1863, 0.0)):
        share = tokens.count(token) / len(tokens)
        if abs(share - wanted) > (0.08 if wanted else 0):
            what = f"The share of token {token} with temperature=2, top_p=0.8 and the logits {ROW}"
            fail(
                f"{what} is not right.",
                value=round(share, 3),
                expected=f"{wanted}, give or take 0.08" if wanted else "0",
            )


# ------------------------------------------------------------------------------------------ StopChecker, detokenizer


def expect_fed(value: Any, what: str) -> tuple[str, str | None]:
    """`value` must be the two values of `feed`."""
    if type(value) not in (tuple, list) or len(value) != 2 or type(value[0]) is not str:
        fail(f"{what} must give a pair (text, reason).", value=value, expected='a str, and "stop" or None')
    if value[1] is not None and (type(value[1]) is not str or value[1] != "stop"):
        fail(f"The reason that {what} gives is none.", value=value[1], expected='"stop" or None')
    return value[0], value[1]


def test_stop_examples(submission):
    """The examples of the handout come out, piece by piece.

    Hint: Write down what is held back after each piece. Which endings of the text are beginnings of a stop string?
    """
    for stop, include, fed in (
        (["User:"], False, [("Hi", "Hi"), (". U", ". "), ("s", ""), ("U", "Us"), ("ser: a", "")]),
        (["User:"], True, [("Hi", "Hi"), (". U", ". "), ("s", ""), ("U", "Us"), ("ser: a", "User:")]),
        (["abcd", "bc"], False, [("xab", "x"), ("cd", "a")]),
        (["bc", "abc"], False, [("xab", "x"), ("c", "")]),
        (["\n\n"], False, [("one\n", "one"), ("two", "\ntwo"), ("\n", ""), ("", ""), ("\n", "")]),
    ):
        checker = submission.StopChecker(stop, [], include)
        for number, (piece, shown) in enumerate(fed):
            pieces = [each for each, _ in fed[: number + 1]]
            what = f"feed of the last of the pieces {pieces} with stop={stop}, include_stop={include}"
            text, reason = expect_fed(checker.feed(piece, 1), what)
            expect_equal(text, shown, f"The text to be shown, after {what},")
            expect_equal(reason, "stop" if number == len(fed) - 1 else None, f"The reason, after {what},")
        expect_equal(checker.finish(), "", f"finish() after the reason 'stop', with stop={stop},")
    checker = submission.StopChecker(["User:"])
    checker.feed(PIECE, 1)
    expect_equal(checker.finish(), "U", f"finish() after the piece {PIECE!r} with stop=['User:']")
    nothing = submission.StopChecker([])
    expect_equal(expect_fed(nothing.feed("all", 1), "feed with stop=[]")[0], "all", "The text to be shown with stop=[]")


def test_detokenizer_examples(submission):
    """The examples of the handout come out, also with a tokenizer that drops a space at the beginning of a text.

    Hint: Print decode(tokens[prefix:read]) and decode(tokens[prefix:]) for each push.
    """
    bits = [b"Hi", b" ", b"\xf0\x9f", b"\x99\x82", b"!"]
    words = [b" a", b" cat", b" \xe4\xbd", b"\xa0"]
    for pieces, strip, ids, expected in (
        (bits, False, [0, 1, 2, 3, 4], ["Hi", " ", "", "🙂", "!", ""]),
        (bits, False, [0, 2], ["Hi", "", "\ufffd"]),
        (bits, False, [0, 2, 4], ["Hi", "", "\ufffd!", ""]),
        (words, True, [0, 1, 0, 0], ["a", " cat", " a", " a", ""]),
        (words, True, [2, 3, 1], ["", "你", " cat", ""]),
        (bits, False, [], [""]),
    ):
        detokenizer = submission.IncrementalDetokenizer(decoder(pieces, strip))
        got = [detokenizer.push(token) for token in ids] + [detokenizer.finish()]
        what = f"The texts of the tokens {[pieces[token] for token in ids]}, one push each and finish(),"
        if strip:
            what = f"{what} with a tokenizer that drops the first space,"
        expect_equal(got, expected, what)


def decoder(pieces: list[bytes], strip: bool) -> Any:
    """A `decode` as that of the course's `Tokenizer`, which runs in the grader."""

    def decode(ids: Any) -> str:
        if type(ids) not in (list, tuple) or any(
            type(token) is not int or not 0 <= token < len(pieces) for token in ids
        ):
            fail("decode was given something that is no list of tokens.", value=ids)
        text = b"".join(pieces[token] for token in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if strip else text

    return decode


# ---------------------------------------------------------------------------------------- ContinuousBatchingScheduler


def expect_decision(value: Any, what: str) -> tuple[dict[str, tuple[int, list[int], list[int]]], list[str]]:
    """`value` must be what `schedule` gives."""
    if type(value) not in (tuple, list) or len(value) != 2:
        wanted = "a tuple of a dict and a list"
        fail(f"schedule() must give a pair (scheduled, preempted), {what}.", value=value, expected=wanted)
    scheduled, preempted = value
    if type(preempted) is not list or any(type(name) is not str for name in preempted):
        message = f"schedule() must give a pair (scheduled, preempted); preempted is no list of ids, {what}."
        fail(message, value=preempted)
    if type(scheduled) is not dict:
        message = f"schedule() must give a pair (scheduled, preempted); scheduled is no dict, {what}."
        fail(message, value=scheduled)
    for name, entry in scheduled.items():
        if (
            type(name) is not str
            or type(entry) not in (tuple, list)
            or [type(part) for part in entry] != [int, list, list]
            or any(type(number) is not int for part in entry[1:] for number in part)
        ):
            fail(
                f"An entry of scheduled is not (start, tokens, blocks), {what}.",
                value={name: entry},
                expected="an int, a list of tokens and a list of blocks",
            )
    return value[0], preempted


def expect_table(submission: Any, sizes: dict[str, int], requests: Any, table: Any, what: str) -> None:
    """The decisions must be those of `table`: per step, tokens and blocks of each request; preempted; finished; free blocks."""
    pool = submission.BlockPool(sizes.pop("num_blocks"), sizes.pop("block_size"))
    scheduler = submission.ContinuousBatchingScheduler(pool=pool, **sizes)
    text: dict[str, list[int]] = {}
    computed: dict[str, int] = {}
    for name, prompt, wanted in requests:
        text[name], computed[name] = [1000 + number for number in range(prompt)], 0
        scheduler.add(name, text[name], wanted)
    for number, (counts, preempted, finished, free) in enumerate(table, start=1):
        at = f"in step {number} of {what}"
        scheduled, out = expect_decision(scheduler.schedule(), at)
        expect_equal({name: len(entry[1]) for name, entry in scheduled.items()}, {n: c for n, (c, _) in counts.items()},
                     f"The number of tokens of each request {at}")  # fmt: skip
        expect_equal(out, preempted, f"The list of preempted requests {at}")
        computed |= dict.fromkeys(preempted, 0)
        for name, (count, blocks) in counts.items():
            start, tokens, held = scheduled[name]
            expect_equal(start, computed[name], f"The start of {name} {at}")
            expect_equal(tokens, text[name][start : start + count], f"The tokens of {name} {at}")
            if len(held) != blocks:
                fail(f"The number of blocks of {name} {at} is not right.", value=held, expected=f"{blocks} blocks")
            computed[name] += count
        ready = [name for name in counts if computed[name] == len(text[name])]
        sampled = {name: 10 * number + place for place, name in enumerate(ready)}
        for name, token in sampled.items():
            text[name].append(token)
        done = scheduler.update(sampled)
        if type(done) is not list or any(type(name) is not str for name in done) or sorted(done) != finished:
            fail(f"The list of finished requests {at} is not right.", value=done, expected=show(finished))
        expect_equal(pool.num_free(), free, f"The number of free blocks after update() {at}")


def test_scheduler_room_for_all(submission):
    """Who is finished makes room at once, a long prompt is computed in chunks, and a lone request has no threshold.

    Hint: Start with an endless pool in mind. In which order do requests get tokens of the budget?
    """
    expect_table(
        submission,
        {
            "num_blocks": 100,
            "block_size": 4,
            "max_num_seqs": 2,
            "max_num_batched_tokens": 10,
            "long_prefill_threshold": 8,
        },
        [("a", 3, 2), ("b", 25, 2), ("c", 1, 3)],
        [
            ({"a": (3, 1), "b": (7, 2)}, [], [], 97),
            ({"a": (1, 1), "b": (8, 4)}, [], ["a"], 96),
            ({"b": (8, 6), "c": (1, 1)}, [], [], 93),
            ({"b": (2, 7), "c": (1, 1)}, [], [], 92),
            ({"b": (1, 7), "c": (1, 1)}, [], ["b", "c"], 100),
            ({}, [], [], 100),
        ],
        "three requests with room for two",
    )
    expect_table(
        submission,
        {
            "num_blocks": 100,
            "block_size": 4,
            "max_num_seqs": 2,
            "max_num_batched_tokens": 10,
            "long_prefill_threshold": 8,
        },
        [("a", 25, 1)],
        [({"a": (10, 3)}, [], [], 97), ({"a": (10, 5)}, [], [], 95), ({"a": (5, 7)}, [], ["a"], 100)],
        "one request",
    )


def test_scheduler_example(submission):
    """The example of the handout comes out, step by step: chunks, preemption, and the way back.

    Hint: Print the queue and the list of running requests after each step, and compare with the table.
    """
    expect_table(
        submission,
        {"num_blocks": 5, "block_size": 4, "max_num_seqs": 3, "max_num_batched_tokens": 8, "long_prefill_threshold": 6},
        [("a", 7, 6), ("b", 6, 4), ("c", 2, 3)],
        [
            ({"a": (6, 2), "b": (2, 1)}, [], [], 2),
            ({"a": (1, 2), "b": (4, 2), "c": (2, 1)}, [], [], 0),
            ({"a": (1, 2), "b": (1, 2), "c": (1, 1)}, [], [], 0),
            ({"a": (1, 3), "b": (1, 2)}, ["c"], [], 0),
            ({"a": (1, 3)}, ["b"], [], 2),
            ({"a": (1, 3)}, [], [], 2),
            ({"a": (1, 3)}, [], ["a"], 5),
            ({"b": (6, 2), "c": (2, 1)}, [], [], 2),
            ({"b": (3, 3), "c": (2, 1)}, [], ["b", "c"], 5),
        ],
        "the example",
    )


# ----------------------------------------------------------------------------------------------------- measure_stream


def expect_stream(value: Any, ttft: float | None, tpot: float | None, itl: list[float], what: str) -> None:
    """`value` must be the three measures."""
    if type(value) is not dict or value.keys() != {"ttft_s", "tpot_s", "itl_s"}:
        fail(f"{what} must give a dict of three.", value=value, expected="the keys ttft_s, tpot_s and itl_s")
    for name, expected in (("ttft_s", ttft), ("tpot_s", tpot)):
        if expected is None:
            expect_equal(value[name], None, f"The {name} of {what}")
        else:
            expect_close(value[name], expected, f"The {name} of {what}", rel=1e-6)
    gaps = value["itl_s"]
    if type(gaps) is not list or any(type(gap) is not float for gap in gaps):
        fail(f"itl_s of {what} must be a list of floats.", value=gaps)
    if len(gaps) != len(itl) or not all(
        math.isclose(gap, right, rel_tol=1e-6) for gap, right in zip(gaps, itl, strict=True)
    ):
        fail(f"itl_s of {what} is not what it should be.", value=gaps, expected=show([round(gap, 6) for gap in itl]))


def test_stream_example(submission):
    """TTFT, TPOT and ITL of the example are those of the handout; pieces without a token count for nothing.

    Hint: Leave the pieces without a token out first. How many tokens come after the first piece?
    """
    events = [(10.1, 0), (10.5, 1), (10.6, 1), (10.9, 3), (11.0, 0)]
    got = submission.measure_stream(10.0, events)
    expect_stream(got, 0.5, 0.1, [0.1, 0.3], f"measure_stream(10.0, {events})")
    expect_stream(submission.measure_stream(1.0, []), None, None, [], "measure_stream(1.0, [])")
    expect_stream(submission.measure_stream(1.0, [(3.0, 1)]), 2.0, None, [], "measure_stream(1.0, [(3.0, 1)])")
