"""Several devices: submissions measured on different ones at once, no two on the same, none held once everybody is gone.

No GPU is needed: the devices are names only. Leases, judges and workers are told of them as of GPUs, and measure on the CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpu_env.lease import lease

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="speed is measured on Linux only")

SUBMISSION = """
import fcntl, os, pathlib, time

here, name = pathlib.Path({folder!r}), os.environ.get("CUDA_VISIBLE_DEVICES", "none")
alone = None


def attend(q):
    global alone
    if alone is None:
        alone = open(here / (name + ".lock"), "w")
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (here / (name + ".used")).touch()
        while len(list(here.glob("*.used"))) < {meets} or (here / "hold").exists():
            time.sleep(0.01)
    return q + q
"""
"""Answers once submissions on so many devices wait for an answer at the same time; raises if its own device has two of them."""

PUBLIC = '''
def test_runs(submission):
    """It can be described."""
'''
SUITE = '''
import random
import torch


def test_speed(submission, timed):
    """It is as fast as the reference."""
    timed.expect(
        "attend",
        reference="def attend(q):\\n    for _ in range(400): q + q\\n    return q + q",
        inputs=lambda rng: [torch.full((256, 256), rng.random())],
        output=torch.empty_like,
        right=lambda result, q: None,
        time_s=2.0,
    )
'''
RUN = """
import json, sys
from pathlib import Path
from autograder.runs.grading import Grader, Job
from autograder.manifest import Manifest
from autograder.sandboxing.sandbox import ProcessSandbox
from autograder.spec import Assignment, Task, Threshold
from autograder.submission import Submission
from autograder.suite import Suite

folder, devices, sources = json.load(sys.stdin)
threshold = {"cpu": Threshold(2.0, 1.0, "the reference does the work 400 times", "any")}
task = Task("attend", "Attend", 1, {"test_runs": 1}, {"test_speed": 1}, {"test_speed": threshold})
limits = dict(call_s=100, check_s=300, cpu_s=300, memory_bytes=2 << 30)
assignment = Assignment("speedy", "Speedy", (task,), ("torch",), **limits)
manifest = Manifest(
    assignment="speedy", title="Speedy", release="1", preload=("torch",), cells=("attend",), given={}, stubs={}, tasks={},
    **limits,
)
jobs = [Job(f"student{n}", Submission("attend.py", {"attend": source})) for n, source in enumerate(sources)]
with ProcessSandbox() as sandbox:
    suite = Suite(assignment, manifest, tuple(Path(folder, f"test_{kind}.py") for kind in ("public", "hidden")), "0")
    grader = Grader(suite, sandbox, None, workers=len(jobs), devices=tuple(devices))
    grader.warm_up()
    grader.grade(jobs, lambda done: print(done.result.model_dump_json() if done.result else done.problem, flush=True))
"""


@dataclass
class Class:
    """A class that is measured on devices of a name of its own."""

    folder: Path
    devices: list[str]

    def start(self, count: int, meets: int) -> subprocess.Popen[str]:
        """Judge `count` submissions at once, each of which waits until `meets` devices are measured on."""
        (self.folder / "test_public.py").write_text(PUBLIC)
        (self.folder / "test_hidden.py").write_text(SUITE)
        source = SUBMISSION.format(folder=str(self.folder), meets=meets)
        process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin
        process.stdin.write(json.dumps([str(self.folder), self.devices, [f"{source}\n# {n}" for n in range(count)]]))
        process.stdin.close()
        process.stdin = None
        return process

    def used(self) -> set[str]:
        """The devices that were measured on."""
        return {file.stem for file in self.folder.glob("*.used")}


@pytest.fixture
def two(tmp_path: Path) -> Class:
    """Two devices that no other test knows."""
    return Class(tmp_path, [f"GPU-{uuid.uuid4()}" for _ in range(2)])


def test_different_submissions_are_measured_on_different_devices_at_once(two: Class) -> None:
    """Three submissions, two devices: two are measured at the same time, on different devices, and never two on one."""
    process = two.start(count=3, meets=2)
    said, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    findings = [json.loads(line)["findings"][-1] for line in said.splitlines()]
    assert len(findings) == 3
    for each in findings:
        assert each["outcome"] in ("PASSED", "INCONCLUSIVE"), each  # a busy machine may not be able to tell
        assert each["measurements"]["pairs"] >= 1
    assert two.used() == set(two.devices)


def test_one_device_is_used_by_one_submission_after_the_other(two: Class) -> None:
    """Where there is one device the second submission waits; nobody has it beside another."""
    two.devices.pop()
    process = two.start(count=2, meets=1)
    said, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    findings = [json.loads(line)["findings"][-1] for line in said.splitlines()]
    assert [each["outcome"] in ("PASSED", "INCONCLUSIVE") for each in findings] == [True, True], findings
    assert max(each["measurements"]["waited_s"] for each in findings) > 0.1
    assert two.used() == set(two.devices)


def test_a_killed_run_leaves_no_device_taken(two: Class, wait_for: Callable[..., None]) -> None:
    """While both devices are measured on, nobody else gets one; after SIGKILL for the run both are free."""
    (two.folder / "hold").touch()
    process = two.start(count=2, meets=2)
    wait_for(process, lambda: len(two.used()) == 2)
    for device in two.devices:
        with pytest.raises(RuntimeError, match="another process"), lease(device, wait_s=0.2):
            pass
    process.kill()
    process.communicate()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(lease(*two.devices, wait_s=60)) for _ in two.devices]
    assert sorted(each.device for each in held) == sorted(two.devices)
    for device in two.devices:
        Path(f"/dev/shm/autograder-lease-{os.getuid()}-{device}").unlink()
