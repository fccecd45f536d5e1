"""Is what `quantization` teaches what bitsandbytes does on a GPU? Codes and scales bit for bit, and the speed of its layers.

    PYTHONPATH=.:tests python tests/benchmarks/gpu_bitsandbytes.py [--device cuda|cpu] [--rounds 20] [--seed 1]

Prints one line of JSON for each function: how many numbers were compared, how many codes of the reference solution (which
computes on the CPU, as the assignment does) differ from those of bitsandbytes on the device, and how many of bitsandbytes'
own differ between device and CPU. Numbers
within rounding of a tie between two codes are left out, as in the suite (`tests/grading/quantization/oracles.py`), and
counted a second time with them. Then the time of bitsandbytes' layers as a ratio to the same layer in bf16, on a GPU.
The exit code is 1 if a code differs. Needs torch and bitsandbytes; no network.
"""

from __future__ import annotations

import argparse
import datetime
import random
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from on_device import solution, tell  # type: ignore[import-not-found]

SHAPES = ((64, 4096), (256, 1024), (33, 192))
BLOCKSIZES = (64, 128, 4096)
BATCHES = (1, 8, 32, 512)
LAYERS = ((4096, 4096), (14336, 4096))
"""Outputs and inputs: the attention and MLP layers of an 8B Llama."""


def machine(device: str) -> dict[str, Any]:
    """What this is."""
    import bitsandbytes

    from gpu_env.device import describe

    found: dict[str, Any] = describe().as_dict()
    found |= {"bitsandbytes": bitsandbytes.__version__, "torch": torch.__version__, "device": device}
    return found | {"date": datetime.date.today().isoformat()}


class Count:
    """Numbers compared and codes that differ, over the rounds of one function."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.figures: dict[str, int] = dict.fromkeys(("compared", "differ", "differ_with_ties", "device_from_cpu"), 0)

    def add(self, figure: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add the places at which the two differ."""
        self.figures[figure] += int((left.cpu() != right.cpu()).sum())


def int8(made: dict[str, Any], oracles: Any, draw: Callable[..., torch.Tensor], device: str) -> Count:
    """`absmax_int8` against `int8_vectorwise_quant`, rows of fp16 numbers."""
    count = Count("absmax_int8")
    for rows, cols in SHAPES:
        drawn = draw(rows, cols).half()
        for figure, x in (("differ_with_ties", drawn), ("differ", oracles.off_int8_ties(drawn))):
            theirs, scale = oracles.int8_codes(x.to(device))
            codes, own = made["absmax_int8"](x, 1)
            count.add(figure, codes, theirs)
            if figure == "differ":
                count.add("device_from_cpu", theirs, oracles.int8_codes(x)[0])
                torch.testing.assert_close(own, scale.cpu(), rtol=1e-6, atol=0)
                count.figures["compared"] += x.numel()
    return count


def nf4(made: dict[str, Any], oracles: Any, draw: Callable[..., torch.Tensor], device: str) -> Count:
    """`quantize_nf4` and `dequantize_nf4` against `quantize_4bit` and `dequantize_4bit`."""
    count = Count("quantize_nf4")
    for shape in SHAPES:
        for blocksize in BLOCKSIZES:
            drawn = draw(*shape) * 0.05
            for figure, w in (("differ_with_ties", drawn), ("differ", oracles.off_nf4_ties(drawn, blocksize))):
                packed, absmax, back = oracles.nf4_codes(w.to(device), blocksize)
                codes, own = made["quantize_nf4"](w, blocksize)
                count.add(figure, codes.reshape(-1), packed)
                if figure == "differ":
                    count.add("differ", own.reshape(-1), absmax.reshape(-1))
                    count.add("device_from_cpu", packed, oracles.nf4_codes(w, blocksize)[0])
                    restored = made["dequantize_nf4"](codes, own, w.shape, blocksize)
                    torch.testing.assert_close(restored, back.cpu(), rtol=1e-5, atol=1e-7)
                    count.figures["compared"] += w.numel()
    return count


