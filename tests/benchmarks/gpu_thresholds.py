"""Speed criteria that were reasoned for a GPU and never graded there: what the reference solutions reach on one.

    PYTHONPATH=. python tests/benchmarks/gpu_thresholds.py [--device cuda|cpu] [--small] [--only 'kv*'] [--seed 1]

Prints one line of JSON for everything that was found, as soon as it is known:

    machine    what this is
    reference  whether a reference solution, as it is written, takes tensors on the device; if not, what it says. Then
               `on_device.OnDevice` is measured: the same source, but what it makes without saying where lies on the device
    finding    one criterion: `asked`, the `ratio` that was found (median), its exact 95 % interval `low` to `high`, whether
               it is `met` (yes, no, or open: the interval holds `asked`), pairs, spread, conditions
    broken     a part that ended with an error, or not in time
    summary    findings, what is not met, seconds

`ratio` is always time of what one compares with / time of the criterion's own program: above 1, that one is faster. Both
sides are timed in pairs, in random order, with the device synchronised before and after; both are right, or the part breaks.
Weights are random, of the shape of real models; no network and no file of weights is needed. Everything runs in forks with a
time limit. The exit code is 1 if a part broke; what is not met is a finding and no error.

Not covered: thresholds themselves (they stand in `tests/grading/*/spec.py`), sandboxes, submissions (`gpu_timing.py`).
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from on_device import REPOSITORY, OnDevice, in_fork, solution, tell  # type: ignore[import-not-found]
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_env import device, sequential

Row = dict[str, Any]
Job = Callable[[], Any]
Texts = tuple[list[int], list[int]]
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
TINY = SMOLLM2 | {"vocab_size": 256, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 3, "num_key_value_heads": 1}
PAIRS = 20
LEVEL = 0.05


class Bench:
    """Where and how large: the device, small sizes or real ones, and the source of all that is random."""

    def __init__(self, device: str, small: bool, seed: int) -> None:
        self.device, self.small, self.rng = device, small, random.Random(seed)

    def size(self, real: Any, small: Any) -> Any:
        """`small` in a rehearsal, else `real`."""
        return small if self.small else real

    def wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, job: Job) -> float:
        """Time of one call."""
        self.wait()
        began = time.perf_counter()
        job()
        self.wait()
        return time.perf_counter() - began

    def llama(self, shape: Row, dtype: torch.dtype = torch.float32) -> Any:
        """A Llama with random weights, always the same."""
        torch.manual_seed(0)
        with torch.device(self.device):
            return LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).eval()

    def randn(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Random numbers on the device."""
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def pairs(
        self, criterion: str, asked: float, sides: Callable[[int], tuple[Job, Job]], limit_s: float, **conditions: Any
    ) -> Row:
        """One finding: `sides(number of the pair)` gives what one compares with, and the criterion's own program.

        After a warm-up of both, `PAIRS` pairs, or fewer where `limit_s` is over; `pairs` says how many.
        """
        for job in sides(0):
            self.seconds(job)
        end, times = time.monotonic() + limit_s, [(0.0, 0.0)][:0]
        while len(times) < PAIRS and (len(times) < 2 or time.monotonic() < end):
            jobs, taken = sides(len(times)), [0.0, 0.0]
            for side in self.rng.sample((0, 1), 2):
                taken[side] = self.seconds(jobs[side])
            times.append((taken[0], taken[1]))
        logs = [math.log(other / own) for other, own in times]
        low, high = (math.exp(end) for end in sequential.interval(logs, LEVEL))
        quarters = [math.exp(each) for each in quantiles(logs, n=4)]
        return {
            "criterion": criterion,
            "asked": asked,
            "ratio": round(quarters[1], 4),
            "low": round(low, 4),
            "high": round(high, 4) if math.isfinite(high) else None,
            "met": "yes" if low >= asked else "no" if high < asked else "open",
            "pairs": len(times),
            "quartiles": [round(quarters[0], 4), round(quarters[2], 4)],
            "spread": [round(math.exp(min(logs)), 4), round(math.exp(max(logs)), 4)],
            "ms": [round(1e3 * median(each), 4) for each in zip(*times, strict=True)],
            "conditions": conditions,
        }


