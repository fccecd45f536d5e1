"""What benchmarks on a GPU host share: findings as lines of JSON, jobs in forks, and the reference solutions on a device.

Solutions compute on the CPU, as the assignments do. `solution(name, device)` gives the same functions with tensors on a
device, where theirs is not changed but for this: what they make without saying where (`torch.zeros(3)`) lies there.

Not covered: measuring (`gpu_thresholds.py`, `gpu_timing.py`). Needs torch; loads no CUDA in the process that imports it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import select
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
FACTORIES = ("arange", "empty", "eye", "full", "ones", "tensor", "zeros")
"""Functions of torch that make a tensor from nothing; random ones are not needed."""


class OnDevice:
    """Stands for the module torch in a program: its factories make tensors on `device` unless they are told where."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch, name)
        return partial(found, device=self._device) if name in FACTORIES else found


def solution(name: str, device: str | None = None) -> dict[str, Any]:
    """The functions of a reference solution: its given, helper and task cells, without examples and plots.

    With `device`, tensors that they make lie there; without, they are as they were written.
    """
    text = (REPOSITORY / "solutions" / f"{name}.py").read_text(encoding="utf-8")
    module = types.ModuleType(f"solution_{name}")
    sys.modules[module.__name__] = module  # dataclasses look for the module that they stand in
    namespace = vars(module)
    for cell in re.split(r"^(?=# %%)", text, flags=re.MULTILINE):
        if re.match(r"# %% (given|helpers|task)=", cell):
            exec(compile(cell, f"solutions/{name}.py", "exec"), namespace)  # noqa: S102 - our own solution
    if device is not None:
        namespace["torch"] = OnDevice(device)
    return namespace


def tell(kind: str, **fields: Any) -> dict[str, Any]:
    """Print one finding as a line of JSON."""
    fields = {"kind": kind, **fields}
    print(json.dumps(fields, default=str), flush=True)
    return fields


def in_fork(job: Callable[[], Any], limit_s: float) -> Any:
    """The value of `job()` in a fork of its own, or {"error": a text that says why there is none}."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        os.close(reading)
        faulthandler.register(signal.SIGUSR1)
        try:
            answer = json.dumps({"value": job()}, default=str)
        except BaseException:
            answer = json.dumps({"error": traceback.format_exc()[-3000:]})
        with open(writing, "w") as file:
            file.write(answer)
        os._exit(0)
    os.close(writing)
    data, end = b"", time.monotonic() + limit_s
    while True:
        if not select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            os.kill(pid, signal.SIGUSR1)  # it tells on stderr where it is
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            data = json.dumps({"error": f"nothing within {limit_s:.0f} s"}).encode()
            break
        if not (chunk := os.read(reading, 1 << 16)):
            break
        data += chunk
    os.close(reading)
    status = os.waitpid(pid, 0)[1]
    found = json.loads(data) if data else {"error": f"ended without a word, status {status}"}
    return found.get("value", {"error": found.get("error")})
