"""transformers against vLLM on one model, in one run: the outline's headline table beside figures of this machine.

    python tests/benchmarks/headline.py [--quick] [--repeats 3] [--time 3600] [--lengths 64 64] [--save] [--json FILE]

The outline says 250 against 2,800 tokens per second: 11.2 times. What that leaves out: its baseline has a batch of 8, its
vLLM one of 32, and no model, device, length of texts or number of runs is named. A larger batch is faster in any engine,
as the weights are read once per step for all of it (the first assignment's roofline). So the ratio mixes what vLLM computes
faster with how many requests it keeps at once, and it may be reached by any engine from a batch that is small enough. Here both
are told apart: the same batch (1, 8, 32) in both, then each engine's own best batch, and the outline's own mixture, 8 against
32, under its name. The rest of vLLM's advantage, requests of different lengths, is not in this table at all: all texts here have
one length, which is kind to transformers, whose batches pad and wait for the longest.

Seen on one H100 (vLLM 0.25.1, torch 2.11.0, transformers 5.17.0; one or two counted runs each, for time was short):
vLLM is 5.1, 4.7 and 3.6 times as fast at batches of 1, 8 and 32, and 15.1 times in the outline's mixture. So of the 15.1 a
factor of about 4 is the engine, and the rest is 32 requests instead of 8. `results/headline-gpu-2026-11-23.json`.

On a CPU: SmolLM2-135M in bf16, texts of the licence; both engines stay loaded and take turns, in the order ABBA. On a GPU:
random weights of Llama-3-8B's shape in bf16, random tokens; the engines take turns in processes of their own, ABBA too, as
each wants the whole memory. Each request has a text of its own, and must give exactly as many tokens as were asked for. Times are
those of whole calls that give all answers; first tokens are those of calls for one token. Medians over repeats, after a
warm-up of the same size. Where both have the same weights, most of their first tokens must agree, or the run fails.

Memory utilisation is (weights + keys and values in use at the best batch) / the device's memory. The largest batch is how many
full-length requests (prompt + new tokens) are in memory at once: of vLLM what its KV cache has blocks for; of transformers
on a GPU what was tried, doubling, until memory ran out. On a CPU nothing runs out: what vLLM's KV cache would hold is given,
counted for both (pages against `--max-len` tokens reserved for everybody).

Not covered: load over time, texts of different lengths, compiled transformers, several GPUs. On a CPU vLLM runs eagerly.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_env import device, models, vllm_engine

HERE = Path(__file__).parent
MODEL = "SmolLM2-135M-Instruct"
LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4_096,
    "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8_192, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
SMALL = {
    "vocab_size": 32_000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
"""What a rehearsal changes in it."""
EQUAL = (1, 8, 32)
MORE = {"cpu": (64, 128), "cuda": (64, 128, 256, 512, 1024)}
QUICK = {"cpu": (64,), "cuda": (128, 256, 512)}
LENGTHS = {"cpu": (64, 64), "cuda": (256, 128)}
"""Tokens of the prompt and of the answer."""
MAX_LEN = 1024
AGREE = 0.8
"""Share of first tokens that must be the same in both engines: sums in bf16 differ a little, tied logits then a lot."""
OUTLINE = (
    ("throughput", "250 tok/s", "2,800 tok/s", 11.2),
    ("TTFT", "450 ms", "120 ms", 3.8),
    ("memory utilisation", "60 %", "95 %", 1.6),
    ("batch size", "8", "32", 4.0),
)
ENGINES = ("hf", "vllm")
Row = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What is measured: a model, on what. `alone`: each engine wants the whole memory. `random`: the weights are."""

    kind: str
    folder: Path
    config: Row
    random: bool
    prompt: int
    new: int

    @property
    def alone(self) -> bool:
        return self.random

    @property
    def device(self) -> str:
        return self.kind


def tell(**row: Any) -> None:
    """One line of JSON on standard output, at once."""
    print(json.dumps(row), flush=True)


# ------------------------------------------------------------------------------------------------- inside an engine