def as_written(function: str, device: str, job: Job) -> Row:
    """Whether the reference takes tensors on the device."""
    try:
        job()
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
        return {
            "kind": "reference",
            "function": function,
            "device": device,
            "says": f"needs tensors on the CPU: {said}",
        }
    return {"kind": "reference", "function": function, "device": device, "says": "runs as it is written"}


def expect(right: bool, what: str) -> None:
    """A time of something wrong says nothing."""
    if not right:
        raise RuntimeError(f"{what}: the two sides do not give the same; nothing was measured")


# ---------------------------------------------------------------------------------------------------------------- batches


def batched_inference(bench: Bench) -> Iterator[Row]:
    """`batched_generate`: eight prompts in a batch of eight against eight batches of one, in fp32 as the assignment has it."""
    model, new = bench.llama(bench.size(SMOLLM2, TINY)), bench.size(4, 2)
    prompts = [[bench.rng.randrange(256) for _ in range(length)] for length in range(17, 33, 2)]
    raw = solution("batched_inference")["batched_generate"]
    yield as_written("batched_generate", bench.device, partial(raw, model, prompts, 8, 1, None, 0))
    made = solution("batched_inference", bench.device)["batched_generate"]
    one, eight = (partial(made, model, prompts, size, new, None, 0) for size in (1, 8))
    same = sum(left == right for left, right in zip(one(), eight(), strict=True))
    expect(same >= 7, "batched_generate")  # where two tokens are nearly equally likely, a batch may say the other one
    yield bench.pairs(
        "batched_inference: batch 8 against 8 times batch 1", 4.0, lambda _: (one, eight), 20, dtype="fp32",
        model="random Llama, eager", layers=model.config.num_hidden_layers, hidden=model.config.hidden_size,
        prompts="17 to 31 tokens", new_tokens=new, same_texts=same,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- pages


def kv_cache(bench: Bench) -> Iterator[Row]:
    """`PagedAttentionLayer.attend`, and pages gathered for SDPA, against SDPA on keys and values that lie in order."""
    seqs, context = bench.size((16, 4096), (2, 64))
    heads, kv_heads, head_dim, block, calls = 32, 8, 128, 16, bench.size(10, 2)
    raw = solution("kv_cache")["PagedAttentionLayer"](4, block, kv_heads, head_dim)
    few = bench.randn(2, kv_heads, head_dim, dtype=torch.float32)
    write = partial(raw.write, few, few, torch.tensor([16, 17], device=bench.device))
    yield as_written("PagedAttentionLayer", bench.device, write)
    made = solution("kv_cache", bench.device)["PagedAttentionLayer"]
    blocks = context // block
    # Block 0 is the null block; the others lie in any order, as they do after a while of serving.
    tables = (1 + torch.randperm(seqs * blocks, device=bench.device)).reshape(seqs, blocks)
    slots = (tables[:, :, None] * block + torch.arange(block, device=bench.device)).flatten(1)
    lens = torch.full((seqs,), context, device=bench.device)
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        torch.set_default_dtype(dtype)  # the layer makes its pages in it
        layer = made(1 + seqs * blocks, block, kv_heads, head_dim)
        torch.set_default_dtype(torch.float32)
        k, v = (bench.randn(seqs, context, kv_heads, head_dim, dtype=dtype) for _ in range(2))
        layer.write(k.flatten(0, 1), v.flatten(0, 1), slots.flatten())
        pages = layer._k.flatten(0, 1), layer._v.flatten(0, 1)
        k, v = (each.transpose(1, 2).contiguous() for each in (k, v))
        q = bench.randn(seqs, heads, head_dim, dtype=dtype)

        def sdpa(k: torch.Tensor, v: torch.Tensor, q: torch.Tensor = q) -> torch.Tensor:
            product = torch.nn.functional.scaled_dot_product_attention(q[:, :, None], k, v, enable_gqa=True)
            return product[:, :, 0]

        def gathered(pages: tuple[torch.Tensor, ...] = pages, sdpa: Any = sdpa) -> torch.Tensor:
            """Written here: the fastest that plain PyTorch has for a gather, and SDPA on what was gathered."""
            found: torch.Tensor = sdpa(*(each[slots].transpose(1, 2) for each in pages))
            return found

        contiguous, own = partial(sdpa, k, v), partial(layer.attend, q, tables, lens)
        for what, job in (("PagedAttentionLayer.attend", own), ("gather, then SDPA; written here", gathered)):
            expect(error(job(), contiguous()) < (0.05 if name == "bf16" else 1e-4), what)
            sides = repeated(calls, contiguous), repeated(calls, job)
            yield bench.pairs(
                f"kv_cache: {what}, {name}, against SDPA on contiguous KV", 0.5, lambda _, s=sides: s, 4,  # type: ignore[misc]
                context=context, sequences=seqs, heads=heads, kv_heads=kv_heads,
                head_dim=head_dim, block_size=block, calls=calls, kv_bytes=2 * k.numel() * k.element_size(),
            )  # fmt: skip


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """How far one tensor is from another, relative to that one's size."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def repeated(calls: int, job: Job) -> Job:
    """So many calls as one."""

    def work() -> None:
        for _ in range(calls):
            job()

    return work


# ---------------------------------------------------------------------------------------------------------------- drafts


def speculative_suite(bench: Bench) -> Iterator[Row]:
    """The pair of models that the suite's check of speed times: 15 layers against 1."""
    names = spaces(bench.device)
    for each in names:
        run(REPOSITORY / "tests" / "grading" / "speculative_decoding" / "identity.py", each)
        each["TARGET"].to(bench.device), each["DRAFT"].to(bench.device)
    own, plain = names
    gamma, layers = own["GAMMA"], own["TARGET"].config.num_hidden_layers
    texts: list[Texts] = []
    generate: list[Callable[[list[int]], Any]] = [plain["generate"], own["generate"]]
    sides = drafted(bench, own["SHAPE"]["vocab_size"], generate, texts)
    found = bench.pairs(
        "speculative_decoding: the suite's pair against plain generation", 1.2, sides, 12, dtype="fp32",
        target_layers=layers, draft_layers=1, gamma=gamma, new_tokens=own["NEW_TOKENS"],
    )  # fmt: skip
    yield found | predicted(bench, own, own["TARGET"], own["DRAFT"], gamma, texts, found["ratio"])


def speculative_decoding(bench: Bench) -> Iterator[Row]:
    """A target of 30 layers and 150 that change nothing, its draft with noise of 0.01 standard deviations, gamma 3."""
    own, plain = spaces(bench.device)
    added, sigma, gamma, new = bench.size(150, 10), 0.01, 3, bench.size(12, 8)
    shape = bench.size(SMOLLM2, TINY)
    few = shape["num_hidden_layers"]
    target, draft = bench.llama(shape | {"num_hidden_layers": few + added}), bench.llama(shape)
    for layer in target.model.layers[few:]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    for name, weight in draft.named_parameters():
        same = target.get_parameter(name)
        weight.copy_(same + sigma * same.std() * torch.randn_like(same) if same.dim() > 1 else same)
    in_order = solution("speculative_decoding")
    raw = dict(in_order)
    run(REPOSITORY / "tests" / "grading" / "speculative_decoding" / "plain.py", raw)
    models = in_order["from_transformers"](target), in_order["from_transformers"](draft)
    first = partial(in_order["speculative_generate"], *models, [1, 2], 1, 2, in_order["make_generator"](0))
    yield as_written("speculative_generate", bench.device, first)
    yield as_written("plain.py", bench.device, partial(raw["speculative_generate"], target, None, [1, 2], 1, 2, None))

    def speculate(ids: list[int]) -> list[int]:
        models = own["from_transformers"](target), own["from_transformers"](draft)
        text: list[int] = own["speculative_generate"](*models, ids, gamma, new, own["make_generator"](0))[0]
        return text

    def alone(ids: list[int]) -> list[int]:
        text: list[int] = plain["speculative_generate"](target, None, ids, gamma, new, None)[0]
        return text

    texts: list[Texts] = []
    sides = drafted(bench, shape["vocab_size"], [alone, speculate], texts)
    found = bench.pairs(
        "speculative_decoding: identity-layer target against plain generation", 1.2, sides, 40, dtype="fp32",
        model="random Llama, eager", target_layers=few + added, draft_layers=few, sigma=sigma, gamma=gamma, new_tokens=new,
    )  # fmt: skip
    yield found | predicted(bench, own, target, draft, gamma, texts, found["ratio"])


def spaces(device: str) -> tuple[Row, Row]:
    """The functions of the reference as they are written, which runs on any device, and those of the plain loop."""
    plain: Row = {"__name__": "plain"}
    run(REPOSITORY / "tests" / "grading" / "speculative_decoding" / "plain.py", plain)
    plain["torch"] = OnDevice(device)
    return solution("speculative_decoding"), plain


def run(path: Path, namespace: Row) -> None:
    """Execute a file of ours; what it imports as torch does not replace a stand-in."""
    before = namespace.get("torch")
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)  # noqa: S102 - our own file
    if before is not None:
        namespace["torch"] = before


