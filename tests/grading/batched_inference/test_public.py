"""The public checks of `batched_inference`: the examples of the handout. Released with the assignment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from autograder.checks import expect_close, expect_equal, fail, show
from gpu_env import vllm_engine


def expect_tensor(value: Any, expected: list[list[int]], what: str) -> None:
    """`value` must be an int64 tensor with these rows."""
    shape = (len(expected), len(expected[0]))
    if type(value) is not torch.Tensor or value.dtype != torch.int64 or tuple(value.shape) != shape:
        fail(f"{what} is not of the right kind.", value=value, expected=f"tensor of shape {shape}, torch.int64")
    expect_equal(value.tolist(), expected, what)


def expect_dict(value: Any, names: set[str], what: str) -> dict[str, Any]:
    """`value` must be a dict with these keys."""
    if type(value) is not dict or value.keys() != names:
        fail(f"{what} must be a dict with the keys {sorted(names)}.", value=value)
    return value


# ------------------------------------------------------------------------------------------ the models of these checks


@dataclass(frozen=True)
class Call:
    """One call of a model: rows, columns in the cache before, columns that it read."""

    rows: int
    before: int
    width: int


class Watched:
    """A language model of the checks. It notes what it is asked, and refuses what no model can do.

    `read(ids, mask, positions, cache)` gives the logits [B, W, V] and the cache; `size` is V, `longest` the number of
    positions that there are.
    """

    def __init__(self, read: Callable[..., tuple[torch.Tensor, Any]], size: int, longest: int = 1024) -> None:
        self.read, self.size, self.longest = read, size, longest
        self.calls: list[Call] = []
        self.last: list[list[int]] = []
        """Of each call the tokens in its last column."""
        self._caches: list[tuple[int, int, Any]] = []
        """Rows, columns and content of each."""

    def forward(self, ids: Any, mask: Any, positions: Any, number: Any, use_cache: Any, keep: Any) -> Any:
        """What the submission's `RemoteModel` calls."""
        if type(ids) is not torch.Tensor or ids.dim() != 2 or ids.dtype != torch.int64 or 0 in ids.shape:
            fail("The model was called with input_ids that are no int64 tensor [B, W].", value=ids)
        if int(ids.min()) < 0 or int(ids.max()) >= self.size:
            fail("The model was given tokens that it does not know.", value=ids.tolist())
        rows, before, cache = len(ids), 0, None
        if number is not None:
            if type(number) is not int or not 0 <= number < len(self._caches):
                fail("The model was given a cache that is not one of its own.", value=number)
            held, before, cache = self._caches[number]
            if held != rows:
                fail("The model was given a cache of another batch.", value=rows, expected=f"{held} rows")
        columns = before + ids.shape[1]
        if mask is None:
            mask = torch.ones(rows, columns, dtype=torch.int64)
        if (
            type(mask) is not torch.Tensor
            or tuple(mask.shape) != (rows, columns)
            or not bool(((mask == 0) | (mask == 1)).all())
        ):
            fail(
                f"The model was called with a wrong attention_mask, where its cache holds {before} columns and it reads "
                f"{ids.shape[1]}.",
                value=mask,
                expected=f"a tensor of zeros and ones of shape {(rows, columns)}",
            )
        if positions is None:  # as transformers does it, whatever the mask says
            positions = torch.arange(before, columns)[None]
        if type(positions) is not torch.Tensor or positions.dtype != torch.int64 or positions.shape[-1] != ids.shape[1]:
            fail("The model was called with wrong position_ids.", value=positions, expected=f"int64 {tuple(ids.shape)}")
        if tuple(positions.shape) not in {tuple(ids.shape), (1, ids.shape[1])}:
            fail("The model was called with wrong position_ids.", value=positions, expected=f"int64 {tuple(ids.shape)}")
        if int(positions.min()) < 0 or int(positions.max()) >= self.longest:
            fail("The model was called with position_ids that it does not know.", value=positions.tolist())
        if type(keep) is not int or keep < 0:
            fail("The model was called with a wrong logits_to_keep.", value=keep)
        self.calls.append(Call(rows, before, ids.shape[1]))
        self.last.append(ids[:, -1].tolist())
        logits, cache = self.read(ids, mask.long(), positions.expand(ids.shape), cache)
        if number is None and use_cache is not False:
            number = len(self._caches)
            self._caches.append((rows, columns, cache))
        elif number is not None:
            self._caches[number] = (rows, columns, cache)
        return [logits[:, -keep:].contiguous(), number]

    def given(self, submission: Any) -> Any:
        """The model as the submission gets it."""
        return submission.RemoteModel(self.forward)


