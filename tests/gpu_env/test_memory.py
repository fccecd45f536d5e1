"""Bytes are counted where they lie, each of them once, in this process and in others."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import types
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_env import memory
from gpu_env.memory import tensor_bytes

ROOT = Path(memory.__file__).parents[1]
MIB = 2**20
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
places = pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=on_cuda)])


# ------------------------------------------------------------------------------------ processes


@pytest.fixture
def child() -> Any:
    """Starts a Python that runs lines as they are sent and answers each one with "done"."""
    code = "import sys\nfor line in sys.stdin:\n    exec(line)\n    print('done', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def do(line: str) -> int:
        print(line, file=process.stdin)
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        return process.pid

    with process:
        yield types.SimpleNamespace(do=do, process=process)
        process.kill()


def test_memory_of_another_process_is_seen(child: Any) -> None:
    """What a child takes shows in its resident memory, and its peak stays when it gives it back."""
    pid = child.do("pass")
    start = memory.resident(pid)
    child.do(f"held = bytearray(b'x') * {64 * MIB}")
    assert memory.resident(pid) - start >= 60 * MIB
    child.do("del held")
    assert memory.resident(pid) - start < 32 * MIB
    peak = memory.peak_resident(pid)
    assert peak is None if not sys.platform.startswith("linux") else peak is not None and peak - start >= 60 * MIB


def test_memory_of_this_process_is_the_default() -> None:
    """Without a number it is this process that is measured, as with its own number."""
    held = bytearray(b"x") * (32 * MIB)
    own = memory.resident()
    assert own == pytest.approx(memory.resident(os.getpid()), rel=0.2)
    assert own > len(held)


def test_ended_process_has_no_memory(child: Any) -> None:
    """Neither a process that was waited for nor one that nobody has waited for yet can be measured."""
    child.process.stdin.close()
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    for measure in (memory.resident, memory.peak_resident):
        with pytest.raises(ProcessLookupError, match=str(child.process.pid)):
            measure(child.process.pid)
    child.process.wait()
    for measure in (memory.resident, memory.peak_resident):
        with pytest.raises(ProcessLookupError, match="it has ended"):
            measure(child.process.pid)


# ------------------------------------------------------------------------------------ the CUDA allocator


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_its_allocator_holds_nothing() -> None:
    """All figures are zero where CUDA is not in use, and there is no peak to set back."""
    memory.reset_cuda_peak()
    assert memory.cuda() == memory.CudaMemory(0, 0, 0, 0)


def test_asking_initialises_nothing() -> None:
    """In a process that has not touched CUDA the question does not create a context, nor load torch."""
    code = (
        "import sys; from gpu_env import memory; memory.reset_cuda_peak()\n"
        "print(memory.cuda().reserved, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 False"


@on_cuda
def test_cuda_allocator_is_followed() -> None:
    """Allocating shows in `allocated`, freeing leaves the peak, and the peak starts again where it is told to."""
    gc.collect()
    torch.ones(1, device="cuda")
    torch.cuda.empty_cache()
    memory.reset_cuda_peak()
    before = memory.cuda()
    held = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    during = memory.cuda()
    assert during.allocated - before.allocated == tensor_bytes(held) == 64 * MIB
    assert during.reserved >= during.allocated
    del held
    after = memory.cuda()
    assert after.allocated == before.allocated
    assert after.peak_allocated == during.allocated
    assert after.peak_reserved >= after.peak_allocated
    memory.reset_cuda_peak()
    assert memory.cuda().peak_allocated == before.allocated


# ------------------------------------------------------------------------------------ tensors


@places
def test_plain_structures_are_followed(where: str) -> None:
    """Tensors in lists, tuples, dictionaries, sets, queues, dataclasses, slots and partial calls all count."""

    @dataclasses.dataclass(slots=True)
    class Slotted:
        tensor: torch.Tensor
        empty: torch.Tensor = dataclasses.field(init=False)

    def tensor() -> torch.Tensor:
        return torch.zeros(10, dtype=torch.int16, device=where)

    class Holder:
        def __init__(self) -> None:
            self.held = {"a": [tensor()], tensor(): (tensor(), {tensor()})}
            self.queue = deque([Slotted(tensor())])
            self.itself = self
            self.partial = partial(print, tensor())
            self.space = types.SimpleNamespace(parameter=torch.nn.Parameter(tensor().float()))

    assert tensor_bytes(Holder()) == 6 * 20 + 40
    assert tensor_bytes([None, 1, "text", b"bytes", print, torch, Holder]) == 0


@places
def test_views_keep_their_storage(where: str) -> None:
    """A slice of one row holds the whole matrix, and a tensor counted with its views counts once."""
    matrix = torch.zeros(100, 10, device=where)
    assert tensor_bytes(matrix[3]) == 4000
    assert tensor_bytes([matrix, matrix[3], matrix.t(), matrix.view(-1)]) == 4000
    assert tensor_bytes(matrix[3].clone()) == 40


@settings(deadline=None)
@given(st.integers(1, 200), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=8), st.booleans())
def test_each_byte_counts_once(length: int, cuts: list[tuple[int, int]], as_tensors: bool) -> None:
    """Arrays cut from one another, and tensors made from them, hold what they cover together."""
    whole = np.zeros(length, dtype=np.int32)
    pieces = [whole[min(cut) : max(cut)] for cut in cuts]
    if as_tensors:  # each has a storage of its own that begins inside the array
        covered = {place for cut in cuts for place in range(min(cut), min(max(cut), length))}
        assert tensor_bytes([torch.from_numpy(piece) for piece in pieces]) == 4 * len(covered)
    else:
        assert tensor_bytes(pieces) == (4 * length if pieces else 0)
    assert tensor_bytes([whole, pieces, torch.from_numpy(whole)]) == 4 * length


def test_tied_weights_count_once() -> None:
    """A head that shares its weight with the embedding costs nothing more, buffers count, gradients do not."""
    model = torch.nn.Sequential(
        torch.nn.Embedding(100, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 100, bias=False)
    )
    untied = tensor_bytes(model)
    assert untied == 4 * (800 + 800 + 4 * 8) + 8  # running mean and variance, weight and bias, and a counter
    model[2].weight = model[0].weight
    assert tensor_bytes(model) == untied - 3200
    model[0](torch.tensor([1])).sum().backward()
    assert tensor_bytes(model) == untied - 3200


def test_meta_tensors_hold_nothing() -> None:
    """A model that was only outlined takes no memory."""
    with torch.device("meta"):
        assert tensor_bytes(torch.nn.Linear(10**4, 10**4)) == 0


@places
@pytest.mark.filterwarnings("ignore:Sparse")
def test_tensors_made_of_tensors(where: str) -> None:
    """A sparse or jagged tensor holds its parts."""
    eye: Any = torch.eye(10, device=where)
    assert tensor_bytes(eye.to_sparse_coo()) == 10 * 4 + 2 * 10 * 8
    starts, places, values = (
        torch.arange(11, device=where),
        torch.arange(10, device=where),
        torch.ones(10, device=where),
    )
    for make in (torch.sparse_csr_tensor, torch.sparse_csc_tensor):
        assert tensor_bytes(make(starts, places, values, (10, 10))) == 11 * 8 + 10 * 8 + 10 * 4
    jagged = torch.nested.nested_tensor([eye[:2], eye[:5]], layout=torch.jagged)
    assert tensor_bytes(jagged) == 7 * 10 * 4 + 3 * 8


@places
@pytest.mark.parametrize("nested", [False, True])
def test_state_of_quantised_parameters_counts(where: str, nested: bool) -> None:
    """bitsandbytes' 4-bit weights cost their block maxima and code books too, which a model's footprint leaves out."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes (extra grading) is not installed")
    inputs, outputs = 256, 512
    layer = bnb.nn.Linear4bit(inputs, outputs, bias=False, quant_type="nf4", compress_statistics=nested).to(where)
    layer(torch.ones(1, inputs, device=where))
    weights, blocks = inputs * outputs // 2, inputs * outputs // 64
    state = 16 * 4 + (blocks + blocks // 256 * 4 + 256 * 4 + 4 if nested else blocks * 4)
    assert tensor_bytes(layer) == weights + state
    assert sum(parameter.nbytes for parameter in layer.parameters()) == weights


@places
def test_state_of_eight_bit_layers_counts(where: str) -> None:
    """bitsandbytes' 8-bit layer holds a byte for each weight and a scale for each row, wherever it keeps them."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes (extra grading) is not installed")
    layer = bnb.nn.Linear8bitLt(256, 512, bias=False, has_fp16_weights=False).to(where)
    held = tensor_bytes(layer)
    assert held == 256 * 512 + 512 * 4
    layer(torch.ones(1, 256, device=where, dtype=torch.float16))
    assert tensor_bytes(layer) == held
