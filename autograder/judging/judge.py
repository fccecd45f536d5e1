"""Judge one submission: run the suite's pytest functions in this trusted process, the submission's code in a worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from autograder.errors import AutograderError
from autograder.finding import Finding
from autograder.judging.blame import Blame
from autograder.judging.plugin import JudgePlugin
from autograder.judging.remote import RunningSubmission
from autograder.judging.timed import Timed
from autograder.manifest import Manifest
from autograder.sandboxing.sandbox import Limits, Sandbox
from autograder.spec import Assignment
from autograder.submission import Submission

__all__ = ["SuiteError", "judge", "limits_of", "rehearse"]

OPTIONS = (
    "--assert=plain", "--noconftest", "--capture=no", "--import-mode=prepend",
    *(f"-pno:{name}" for name in (
        "terminal", "cacheprovider", "junitxml", "pastebin", "doctest", "unittest", "faulthandler",
        "unraisableexception", "threadexception", "logging", "warnings", "setuponly", "setupplan", "stepwise",
    )),
)  # fmt: skip

ENDED = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)


class SuiteError(AutograderError):
    """The suite itself cannot be run: our fault."""


def judge(
    assignment: Assignment,
    files: Sequence[Path],
    submission: Submission,
    manifest: Manifest,
    sandbox: Sandbox,
    *,
    seed: int,
    only: str | None = None,
    limits: Limits | None = None,
    times: dict[str, float] | None = None,
    watchers: Sequence[object] = (),
    blame: Blame | None = None,
    devices: Sequence[str] = (),
) -> list[Finding]:
    """The findings of all checks (or of the task `only`) on `submission`, in the assignment's order.

    Runs student code in workers of `sandbox` only; `times` gets what that took besides the checks; `watchers` are further
    pytest plug-ins; `blame` knows of earlier tries and learns what this one leaves open; `devices` are measured on, in place
    of this machine's. Raises `SuiteError` if the suite is broken; a check that is broken gives a finding. Changes this
    process (pytest imports the suite), so run it in a fork or a process of its own.
    """
    limits = limits or limits_of(assignment)
    blame = blame or Blame()
    cells = submission.module(manifest)
    running = RunningSubmission(cells, sandbox, limits, call_s=assignment.call_s, blame=blame)
    measure = partial(
        Timed, cells, sandbox, limits, call_s=assignment.call_s, blame=blame, quiet=running.fresh, devices=devices
    )
    plugin = JudgePlugin(assignment, submission, running, blame, seed, only, measure)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    config = Path(__file__).with_name("judge.toml")
    try:
        code = pytest.main(
            [f"-c{config}", f"--rootdir={files[0].parent}", *OPTIONS, *map(str, files)], plugins=[plugin, *watchers]
        )
    finally:
        running.close()
        if times is not None:
            times.update(running.times)
    if plugin.errors or code not in ENDED:
        raise SuiteError(
            f"The suite of {assignment.name} cannot be run (pytest: {code!r}). " + "\n".join(plugin.errors)
        )
    return plugin.findings


def limits_of(assignment: Assignment) -> Limits:
    """What each worker of the assignment may use."""
    return Limits(cpu_s=assignment.cpu_s, memory_bytes=assignment.memory_bytes, processes=assignment.processes)


def rehearse(assignment: Assignment, files: Sequence[Path], manifest: Manifest, sandbox: Sandbox) -> None:
    """Judge nothing, so that forks of this process find all imports done. Raises `SuiteError` if the suite is broken."""
    judge(assignment, files, Submission("nothing", {}), manifest, sandbox, seed=0, only="")