def drafted(
    bench: Bench, vocabulary: int, generate: list[Callable[[list[int]], Any]], texts: list[Texts]
) -> Callable[[int], tuple[Job, Job]]:
    """Both sides of a pair, with a new prompt. `texts` gets the text of each side, that of plain generation first."""

    def sides(number: int) -> tuple[Job, Job]:
        ids = [bench.rng.randrange(vocabulary) for _ in range(8)]
        said: dict[int, list[int]] = {}

        def work(side: int) -> None:
            said[side] = generate[side](ids)
            if len(said) == 2:
                texts.append((said[0], said[1]))

        return partial(work, 0), partial(work, 1)

    return sides


def predicted(bench: Bench, made: Row, target: Any, draft: Any, gamma: int, texts: list[Texts], measured: float) -> Row:
    """The speed-up that the formula of the course gives, with alpha, c and v as they are here.

    alpha is the share of the target's tokens that the draft says too, after what the target has written (greedy). c and v are
    times of runs after 20 other tokens, as the assignment's plot takes them; in the formula v is at least 1.
    """
    same = sum(plain == own for plain, own in texts)
    # Runs on one token and on several round differently: where two tokens are nearly equally likely, texts may part.
    expect(same >= 0.8 * len(texts), "speculative_generate")
    ids = torch.tensor([plain for plain, _ in texts], device=bench.device)
    guesses = draft(input_ids=ids, use_cache=False).logits.argmax(-1)
    alpha = (guesses[:, 7:-1] == ids[:, 8:]).float().mean().item()  # a prompt has 8 tokens

    def runs(model: Any, tokens: int) -> Job:
        cached = made["from_transformers"](model)
        cached.run(range(20))

        def work() -> None:
            cached.run(range(tokens))
            cached.crop(20)

        return work

    jobs = runs(target, 1), runs(draft, 1), runs(target, gamma + 1)
    rounds = [[bench.seconds(job) for job in jobs] for _ in range(2 + bench.size(15, 3))][2:]
    one, small, check = (median(each) for each in zip(*rounds, strict=True))
    c, v = small / one, check / one
    speedup = partial(made["speedup"], gamma=gamma, c=c, v=max(1.0, v))
    return {
        "same_texts": f"{same} of {len(texts)}",
        "alpha": round(alpha, 4),
        "c": round(c, 4),
        "v": round(v, 4),
        "target_run_ms": round(1e3 * one, 3),
        "predicted": round(speedup(alpha), 4),
        "measured_over_predicted": round(measured / speedup(alpha), 4),
        "predicted_at_alpha_0.95": round(speedup(0.95), 4),
    }