def counting() -> Watched:
    """A model of ten tokens that counts: after 3 comes 4. It looks at the last token only."""

    def read(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        return torch.nn.functional.one_hot((ids + 1) % 10, 10).float(), cache

    return Watched(read, 10)


def adding() -> Watched:
    """A model of 11 tokens that looks at the whole text: it adds up (position + 1) * (token² + 1), and says the sum modulo 11.

    As in a real model, a token sees those tokens up to itself that the mask shows it, and its cache holds what was read.
    """

    def read(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        worth = (positions + 1) * (ids * ids + 1)
        held = worth if cache is None else torch.cat([cache, worth], 1)
        sums = (held * mask).cumsum(1)[:, -ids.shape[1] :]
        return torch.nn.functional.one_hot(sums % 11, 11).float(), held

    return Watched(read, 11)


def added(prompt: list[int], most: int, eos: int | None = None) -> list[int]:
    """What `adding` writes after one text alone."""
    text = list(prompt)
    while len(text) < len(prompt) + most:
        text.append(sum((place + 1) * (token * token + 1) for place, token in enumerate(text)) % 11)
        if text[-1] == eos:
            break
    return text[len(prompt) :]


def rectangle(rows: list[list[int]], filler: int) -> list[list[int]]:
    """Rows of the same width, filled up on the right."""
    width = max(map(len, rows))
    return [row + [filler] * (width - len(row)) for row in rows]


def left(rows: list[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask of prompts that are padded on the left."""
    width = max(map(len, rows))
    ids = [[filler] * (width - len(row)) + row for row in rows]
    return torch.tensor(ids), torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


# ----------------------------------------------------------------------------------------------------------- pad_batch


def test_pad_example(submission):
    """The example of the handout comes out, with pads on either side.

    Hint: The longest text says how many columns there are. Which columns has a shorter one, on each side?
    """
    for side, rows in (
        ("left", ([[5, 6, 7], [0, 8, 9]], [[1, 1, 1], [0, 1, 1]], [[0, 1, 2], [0, 0, 1]])),
        ("right", ([[5, 6, 7], [8, 9, 0]], [[1, 1, 1], [1, 1, 0]], [[0, 1, 2], [0, 1, 0]])),
    ):
        found = submission.pad_batch([[5, 6, 7], [8, 9]], 0, side)
        what = f"pad_batch([[5, 6, 7], [8, 9]], 0, {side!r})"
        if type(found) not in (tuple, list) or len(found) != 3:
            fail(f"{what} must be three tensors.", value=found)
        for value, expected, name in zip(found, rows, ("input_ids", "attention_mask", "position_ids"), strict=True):
            expect_tensor(value, expected, f"The {name} of {what}")
    expect_equal(submission.pad_batch([[4]], 1)[0].tolist(), [[4]], "The input_ids of one text of one token")


# ------------------------------------------------------------------------------------------------------ greedy_generate


def test_greedy_example(submission):
    """The example of the handout comes out, from as many calls and columns as it says.

    Hint: Run the cell above the task with your function, and compare what the model reads with the table.
    """
    ids, mask = left([[1, 2, 3], [7]], 0)
    for most, eos, cache, expected, widths in (
        (3, 9, True, [[4, 5, 6], [8, 9, 0]], [3, 1, 1]),
        (20, 9, True, [[4, 5, 6, 7, 8, 9], [8, 9, 0, 0, 0, 0]], [3, 1, 1, 1, 1, 1]),
        (3, None, True, [[4, 5, 6], [8, 9, 0]], [3, 1, 1]),
        (3, 9, False, [[4, 5, 6], [8, 9, 0]], [3, 4, 5]),
    ):
        model = counting()
        got = submission.greedy_generate(model.given(submission), ids, mask, most, eos, 0, cache)
        what = f"greedy_generate for the example, with max_new_tokens={most}, eos_id={eos}, use_cache={cache}"
        expect_tensor(got, expected, f"The result of {what}")
        expect_equal(
            [call.width for call in model.calls], widths, f"How many columns the model read in each call of {what},"
        )


def test_greedy_rows(submission):
    """A row of a batch is written as if it were alone: no pad is seen, and positions count its own tokens.

    Hint: Print mask and positions of each call, for the shortest row. Which position has its first new token?
    """
    rows = [[3, 1, 4, 1, 5], [2, 7], [9], [6, 6, 6]]
    ids, mask = left(rows, 8)
    for cache in (True, False):
        model = adding()
        got = submission.greedy_generate(model.given(submission), ids, mask, 6, None, 8, cache)
        what = f"greedy_generate for {rows}, with use_cache={cache}"
        expect_tensor(got, [added(row, 6) for row in rows], f"The result of {what}")


# ----------------------------------------------------------------------------------------------------------- throughput


def test_throughput_example(submission):
    """The example of the handout: new tokens of all rows over the time, and the time over the steps.

    Hint: Which of the tokens in row [8, 9, 0] did anybody ask for?
    """
    for rows, eos, seconds, tokens, rate, wait in (
        ([[4, 5, 6], [8, 9, 0]], 9, 0.5, 5, 10.0, 500 / 3),
        ([[4, 5, 6], [8, 9, 0]], None, 0.5, 6, 12.0, 500 / 3),
        ([[9, 9], [9, 9], [0, 0]], 9, 2, 4, 2.0, 1000.0),
    ):
        what = f"throughput({rows}, {eos}, {seconds})"
        found = submission.throughput(torch.tensor(rows), eos, seconds)
        found = expect_dict(found, {"new_tokens", "tokens_per_s", "time_per_token_ms"}, what)
        expect_equal(found["new_tokens"], tokens, f"new_tokens of {what}")
        expect_close(found["tokens_per_s"], rate, f"tokens_per_s of {what}")
        expect_close(found["time_per_token_ms"], wait, f"time_per_token_ms of {what}")


# ----------------------------------------------------------------------------------------------------- batched_generate


def test_batched_example(submission):
    """Five prompts of the handout's lengths go through in three batches, and come back in their order, each to its end.

    Hint: Which prompt does row 0 of a batch belong to? Keep the numbers of the prompts beside their lengths.
    """
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 1], [2, 2, 2, 2, 2, 2, 2, 2], [5, 3, 1], [4, 4]]
    model = adding()
    got = submission.batched_generate(model.given(submission), prompts, 2, 5, 3, 8)
    expected = [added(prompt, 5, 3) for prompt in prompts]
    expect_equal(got, expected, f"batched_generate of {prompts} with batch_size=2")
    first = [call for call in model.calls if not call.before]
    expect_equal(len(first), 3, "The number of batches of five prompts with batch_size=2")
    places = sum(call.rows * call.width for call in first)
    if places > 29:
        fail("More places are read in the first steps than in either sorted order.", value=places, expected="26 or 29")
    nothing = submission.batched_generate(model.given(submission), [], 2, 5, 3, 8)
    expect_equal(nothing, [], "batched_generate of no prompts")


# --------------------------------------------------------------------------------------------------- benchmark, compare


class Device:
    """A device that works by itself, and the clock beside it: work is asked for, and done one after the other.

    The n-th work that it is asked for takes `slow(n)` times as long as on the fresh device. To ask takes `ask_s`; work from
    before takes another `left_s`. With `waits`, whoever asks waits until it is done.
    """

    def __init__(
        self,
        slow: Callable[[int], float] = lambda n: 1.0,
        ask_s: float = 0.0,
        left_s: float = 0.0,
        waits: bool = False,
    ) -> None:
        self.slow, self.ask_s, self.waits = slow, ask_s, waits
        self.now = 100.0
        self.free = self.now + left_s
        self.done: list[str] = []
        """The names of all work, as it was asked for."""

    def job(self, name: str, work_s: Callable[[int], float]) -> Callable[[], None]:
        """A function for the submission: its n-th call asks for work that takes `work_s(n)` on the fresh device."""
        calls = itertools.count()

        def call() -> None:
            self.now += self.ask_s
            self.free = max(self.free, self.now) + work_s(next(calls)) * self.slow(len(self.done))
            self.done.append(name)
            if self.waits:
                self.sync()

        return call

    def sync(self) -> None:
        """Wait until all is done."""
        self.now = max(self.now, self.free)

    def clock(self) -> float:
        """The time."""
        return self.now


def expect_times(value: Any, expected: list[float], what: str) -> None:
    """`value` must be a list of floats, near `expected` one by one."""
    if type(value) is not list or len(value) != len(expected) or any(type(each) is not float for each in value):
        fail(f"{what} must be a list of {len(expected)} floats.", value=value)
    for number, (time_s, wanted) in enumerate(zip(value, expected, strict=True)):
        if not (math.isfinite(time_s) and math.isclose(time_s, wanted, rel_tol=1e-6)):
            fail(f"Number {number} of {what} is not what it should be.", value=value, expected=show(expected))


STATS = {"min_s", "median_s", "p95_s", "times_s"}


def test_benchmark_example(submission):
    """Five calls after two for warming up take 4, 2, 3, 10 and 1 s, also on a device that works by itself.

    Hint: Draw a time line: when is work asked for, when is it done, when do you look at the clock?
    """
    times = [7.0, 7.0, 4.0, 2.0, 3.0, 10.0, 1.0]
    for waits in (True, False):
        device = Device(waits=waits)
        fn = device.job("fn", lambda n: times[n] if n < len(times) else 9.0)
        found = submission.benchmark(fn, 2, 5, device.sync, device.clock)
        what = "benchmark" if waits else "benchmark on a device that works by itself"
        found = expect_dict(found, STATS, f"The result of {what}")
        expect_equal(len(device.done), 7, f"The number of calls of fn by {what}")
        expect_times(found["times_s"], times[2:], f"times_s of {what}")
        for name, expected in (("min_s", 1.0), ("median_s", 3.0), ("p95_s", 8.8)):
            expect_close(found[name], expected, f"The {name} of {what}", rel=1e-6)


def test_compare_example(submission):
    """The example of the handout: a, b, b, a on a machine that becomes slower.

    Hint: Write down who is called when. The first call of each is not timed.
    """
    device = Device(slow=lambda n: 1 + 0.5 * max(0, n - 2))  # the first two are not timed
    a, b = device.job("a", lambda n: 0.008), device.job("b", lambda n: 0.004)
    found = submission.compare(a, b, 2, device.sync, device.clock)
    found = expect_dict(found, {"ratio_median", "ratios"}, "The result of compare")
    expect_equal(device.done, ["a", "b", "a", "b", "b", "a"], "Who was called, one after the other,")
    expect_times(found["ratios"], [8 / 6, 2.5], "ratios of compare")
    expect_close(found["ratio_median"], (8 / 6 + 2.5) / 2, "ratio_median of compare", rel=1e-6)


# -------------------------------------------------------------------------------------------------------- vllm_generate


class Asked:
    """What a `RemoteLLM` asks: once, for all prompts. `answer` gives the texts, as the submission's object takes them."""

    def __init__(self, answer: Callable[[list[list[int]], list[dict[str, Any]]], list[Any]]) -> None:
        self.answer = answer
        self.calls = 0

    def __call__(self, prompts: Any, params: Any) -> Any:
        """One call of `generate`."""
        self.calls += 1
        if self.calls > 1:
            fail("generate was called again. The engine makes batches of what it has; give it all prompts at once.")
        if type(prompts) is not list or type(params) is not list or len(prompts) != len(params):
            fail("The engine was asked for nonsense.", value=prompts)
        for prompt, each in zip(prompts, params, strict=True):
            if type(prompt) is not list or type(each) is not dict or any(type(token) is not int for token in prompt):
                fail("The engine was asked for nonsense.", value=prompt)
        return self.answer(prompts, params)


def test_vllm_call(submission):
    """All prompts go to the engine in one call, with SamplingParams that ask for greedy texts of the right length.

    Hint: Print SamplingParams(). Which of the defaults are not what you want?
    """
    if why := vllm_engine.obstacle():
        pytest.skip(f"{why} (Graders have it.)")
    prompts = [[1, 504, 3575], [2], [28, 339]]

    def answer(asked: list[list[int]], params: list[dict[str, Any]]) -> list[Any]:
        expect_equal(asked, prompts, "The prompts that the engine was given")
        for each in params:
            if each.get("temperature") != 0 and each.get("top_k") != 1:
                fail("The texts are not greedy.", value=each.get("temperature"), expected="temperature 0")
            expect_equal(each.get("max_tokens"), 5, "max_tokens")
        return [[[each[-1] + 1, 2], "stop", "text"] for each in asked]

    asked = Asked(answer)
    got = submission.vllm_generate(submission.RemoteLLM(asked), prompts, 5)
    expect_equal(got, [[3576, 2], [3, 2], [340, 2]], f"vllm_generate of {prompts}")
    expect_equal(asked.calls, 1, "The number of calls of generate")
    expect_equal(submission.vllm_generate(submission.RemoteLLM(asked), [], 5), [], "vllm_generate of no prompts")
