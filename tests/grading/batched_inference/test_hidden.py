"""The hidden checks of `batched_inference`. They ask for nothing that the handout does not say."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autograder.checks import expect_close, expect_equal, expect_raises, fail
from gpu_env import models
from grading.batched_inference import oracles
from grading.batched_inference.test_public import (
    STATS,
    Asked,
    Call,
    Device,
    counting,
    expect_dict,
    expect_tensor,
    expect_times,
    left,
    rectangle,
)


def expect_count_checked(call: Callable[[Any], Any], name: str, minimum: int = 0) -> None:
    """`call` must refuse what is no count of at least `minimum`."""
    for value, error in ((minimum - 1, "ValueError"), (True, "TypeError"), (2.0, "TypeError"), ("3", "TypeError")):
        expect_raises(error, lambda value=value: call(value), f"{name}={value!r}", naming=name)


# ----------------------------------------------------------------------------------------------------------- pad_batch


def test_pad_any(submission, rng):
    """Texts of any lengths, with pad tokens among their own tokens, are padded on either side.

    Hint: What is a pad and what is a token? Only the lengths say so.
    """
    for case in range(24):
        pad = rng.choice([0, 0, 2, 5, 49_151])
        lengths = [rng.randint(1, 9) for _ in range(rng.randint(1, 6))]
        if case == 0:
            lengths = [4, 4, 4]
        seqs = [[rng.choice([pad, 0, 2, rng.randrange(50_000)]) for _ in range(length)] for length in lengths]
        width = max(lengths)
        for side in ("left", "right"):
            expected: list[list[list[int]]] = [[], [], []]
            for seq in seqs:
                filler = [0] * (width - len(seq))
                for into, own, fill in zip(
                    expected,
                    (seq, [1] * len(seq), list(range(len(seq)))),
                    ([pad] * len(filler), filler, filler),
                    strict=True,
                ):
                    into.append(fill + own if side == "left" else own + fill)
            found = submission.pad_batch(seqs, pad, side)
            what = f"pad_batch({seqs}, {pad}, {side!r})"
            if type(found) not in (tuple, list) or len(found) != 3:
                fail(f"{what} must be three tensors.", value=found)
            for value, wanted, name in zip(
                found, expected, ("input_ids", "attention_mask", "position_ids"), strict=True
            ):
                expect_tensor(value, wanted, f"The {name} of {what}")
    expect_equal(submission.pad_batch([[1, 2], [3]], 7)[0].tolist(), [[1, 2], [7, 3]], "The side that is the default")


def test_pad_arguments(submission):
    """No texts, an empty text, another side and a wrong pad_id are errors that name the argument.

    Hint: check_count, and two conditions of your own.
    """
    for seqs in ([], [[1], []]):
        expect_raises("ValueError", lambda seqs=seqs: submission.pad_batch(seqs, 0), f"seqs={seqs}", naming="seqs")
    for side in ("middle", "LEFT"):
        call = lambda side=side: submission.pad_batch([[1], [1, 2]], 0, side)  # noqa: E731
        expect_raises("ValueError", call, f"side={side!r}", naming="side")
    expect_count_checked(lambda value: submission.pad_batch([[1]], value), "pad_id")


# ------------------------------------------------------------------------------------------------------ greedy_generate


def test_greedy_transformers(submission, rng):
    """Llama and GPT-2 write in a batch what transformers says after each prompt alone, with a cache and without.

    Hint: GPT-2 has a vector for each position. Which one gets the first new token of a short row?
    """
    for kind, lengths in (("GPT2", [9, 4, 1, 6]), ("Llama", [3, 7, 7, 2, 12]), ("GPT2", [5])):
        model = oracles.tiny(kind, rng)
        prompts, texts = oracles.rows(model, rng, lengths, 10)
        pad = rng.choice(texts[0][:5])  # a token like others
        for eos in (None, oracles.an_end(texts, rng)):
            expected = rectangle([oracles.ended(text, eos) for text in texts], pad)
            for cache in (True, False):
                watched = oracles.watched(model)
                got = submission.greedy_generate(watched.given(submission), *left(prompts, pad), 10, eos, pad, cache)
                what = (
                    f"greedy_generate with a small {kind}, prompts of {lengths} tokens, eos_id={eos}, use_cache={cache}"
                )
                expect_tensor(got, expected, f"The result of {what}")
    model = oracles.tiny("Llama", rng)
    theirs = submission.small_llama(oracles.LLAMA, dict(model.state_dict()))
    prompts, texts = oracles.rows(model, rng, [6, 2, 8], 10)
    for cache in (True, False):
        got = submission.greedy_generate(theirs, *left(prompts, 0), 10, None, 0, cache)
        expect_tensor(got, texts, f"The result of greedy_generate with a LlamaForCausalLM, use_cache={cache},")


def test_greedy_counts(submission, rng):
    """The model is called once for each column of the result, and reads only what it has to.

    Hint: Count the calls, and the columns of each, by hand for three new tokens.
    """
    for _ in range(6):
        width, most = rng.randint(1, 9), rng.randint(2, 12)
        prompts = [[rng.randrange(9) for _ in range(length)] for length in (width, rng.randint(1, width))]
        for cache in (True, False):
            for eos in (None, 9):
                model = counting()
                got = submission.greedy_generate(model.given(submission), *left(prompts, 0), most, eos, 0, cache)
                texts = [[(prompt[-1] + 1 + place) % 10 for place in range(most)] for prompt in prompts]
                texts = rectangle([oracles.ended(text, eos) for text in texts], 0)
                columns = len(texts[0])
                what = (
                    f"greedy_generate for prompts of width {width}, max_new_tokens={most}, use_cache={cache}, where the last "
                    f"text ends after {columns} tokens,"
                )
                expect_tensor(got, texts, f"The result of {what}")
                expect_equal(len(model.calls), columns, f"The number of calls of the model by {what}")
                expected = [Call(2, 0, width)]
                for step in range(1, columns):
                    expected.append(Call(2, width + step - 1, 1) if cache else Call(2, 0, width + step))
                for number, (call, wanted) in enumerate(zip(model.calls, expected, strict=True)):
                    if call != wanted:
                        fail(
                            f"Call {number} of the model by {what} is not as it should be.",
                            value=f"{call.before} columns in its cache, {call.width} read",
                            expected=f"{wanted.before} in its cache, {wanted.width} read",
                        )


def test_greedy_ends(submission, rng):
    """Token 0 can end texts, the pad token can be a part of them, pads may be EOS, and no token at all may be wanted.

    Hint: None is the only eos_id that means "none".
    """
    for last, eos, pad, most, expected in (
        ([7, 5], 0, 9, 9, [[8, 9, 0, 9, 9], [6, 7, 8, 9, 0]]),
        ([7, 5], 0, 0, 9, [[8, 9, 0, 0, 0], [6, 7, 8, 9, 0]]),
        ([7, 5], 8, 8, 4, [[8, 8, 8], [6, 7, 8]]),
        ([7, 5], None, 9, 3, [[8, 9, 0], [6, 7, 8]]),
        ([3, 3], 4, 0, 7, [[4], [4]]),
        ([3, 8], 9, 4, 2, [[4, 5], [9, 4]]),
    ):
        model = counting()
        ids, mask = left([[rng.randrange(10), token] for token in last], pad)
        got = submission.greedy_generate(model.given(submission), ids, mask, most, eos, pad)
        what = f"greedy_generate after {last}, where the model counts, with eos_id={eos}, pad_id={pad}, max_new_tokens={most}"
        expect_tensor(got, expected, f"The result of {what}")
    model = counting()
    got = submission.greedy_generate(model.given(submission), *left([[1], [2]], 0), 0, None, 0)
    what = "greedy_generate with max_new_tokens=0"
    if type(got) is not torch.Tensor or got.dtype != torch.int64 or tuple(got.shape) != (2, 0):
        fail(
            f"The result of {what} is not of the right kind.", value=got, expected="tensor of shape (2, 0), torch.int64"
        )
    expect_equal(len(model.calls), 0, f"The number of calls of the model by {what}")


def test_greedy_arguments(submission):
    """max_new_tokens is checked and named.

    Hint: check_count, before the model is called.
    """

    def call(value: Any) -> Any:
        return submission.greedy_generate(counting().given(submission), *left([[1], [2]], 0), value, None, 0)

    expect_count_checked(call, "max_new_tokens")


def speed_source(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def test_greedy_speed(submission, timed):
    """After a prompt of 512 tokens, generating with a cache is at least 2.5 times as fast as without.

    Hint: What does each step read? And what else is computed in each step, for all columns, that one column would do for?
    """
    sizes = oracles.speed()
    expected: dict[tuple[int, ...], list[int]] = {}

    def draw(rng: random.Random) -> list[torch.Tensor]:
        prompt, text = oracles.speed_text(
            sizes.MODELS["narrow"], sizes.NARROW["vocab_size"], sizes.CONTEXT, sizes.AFTER_CONTEXT, rng
        )
        expected[tuple(prompt)] = text
        return [torch.tensor([prompt])]

    def right(got: Any, ids: torch.Tensor) -> None:
        expect_equal(
            got, [expected[tuple(ids[0].tolist())]], "The new tokens that greedy_generate gives after 512 tokens"
        )

    timed.expect(
        "after_context", reference=speed_source("plain.py"), driver=speed_source("speed.py"), inputs=draw, right=right,
        time_s=60.0,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- throughput


def test_throughput_any(submission, rng):
    """Everything up to the first EOS counts in each row, whatever stands after it; token 0 can be EOS.

    Hint: Go row by row, and look for the first EOS.
    """
    for _ in range(20):
        eos, pad = rng.choice([None, 0, 3]), rng.choice([0, 3, 5])
        columns = rng.randint(1, 12)
        rows, tokens = [], 0
        for _ in range(rng.randint(1, 6)):
            count = rng.randint(1, columns)
            row = [
                rng.choice([1, 2, 5, 7, *([0] if eos != 0 else []), *([3] if eos != 3 else [])]) for _ in range(count)
            ]
            if eos is None:
                row += [5] * (columns - count)
            elif count < columns or rng.random() < 0.3:
                row[-1] = eos
            rows.append(row + [pad] * (columns - len(row)))
            tokens += columns if eos is None else count
        seconds = rng.uniform(0.01, 20)
        what = f"throughput({rows}, {eos}, {seconds})"
        found = submission.throughput(torch.tensor(rows), eos, seconds)
        found = expect_dict(found, {"new_tokens", "tokens_per_s", "time_per_token_ms"}, what)
        expect_equal(found["new_tokens"], tokens, f"new_tokens of {what}")
        expect_close(found["tokens_per_s"], tokens / seconds, f"tokens_per_s of {what}")
        expect_close(found["time_per_token_ms"], seconds * 1000 / columns, f"time_per_token_ms of {what}")


def test_throughput_arguments(submission):
    """elapsed_s is checked and named.

    Hint: check_number.
    """
    ids = torch.tensor([[1, 2]])
    for value in (0, 0.0, -1.0, math.nan, math.inf):
        call = lambda value=value: submission.throughput(ids, None, value)  # noqa: E731
        expect_raises("ValueError", call, f"elapsed_s={value}", naming="elapsed_s")
    for other in (True, "1", None):
        call = lambda other=other: submission.throughput(ids, None, other)  # noqa: E731
        expect_raises("TypeError", call, f"elapsed_s={other!r}", naming="elapsed_s")


# ----------------------------------------------------------------------------------------------------- batched_generate


def test_batched_rows(submission, rng):
    """Whatever the batch size, each prompt gets what transformers says after it alone, in the order of the prompts.

    Hint: Give every prompt a number before you sort, and put its result there.
    """
    model = oracles.tiny("GPT2", rng)
    lengths = [7, 2, 9, 2, 4, 1, 6, 9, 3]
    prompts, texts = oracles.rows(model, rng, lengths, 8)
    for size in (1, 2, 4, 9, 20):
        eos = oracles.an_end(texts, rng) if size % 2 == 0 else None
        pad = {2: eos, 4: texts[0][1], 9: prompts[0][2]}.get(size) or rng.randrange(oracles.SIZE)
        got = submission.batched_generate(oracles.watched(model).given(submission), prompts, size, 8, eos, pad)
        what = f"batched_generate of prompts of {lengths} tokens, batch_size={size}, eos_id={eos}, pad_id={pad}"
        expect_equal(got, [oracles.ended(text, eos) for text in texts], f"The result of {what}")


def test_batched_counts(submission, rng):
    """As few batches as possible, of prompts of similar length, and none goes on when all its texts have ended.

    Hint: Count batches, and the places that their first steps read. Compare with both sorted orders.
    """
    for number, size in ((10, 4), (16, 8), (7, 3), (5, 5), (3, 8)):
        lengths = [rng.choice([1, 2, 3, rng.randint(4, 30)]) for _ in range(number)]
        prompts = [[rng.randrange(10) for _ in range(length)] for length in lengths]
        rng.shuffle(prompts)
        model = counting()
        got = submission.batched_generate(model.given(submission), prompts, size, 12, 9, 5)
        what = f"batched_generate of prompts of {[len(prompt) for prompt in prompts]} tokens, batch_size={size},"
        texts = [[(prompt[-1] + 1 + step) % 10 for step in range((8 - prompt[-1]) % 10 + 1)] for prompt in prompts]
        expect_equal(got, texts, f"The result of {what}")
        first = [call for call in model.calls if not call.before]
        batches = math.ceil(number / size)
        expect_equal(len(first), batches, f"The number of batches of {what}")
        largest = max(call.rows for call in first)
        if largest > size or sum(call.rows for call in first) != number:
            fail(f"The rows of the batches are wrong in {what}.", value=[call.rows for call in first])
        worst = 0
        for order in (sorted(map(len, prompts)), sorted(map(len, prompts), reverse=True)):
            parts = [order[start : start + size] for start in range(0, number, size)]
            worst = max(worst, sum(len(part) * max(part) for part in parts))
        places = sum(call.rows * call.width for call in first)
        if places > worst:
            fail(f"The first steps read too many places in {what}.", value=places, expected=f"at most {worst}")
        last: list[int] = []
        steps = 0
        for call, read in zip([*model.calls, Call(0, 0, 0)], [*model.last, []], strict=True):
            if call.before:
                steps += 1
                continue
            if last:
                longest = max((8 - token) % 10 + 1 for token in last)  # tokens up to and with the 9
                expect_equal(
                    steps, longest, f"The number of calls for the batch of texts that end with {last} in {what}"
                )
            last, steps = read, 1


def test_batched_smollm(submission, rng):
    """With SmolLM2-135M in fp32, a batch writes what transformers says after each prompt alone, and ends where that ends.

    Hint: In which column does each text go on, and what does the mask say about the columns before it?
    """
    prompts, most, texts = oracles.smollm_choice(rng, 3)
    model = submission.load_model(str(models.find(oracles.MODEL)))
    got = submission.batched_generate(model, prompts, 3, most, oracles.EOS, oracles.PAD)
    what = (
        f"batched_generate of SmolLM2, prompts of {[len(prompt) for prompt in prompts]} tokens, max_new_tokens={most}"
    )
    expect_equal(got, texts, f"The result of {what}")


def test_batched_arguments(submission):
    """batch_size and max_new_tokens are checked and named, also where there is nothing to do.

    Hint: check_count, before anything else.
    """
    for prompts in ([], [[1], [2, 3]]):

        def call(size: Any, most: Any, prompts: Any = prompts) -> Any:
            return submission.batched_generate(counting().given(submission), prompts, size, most, None, 0)

        expect_count_checked(lambda value, call=call: call(value, 3), "batch_size", 1)
        expect_count_checked(lambda value, call=call: call(2, value), "max_new_tokens")
    model = counting()
    got = submission.batched_generate(model.given(submission), [[1], [2, 3]], 2, 0, None, 0)
    expect_equal(got, [[], []], "batched_generate of two prompts with max_new_tokens=0")
    got = submission.batched_generate(model.given(submission), [], 2, 5, None, 0)
    expect_equal(
        (got, len(model.calls)), ([], 0), "batched_generate of no prompts, and the number of calls of the model"
    )


def test_batched_speed(submission, timed):
    """Eight prompts in one batch are done at least twice as fast as one after the other.

    Hint: How many times are the weights read? Look for loops over the rows inside of the loop over the steps.
    """
    sizes = oracles.speed()
    expected: dict[tuple[int, ...], list[int]] = {}

    def draw(rng: random.Random) -> list[list[list[int]]]:
        prompts = []
        for _ in range(sizes.BATCH):
            length = rng.randint(sizes.SHORTEST, sizes.LONGEST)
            prompt, text = oracles.speed_text(
                sizes.MODELS["wide"], sizes.WIDE["vocab_size"], length, sizes.AFTER_SHORT, rng
            )
            expected[tuple(prompt)] = text
            prompts.append(prompt)
        return [prompts]

    def right(got: Any, prompts: list[list[int]]) -> None:
        expect_equal(
            got, [expected[tuple(prompt)] for prompt in prompts], "What batched_generate gives for eight prompts"
        )

    timed.expect(
        "after_prompts", reference=speed_source("plain.py"), driver=speed_source("speed.py"), inputs=draw, right=right,
        time_s=60.0,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- benchmark, compare


def test_benchmark_device(submission, rng):
    """On a device that works by itself, each time is that of one call: nothing from before, nothing left out.

    Hint: sync() before you start the clock, and before you stop it. Count the calls of fn.
    """
    for warmup, repeats, ask_s, left_s in ((0, 3, 0.0, 4.0), (2, 7, 0.25, 0.0), (1, 1, 0.5, 9.0), (3, 20, 0.001, 1.0)):
        work = [rng.randint(1, 4000) / 256 for _ in range(warmup + repeats + 1)]
        device = Device(ask_s=ask_s, left_s=left_s)
        fn = device.job("fn", lambda n, work=work: work[min(n, len(work) - 1)])
        found = submission.benchmark(fn, warmup, repeats, device.sync, device.clock)
        what = f"benchmark with warmup={warmup}, repeats={repeats}"
        found = expect_dict(found, STATS, f"The result of {what}")
        expect_equal(len(device.done), warmup + repeats, f"The number of calls of fn by {what}")
        expected = [ask_s + each for each in work[warmup : warmup + repeats]]
        expect_times(found["times_s"], expected, f"times_s of {what}")


def test_benchmark_statistics(submission, rng):
    """Minimum, median and 95th percentile are those of numpy, for one time, for few and for many.

    Hint: 0.95 times how many? Try it with two times and with 21.
    """
    for repeats in (1, 2, 3, 4, 20, 21, rng.randint(22, 90)):
        work = [rng.randint(1, 4000) / 256 for _ in range(repeats)]
        device = Device()
        fn = device.job("fn", lambda n, work=work: work[n] if n < len(work) else 1.0)
        what = f"benchmark with repeats={repeats}"
        found = submission.benchmark(fn, 0, repeats, device.sync, device.clock)
        found = expect_dict(found, STATS, f"The result of {what}")
        for name, expected in (
            ("min_s", min(work)), ("median_s", float(np.median(work))), ("p95_s", float(np.percentile(work, 95))),
        ):  # fmt: skip
            expect_close(found[name], expected, f"{name} of {what}", rel=1e-6)


def test_benchmark_arguments(submission):
    """warmup and repeats are checked and named, and then fn is not called.

    Hint: check_count with a minimum, before the first call.
    """
    device = Device()
    fn = device.job("fn", lambda n: 1.0)
    expect_count_checked(lambda value: submission.benchmark(fn, value, 2, device.sync, device.clock), "warmup")
    expect_count_checked(lambda value: submission.benchmark(fn, 2, value, device.sync, device.clock), "repeats", 1)
    expect_equal(len(device.done), 0, "The number of calls of fn after these errors")


def test_compare_drift(submission, rng):
    """On a machine that becomes slower and is interrupted, each ratio is that of two times taken together.

    Hint: One ratio for each pair, and only then a median. Whose time is divided by whose?
    """
    for pairs, ask_s, left_s in ((1, 0.0, 3.0), (2, 0.25, 0.0), (5, 0.0, 0.0), (8, 0.125, 2.0)):
        slow = [1.0, 1.0]
        for _ in range(2 * pairs + 2):
            slow.append(slow[-1] + rng.randint(1, 40) / 64)
        hit = rng.randrange(2, 2 * pairs + 2)
        slow[hit] *= 16  # an interruption
        device = Device(slow=lambda n, slow=slow: slow[min(n, len(slow) - 1)], ask_s=ask_s, left_s=left_s)
        base = {"a": rng.randint(64, 900) / 64, "b": rng.randint(64, 900) / 64}
        a, b = (device.job(name, lambda n, name=name, base=base: base[name]) for name in ("a", "b"))
        found = submission.compare(a, b, pairs, device.sync, device.clock)
        what = f"compare with pairs={pairs}"
        found = expect_dict(found, {"ratio_median", "ratios"}, f"The result of {what}")
        order = ["a", "b", *(name for pair in range(pairs) for name in ("ab" if pair % 2 == 0 else "ba"))]
        expect_equal(device.done, order, f"Who was called by {what}, one after the other,")
        times = [ask_s + base[name] * slow[n] for n, name in enumerate(order)]
        ratios = []
        for pair in range(pairs):
            two = dict(zip(order[2 * pair + 2 : 2 * pair + 4], times[2 * pair + 2 : 2 * pair + 4], strict=True))
            ratios.append(two["a"] / two["b"])
        expect_times(found["ratios"], ratios, f"ratios of {what}")
        expect_close(found["ratio_median"], statistics.median(ratios), f"ratio_median of {what}", rel=1e-6)


def test_compare_arguments(submission):
    """pairs is checked and named, and then nobody is called.

    Hint: check_count with a minimum, before the first call.
    """
    device = Device()
    a, b = device.job("a", lambda n: 1.0), device.job("b", lambda n: 2.0)
    expect_count_checked(lambda value: submission.compare(a, b, value, device.sync, device.clock), "pairs", 1)
    expect_equal(device.done, [], "Who was called after these errors")


# -------------------------------------------------------------------------------------------------------- vllm_generate


def test_vllm_engine(submission, rng):
    """A real vLLM engine writes what transformers says after each prompt alone, greedy, in fp32, from one call.

    Hint: SamplingParams has defaults for everything. Where does the token that ends a text stand?
    """
    oracles.server()
    prompts, most, texts = oracles.smollm_choice(rng, 6)
    asked = Asked(oracles.generated)
    got = submission.vllm_generate(submission.RemoteLLM(asked), prompts, most)
    what = f"vllm_generate of prompts of {[len(prompt) for prompt in prompts]} tokens, max_tokens={most}"
    expect_equal(got, texts, f"The result of {what}")
    expect_equal(asked.calls, 1, f"The number of calls of generate by {what}")
    expect_count_checked(
        lambda value: submission.vllm_generate(submission.RemoteLLM(asked), prompts, value), "max_tokens", 1
    )