# ---------------------------------------------------------------------------------------------------------------- bytes


def quantization(bench: Bench) -> Iterator[Row]:
    """`WeightOnlyLinear` in int8 against `F.linear` in bf16, over so many layers that their codes exceed four times the L2."""
    outputs, inputs = bench.size((14336, 4096), (192, 128))
    cache = int(torch.cuda.get_device_properties(0).L2_cache_size) if bench.device == "cuda" else 0
    count, calls = max(2, 4 * cache // (outputs * inputs) + 1), bench.size(10, 2)
    made = solution("quantization")
    dense = [bench.randn(outputs, inputs, dtype=torch.bfloat16) * inputs**-0.5 for _ in range(count)]
    layers = []

    def replace(weight: torch.Tensor) -> None:
        linear = torch.nn.Linear(inputs, outputs, bias=False, dtype=weight.dtype, device="meta")
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        layers.append(made["WeightOnlyLinear"](linear))

    yield as_written("WeightOnlyLinear", bench.device, partial(replace, dense[0]))
    for weight in dense[1:]:
        replace(weight)
    expect(all(layer.codes.device == weight.device for layer, weight in zip(layers, dense, strict=True)), "devices")
    for batch, what, asked in ((1, "decode", 1.2), (64, "prefill", round(1 / 3, 4))):
        x = bench.randn(batch, inputs, dtype=torch.bfloat16)

        def plain(x: torch.Tensor = x) -> list[torch.Tensor]:
            return [torch.nn.functional.linear(x, weight) for weight in dense]

        def quantised(x: torch.Tensor = x) -> list[torch.Tensor]:
            return [layer(x) for layer in layers]

        for ours, theirs in zip(quantised(), plain(), strict=True):
            expect(error(ours, theirs) < 0.03, "int8")
        sides = repeated(calls, plain), repeated(calls, quantised)
        yield bench.pairs(
            f"quantization: int8 WeightOnlyLinear against bf16 F.linear, {what}", asked, lambda _, s=sides: s, 4,  # type: ignore[misc]
            batch=batch, layer=[outputs, inputs], layers=count, calls=calls, code_bytes=count * outputs * inputs, l2_bytes=cache,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- all


PARTS: dict[str, tuple[Callable[[Bench], Iterator[Row]], float]] = {
    "kv_cache": (kv_cache, 40),
    "quantization": (quantization, 30),
    "speculative_suite": (speculative_suite, 30),
    "batched_inference": (batched_inference, 40),
    "speculative_decoding": (speculative_decoding, 65),
}
"""Parts, and the seconds after which one that hangs is ended. Each stops taking pairs earlier: after 96 s in all."""


def told(part: Callable[[Bench], Iterator[Row]], bench: Bench) -> list[Row]:
    """Everything that a part finds, told as soon as it is found: what comes before an error is not lost."""
    torch.set_grad_enabled(False)
    return [tell(**{"kind": "finding", **row}) for row in part(bench)]


def main() -> int:
    """Measure all parts; 1 if one broke."""
    parser = argparse.ArgumentParser(description="Speed criteria of the course on a device.")
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal; their figures mean nothing")
    parser.add_argument("--only", default="*", help="pattern of names of parts")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began, machine = time.monotonic(), device.describe()
    where = given.device or ("cuda" if machine.tier == "gpu" else "cpu")
    torch.set_num_threads(1)
    tell("machine", **machine.as_dict(), device=where, small=given.small, date=datetime.date.today().isoformat())
    broken, findings, unmet = [], 0, []
    for name, (part, limit_s) in PARTS.items():
        if not fnmatch.fnmatch(name, given.only):
            continue
        found = in_fork(partial(told, part, Bench(where, given.small, given.seed)), limit_s)
        if isinstance(found, dict):
            tell("broken", part=name, **found)
            broken.append(name)
            continue
        findings += sum(row["kind"] == "finding" for row in found)
        unmet += [row["criterion"] for row in found if row.get("met") == "no"]
    seconds = round(time.monotonic() - began, 1)
    tell("summary", findings=findings, not_met=sorted(set(unmet)), broken=broken, seconds=seconds)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