def matmul(made: dict[str, Any], oracles: Any, draw: Callable[..., torch.Tensor], device: str) -> dict[str, Any]:
    """`llm_int8_matmul` against bitsandbytes, with outliers too: the largest difference, relative to the largest value."""
    bnb = oracles.bnb()
    worst = {"exact_sums_differ": 0, "relative_error": 0.0}
    for outliers in (0, 3):
        x = draw(64, 512).clamp(-4, 4).half()
        for column in range(outliers):
            x[column, 17 * column + 5] = 90.0
        # Columns with outliers hold nothing else: bitsandbytes scales each row by what is left of it, as the task does.
        keep = (x.abs() >= 6).any(0)
        x = torch.where(keep & (x.abs() < 6), torch.zeros_like(x), x)
        x = torch.where(keep, x, oracles.off_int8_ties(x.masked_fill(keep, 0.0))).to(device)
        codes, scale = oracles.int8_codes(draw(256, 512).half().to(device))
        x_codes, x_max, marked = bnb.int8_vectorwise_quant(x, threshold=6.0)
        sums = bnb.int8_linear_matmul(x_codes, codes)
        exact = x_codes.cpu().long() @ codes.cpu().long().T
        worst["exact_sums_differ"] += int((sums.cpu().long() != exact).sum())
        product = sums.double() * (x_max.double() / 127)[:, None] * scale.double().T
        if marked is not None:
            product += x[:, marked].double() @ (codes[:, marked].double() * scale.double()).T
        got = made["llm_int8_matmul"](x.cpu(), codes.cpu(), scale.cpu(), 6.0).to(product)
        error = ((got - product).abs().max() / product.abs().max()).item()
        worst["relative_error"] = max(worst["relative_error"], error)
    return worst


def speed(outputs: int, inputs: int, batch: int) -> dict[str, Any]:
    """Time of bitsandbytes' layers on the GPU, relative to the same layer in bf16: median of 50 calls in turn, CUDA events."""
    import bitsandbytes

    bnb: Any = bitsandbytes.nn
    event: Any = torch.cuda.Event
    dense = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16, device="cuda")
    layers: dict[str, Any] = {"bf16": dense}
    nf4 = bnb.Linear4bit(inputs, outputs, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
    nf4.load_state_dict({"weight": dense.weight.detach().cpu()})
    layers["nf4"] = nf4.to("cuda")
    int8 = bnb.Linear8bitLt(inputs, outputs, bias=False, has_fp16_weights=False, threshold=6.0)
    int8.load_state_dict({"weight": dense.weight.detach().half().cpu()})
    layers["int8"] = int8.to("cuda")
    x = torch.randn(batch, inputs, dtype=torch.bfloat16, device="cuda")
    given = {"bf16": x, "nf4": x, "int8": x.half()}
    times: dict[str, list[float]] = {name: [] for name in layers}
    with torch.inference_mode():
        for number in range(60):
            for name, layer in layers.items():
                begin, end = (event(enable_timing=True) for _ in range(2))
                begin.record()
                layer(given[name])
                end.record()
                end.synchronize()
                if number >= 10:
                    times[name].append(begin.elapsed_time(end))
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {"bf16_us": round(1e3 * middle["bf16"], 1)} | {
        f"{name}_speed": round(middle["bf16"] / middle[name], 3) for name in ("nf4", "int8")
    }


def main() -> int:
    """Compare and time; 1 if a code differs."""
    parser = argparse.ArgumentParser(description="The quantization assignment against bitsandbytes on a device.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    from grading.quantization import oracles

    made, rng = solution("quantization"), random.Random(given.seed)
    tell("machine", **machine(given.device))
    differ = 0

    def draw(*shape: int) -> torch.Tensor:
        drawn: torch.Tensor = oracles.normal(rng, *shape)
        return drawn

    for compare in (int8, nf4):
        total = Count("")
        for _ in range(given.rounds):
            found = compare(made, oracles, draw, given.device)
            total.name = found.name
            total.figures = {name: value + found.figures[name] for name, value in total.figures.items()}
        tell(total.name, rounds=given.rounds, **total.figures)
        differ += total.figures["differ"]
    worst = [matmul(made, oracles, draw, given.device) for _ in range(given.rounds)]
    figures = {name: max(each[name] for each in worst) for name in worst[0]}
    tell("llm_int8_matmul", rounds=given.rounds, **figures)
    differ += figures["exact_sums_differ"] + (figures["relative_error"] > 1e-3)
    if given.device == "cuda":
        for outputs, inputs in LAYERS:
            for batch in BATCHES:
                tell("speed", layer=[outputs, inputs], batch=batch, **speed(outputs, inputs, batch))
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