def be_transformers(
    folder: str, where: str, random_weights: bool
) -> tuple[Callable[[list[list[int]], int], list[list[int]]], Row]:
    """Greedy generation by transformers, and what it says of itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if random_weights:
        with torch.device(where):
            torch.set_default_dtype(torch.bfloat16)
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=model.device)
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
            )  # fmt: skip
        return [row[len(prompts[0]) :] for row in found.tolist()]  # `tolist` waits for the GPU

    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    return generate, {"weight_bytes": weights, "threads": torch.get_num_threads()}


def be_vllm(
    folder: str, where: str, random_weights: bool
) -> tuple[Callable[[list[list[int]], int], list[list[int]]], Row]:
    """The same by vLLM."""
    import torch
    from vllm import LLM, SamplingParams

    options: Row = {"skip_tokenizer_init": True, "enable_prefix_caching": False, "max_model_len": MAX_LEN}
    options["max_num_seqs"] = max(MORE[where])
    if random_weights:
        options["load_format"] = "dummy"
    if where == "cpu":
        options |= {"enforce_eager": True, "block_size": vllm_engine.CPU_BLOCK_SIZE}
    llm = LLM(folder, dtype="bfloat16", **options)

    def generate(prompts: list[list[int]], new: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False)
        given: Any = [{"prompt_token_ids": each} for each in prompts]
        return [list(each.outputs[0].token_ids) for each in llm.generate(given, params, use_tqdm=False)]

    cache = llm.llm_engine.vllm_config.cache_config
    return generate, {
        "block_size": cache.block_size,
        "blocks": cache.num_gpu_blocks,
        "threads": torch.get_num_threads(),
    }


def engine_main(kind: str, folder: str, where: str, random_weights: bool) -> None:
    """Answer requests for measurements, one JSON line each, until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no answer
    generate, about = (be_transformers if kind == "hf" else be_vllm)(folder, where, random_weights)
    print(json.dumps(about), file=answers)
    for line in sys.stdin:
        prompts, new = json.loads(line)
        try:
            began = time.perf_counter()
            found = generate(prompts, new)
            seconds = time.perf_counter() - began
        except Exception as error:
            if "out of memory" not in str(error).lower():
                raise
            print(json.dumps({"error": "out of memory"}), file=answers)
            release()
            continue
        assert [len(each) for each in found] == [new] * len(prompts), "an engine gave another number of tokens"
        print(json.dumps({"seconds": seconds, "first": [each[0] for each in found]}), file=answers)


def release() -> None:
    """Give the GPU back what a call that ran out of memory left."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------- from outside


class Failed(RuntimeError):
    """An engine that did not start, died, or took longer than it may."""


class Engine:
    """One engine in a process of its own."""

    def __init__(self, kind: str, setup: Setup, log: Path, limit_s: float) -> None:
        environment = os.environ | vllm_engine.ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        environment |= {"VLLM_USE_FLASHINFER_SAMPLER": "0"}  # it would be compiled at the first start
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--engine", kind, str(setup.folder), setup.device, str(int(setup.random))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True, env=environment,
            )  # fmt: skip
        self._kind, self._log = kind, log
        self.about: Row = self._read(limit_s)

    def measure(self, prompts: list[list[int]], new: int, limit_s: float) -> Row:
        """Seconds of one call and the first token of each answer; or the error "out of memory". Raises `Failed`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([prompts, new]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the next line says why
        return self._read(limit_s)

    def _read(self, limit_s: float) -> Row:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(1.0, limit_s))[
            0
        ]:  # every answer is one line, and asked for
            self.kill()
            raise Failed(f"{self._kind} gave no answer within {limit_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"{self._kind} ended. {vllm_engine.explain(self._log.read_text(errors='replace'))}")
        answer: Row = json.loads(line)
        return answer

    def close(self) -> None:
        """End it and wait."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


class Texts:
    """Prompts of one length that nobody has seen before."""

    def __init__(self, setup: Setup) -> None:
        self._random = random.Random(20261123)
        self._tokens: list[int] = []
        self._most = setup.config["vocab_size"]
        if not setup.random:
            from transformers import AutoTokenizer

            licence = (HERE.parents[1] / "LICENSE").read_text(encoding="utf-8")
            self._tokens = AutoTokenizer.from_pretrained(str(setup.folder))(licence)["input_ids"]

    def new(self, number: int, length: int) -> list[list[int]]:
        """`number` prompts of `length` tokens."""
        if not self._tokens:
            return [[self._random.randrange(100, self._most) for _ in range(length)] for _ in range(number)]
        starts = [self._random.randrange(len(self._tokens) - length) for _ in range(number)]
        return [self._tokens[at : at + length] for at in starts]


class Clock:
    """How much time is left, and whether what is next fits into it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()


class Measuring:
    """Takes turns, keeps what was measured: `times` by engine and batch, {"hf": {8: {"seconds": [...], "first_s": [...]}}}."""

    def __init__(self, setup: Setup, clock: Clock, log: Path) -> None:
        self.times: Row = {name: {} for name in ENGINES}
        self.about: Row = {}
        self.failed: dict[str, str] = {}
        self.agreed: list[bool] = []
        self._open: dict[str, Engine] = {}
        self._setup, self._clock, self._log = setup, clock, log
        self._texts = Texts(setup)

    def open(self, name: str) -> Engine:
        """The engine `name`; on a GPU, the only one. Raises `Failed`."""
        if name in self.failed:
            raise Failed(self.failed[name])
        if name not in self._open:
            if self._setup.alone:
                self.close()
            began = time.monotonic()
            self._open[name] = Engine(name, self._setup, self._log, self._clock.left())
            self.about[name] = self._open[name].about
            tell(engine=name, started_s=round(time.monotonic() - began, 1), **self.about[name])
        return self._open[name]

    def turns(self, names: Sequence[str], batch: int, counts: bool, until_s: float = 0.0) -> None:
        """One call of each engine with the same new texts; what fails is told and not tried again.

        What took so long before that less than `until_s` seconds would be left is left out.
        """
        prompts = self._texts.new(batch, self._setup.prompt)
        found = []
        for name in names:
            row = self.times[name].setdefault(batch, {"seconds": [], "first_s": []})
            if "error" in row or name in self.failed:
                continue
            if self._clock.left() - until_s < row.get("took_s", 0.0) * 1.1 or self._clock.left() < 1:
                tell(engine=name, batch=batch, left_out="no time is left")
                continue
            try:
                engine = self.open(name)
                began = time.monotonic()
                first, whole = (engine.measure(prompts, tokens, self._clock.left()) for tokens in (1, self._setup.new))
            except Failed as error:
                self.failed[name] = str(error)
                if gone := self._open.pop(name, None):
                    gone.kill()
                tell(engine=name, batch=batch, failed=str(error))
                continue
            row["took_s"] = time.monotonic() - began
            if "error" in whole or "error" in first:
                row["error"] = "out of memory"
                tell(engine=name, batch=batch, failed=row["error"])
                continue
            tell(engine=name, batch=batch, counts=counts, first_s=first["seconds"], seconds=whole["seconds"])
            if counts:
                row["first_s"].append(first["seconds"])
                row["seconds"].append(whole["seconds"])
            found.append(list(whole["first"]))
        if not self._setup.random and len(found) == 2:
            self.agreed.extend(one == other for one, other in zip(*found, strict=True))

    def close(self) -> None:
        """End all engines."""
        for name in list(self._open):
            self._open.pop(name).close()


def measure(options: argparse.Namespace, setup: Setup, log: Path) -> Row:
    """All times, by engine and batch, and what the engines are. Both engines take turns, ABBA; see the head."""
    clock = Clock(options.time)
    run = Measuring(setup, clock, log)
    more = (QUICK if options.quick else MORE)[setup.kind]
    try:
        if setup.alone:  # A (all batches), B, B, A: each change of engine loads 16 GB
            for name, share in zip(ENGINES + ENGINES[::-1], (0.65, 0.25, 0.2, 0.0), strict=True):
                until_s = share * options.time
                for batch in [*EQUAL, *more]:
                    before = (
                        run.times[name]
                        .get(batch, {})
                        .get("took_s", run.times[name].get(batch // 2, {}).get("took_s", 0))
                    )
                    if clock.left() - until_s < 1.1 * before * (1 + options.repeats) and batch not in EQUAL:
                        tell(engine=name, batch=batch, left_out="it would take too long")
                        continue
                    run.turns((name,), batch, False, until_s)
                    for _ in range(options.repeats):
                        run.turns((name,), batch, True, until_s)
        else:
            for batch in [*EQUAL, *more]:
                run.turns(ENGINES, batch, False)
                for repeat in range(options.repeats):
                    run.turns(ENGINES if repeat % 2 == 0 else ENGINES[::-1], batch, True)
    finally:
        run.close()
    agree = statistics.fmean(run.agreed) if run.agreed else None
    if agree is not None and agree < AGREE:
        raise RuntimeError(
            f"only {agree:.0%} of first tokens are the same in both engines: one of them computes nonsense"
        )
    return {
        "engines": run.about, "times": run.times, "failed": run.failed, "first_tokens_agree": agree,
        "prompt_tokens": setup.prompt, "new_tokens": setup.new,
    }  # fmt: skip


def summarise(found: Row, total_bytes: int, kv_bytes_per_token: int) -> Row:
    """Throughput and time to first token by batch, the best batch, memory utilisation, largest batch; of each engine."""
    prompt, new = found["prompt_tokens"], found["new_tokens"]
    weights = found["engines"]["hf"]["weight_bytes"]
    vllm = found["engines"]["vllm"]
    made: Row = {}
    for name in ENGINES:
        done = {batch: row for batch, row in found["times"][name].items() if row["seconds"]}
        speed = {batch: batch * new / statistics.median(row["seconds"]) for batch, row in done.items()}
        first = {batch: statistics.median(row["first_s"]) for batch, row in done.items()}
        best = max(speed, key=lambda batch: speed[batch])
        block = vllm["block_size"] if name == "vllm" else 1
        held = -(-(prompt + new) // block) * block * kv_bytes_per_token
        made[name] = {
            "tokens_per_s": speed, "first_token_s": first, "best_batch": best,
            "memory_utilisation": (weights + best * held) / total_bytes,
            "spread": {batch: max(row["seconds"]) / min(row["seconds"]) for batch, row in done.items()},
        }  # fmt: skip
    cache_tokens = vllm["blocks"] * vllm["block_size"]
    full = -(-(prompt + new) // vllm["block_size"]) * vllm["block_size"]
    made["vllm"]["largest_batch"] = cache_tokens // full
    failed = any("error" in row for row in found["times"]["hf"].values())
    made["hf"]["largest_batch"] = max(made["hf"]["tokens_per_s"]) if failed else cache_tokens // MAX_LEN
    made["hf"]["largest_batch_is"] = "tried" if failed else f"counted: {MAX_LEN} tokens reserved for each"
    return made


def table(made: Row, conditions: str) -> str:
    """The outline's table beside ours, in Markdown."""
    hf, vllm = (made[name] for name in ENGINES)
    lines = [
        "| metric | outline: HF | vLLM | ratio | here: HF | vLLM | ratio | conditions of ours |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]

    def row(name: str, said: tuple[str, str, float] | None, ours: tuple[str, str, float], how: str) -> None:
        old = (said[0], said[1], f"{said[2]}x") if said else ("", "", "")
        lines.append(f"| {' | '.join((name, *old, ours[0], ours[1], f'{ours[2]:.2f}x', how))} |")

    def speeds(at: int, against: int) -> tuple[str, str, float]:
        one, other = hf["tokens_per_s"][at], vllm["tokens_per_s"][against]
        return f"{one:,.0f} tok/s", f"{other:,.0f} tok/s", other / one

    said = {name: values for name, *values in OUTLINE}
    row("throughput", tuple(said["throughput"]), speeds(8, 32), "the outline's mixture: HF at batch 8, vLLM at 32")  # type: ignore[arg-type]
    for batch in EQUAL:
        row("throughput", None, speeds(batch, batch), f"both at batch {batch}")
    best = hf["best_batch"], vllm["best_batch"]
    row("throughput", None, speeds(*best), f"each at its best of the batches tried: {best[0]}, {best[1]}")
    for batch in (1, 8, 32):
        times = [engine["first_token_s"][batch] for engine in (hf, vllm)]
        row(
            "TTFT", tuple(said["TTFT"]) if batch == 8 else None,  # type: ignore[arg-type]
            (f"{times[0] * 1e3:,.0f} ms", f"{times[1] * 1e3:,.0f} ms", times[0] / times[1]),
            f"{batch} requests at once, all first tokens",
        )  # fmt: skip
    used = [engine["memory_utilisation"] for engine in (hf, vllm)]
    row(
        "memory utilisation", tuple(said["memory utilisation"]),  # type: ignore[arg-type]
        (f"{used[0]:.1%}", f"{used[1]:.1%}", used[1] / used[0]),
        "weights and KV in use at the best batch, of the device's memory",
    )  # fmt: skip
    largest = [engine["largest_batch"] for engine in (hf, vllm)]
    row(
        "batch size", tuple(said["batch size"]),  # type: ignore[arg-type]
        (f"{largest[0]:,}", f"{largest[1]:,}", largest[1] / largest[0]), f"the largest; HF {hf['largest_batch_is']}",
    )  # fmt: skip
    return "\n".join([conditions, "", *lines])


def setup_of(on_gpu: bool, rehearse: bool, lengths: list[int] | None, folder: Path) -> Setup:
    """The model and the lengths for this machine; `rehearse`: what a GPU does, on the CPU, with a small shape."""
    kind = "cuda" if on_gpu else "cpu"
    prompt, new = lengths or LENGTHS[kind]
    if not (on_gpu or rehearse):
        folder = models.find(MODEL)
        return Setup(kind, folder, json.loads((folder / "config.json").read_text()), False, prompt, new)
    config = LLAMA_3_8B if on_gpu else LLAMA_3_8B | SMALL
    (folder / "config.json").write_text(json.dumps(config))
    return Setup(kind, folder, config, True, prompt, new)


def main() -> None:
    """Measure, print, and save where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat, fewer batches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--time", type=float, default=3600.0, help="seconds for everything; larger batches are left out first"
    )
    parser.add_argument("--lengths", type=int, nargs=2, help="tokens of the prompt and of the answer")
    parser.add_argument("--save", action="store_true", help="write the JSON to results/")
    parser.add_argument("--json", type=Path, help="write it to this file")
    parser.add_argument("--rehearse", action="store_true", help="what a GPU does, on this CPU with a small shape")
    parser.add_argument("--engine", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        kind, model, where, is_random = options.engine
        engine_main(kind, model, where, is_random == "1")
        return
    if options.quick:
        options.repeats = 1
    if why := vllm_engine.obstacle():
        sys.exit(why)
    machine = device.describe()
    on_gpu = machine.tier == "gpu"
    began, load = time.monotonic(), os.getloadavg()
    with tempfile.TemporaryDirectory() as temporary:
        setup = setup_of(on_gpu, options.rehearse, options.lengths, Path(temporary))
        log = Path(temporary) / "engines.log"
        try:
            found = measure(options, setup, log)
        finally:
            print(log.read_text(errors="replace")[-200_000:] if log.exists() else "", file=sys.stderr)
    config = setup.config
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    kv_bytes = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * size * 2
    total = machine.gpus[0].memory_bytes if on_gpu else machine.memory_bytes
    assert total
    versions = ", ".join(
        f"{name} {machine.packages[name]}" for name in machine.packages if name in ("torch", "transformers")
    )
    conditions = (
        f"{'Random weights of the shape of Llama-3-8B' if setup.random else MODEL}, "
        f"{'made small for a rehearsal, ' if options.rehearse else ''}"
        f"bf16, {found['prompt_tokens']} tokens of prompt, "
        f"{found['new_tokens']} of answer, medians of {options.repeats * (2 if setup.alone else 1)} (warm-up not counted), "
        f"vLLM {vllm_engine.installed()}, "
        f"{versions}, {machine.gpus[0].name if on_gpu else f'{machine.cores} cores {machine.cpu}'}, "
        f"load average {load[0]:.1f} at the start and {os.getloadavg()[0]:.1f} at the end (ours included), "
        f"{time.monotonic() - began:.0f} s."
    )
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    kept: Row = {
        "date": date, "machine": machine.as_dict(), "vllm": vllm_engine.installed(), "quick": options.quick,
        "load_before": load, "load_after": os.getloadavg(), "conditions": conditions, **found,
    }  # fmt: skip
    files = [options.json] if options.json else []
    if options.save:
        files.append(HERE / "results" / f"headline-{setup.kind}-{date}.json")
    whole = all(found["times"][name].get(batch, {}).get("seconds") for name in ENGINES for batch in EQUAL)
    if whole:
        kept["summary"] = summarise(found, total, kv_bytes)
        tell(table=table(kept["summary"], conditions))
    for path in files:  # also what is not whole
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if not whole:
        sys.exit(f"Not everything was measured: {found['failed'] or 'the time was over'}")
    if not options.json:
        print(table(kept["summary"], conditions), file=sys.stderr)


if __name__ == "__main__":
    main()
