"""Public checks on a student's own machine: no marks, no hidden checks, a spawned process instead of a sandbox.

The judge runs in a process of its own (`python -m autograder.students.selfcheck`), so that a notebook's kernel is left alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from autograder.errors import AutograderError
from autograder.finding import Finding
from autograder.grade import TaskScore, score
from autograder.language import _, ngettext, said
from autograder.manifest import Manifest
from autograder.spec import Assignment
from autograder.students import pair
from autograder.submission import Submission

__all__ = ["SelfCheck", "SelfCheckError", "locate", "run"]

SEED = 20260101
"""Public checks are the same on every run, so that "it passed a minute ago" means something."""


class SelfCheckError(AutograderError):
    """The checks could not be run. Says why and what to do."""


@dataclass(frozen=True)
class SelfCheck:
    """What the public checks found, and which file was read: `read` is in the language in use."""

    assignment: Assignment
    findings: tuple[Finding, ...]
    tasks: tuple[TaskScore, ...]
    read: str
    remarks: tuple[str, ...]
    withheld: tuple[str, ...]


def locate(path: Path) -> tuple[Path, Manifest]:
    """Folder and manifest of the assignment that `path` (its folder, notebook or `.py` file) belongs to."""
    if not path.exists():
        raise SelfCheckError(f"There is no {path}. Give the notebook or the folder of the assignment.")
    folder = path if path.is_dir() else path.parent
    manifest = Manifest.load(folder)
    if path.is_file() and path.name not in (f"{manifest.assignment}.ipynb", f"{manifest.assignment}.py"):
        raise SelfCheckError(
            f"{path.name} is not graded in this folder; {manifest.assignment}.ipynb and {manifest.assignment}.py are. "
            "If you renamed it, rename it back."
        )
    return folder, manifest


def run(path: Path, task: str | None = None, newer: dict[str, str] | None = None, *, inline: bool = False) -> SelfCheck:
    """Run the public checks on what lies at `path`.

    `newer` are answers (by cell name) that are newer than the files: cells executed in a notebook and not saved yet.
    `inline` runs the submission in this process, for a debugger. Raises `SelfCheckError`, `UnreadableSubmission`.
    """
    folder, manifest = locate(path)
    found = pair.read(folder, manifest)
    if found.stale is not None:
        pair.take(found.path, manifest)
    else:
        pair.note_agreement(folder, found.submission)
    submission = found.submission
    if newer:
        submission = Submission(**{**vars(submission), "answers": {**submission.answers, **newer}})
    if task is not None and task not in manifest.tasks:
        raise SelfCheckError(
            f"There is no task {task!r} in {manifest.assignment}. There are: {', '.join(manifest.tasks)}."
        )
    assignment = manifest.public_assignment()
    findings = (_judge if inline else _spawn)(folder, submission, task)
    scored = score(assignment, findings, submission.review)
    tasks = tuple(each for each in scored.tasks if task in (None, each.task))
    return SelfCheck(
        assignment, tuple(findings), tasks, _read(found, newer or {}), submission.remarks, submission.review
    )


def _read(found: pair.Pair, newer: dict[str, str]) -> str:
    """Which file was read, and why that one."""
    text = _("{file} ({why})") if found.stale is None else _("{file} ({why}; {other} brought up to date)")
    read = text.format(file=found.path.name, why=said(found.why), other=found.stale.name if found.stale else "")
    if newer:
        read += ngettext(
            ", and {count} newer cell of this kernel that the file does not hold yet",
            ", and {count} newer cells of this kernel that the file does not hold yet",
            len(newer),
        ).format(count=len(newer))
    return read


def _spawn(folder: Path, submission: Submission, task: str | None) -> list[Finding]:
    request = json.dumps({"folder": str(folder), "submission": vars(submission), "task": task})
    done = subprocess.run(
        [sys.executable, "-m", "autograder.students.selfcheck"],
        input=request,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise SelfCheckError(f"The checks could not be run: {(done.stderr or done.stdout).strip()[-2000:]}")
    return [Finding.model_validate(item) for item in json.loads(lines[-1])]


def _judge(folder: Path, submission: Submission, task: str | None) -> list[Finding]:
    from autograder.judging.judge import judge
    from autograder.sandboxing.sandbox import InlineSandbox

    manifest = Manifest.load(folder)
    return judge(
        manifest.public_assignment(),
        [folder / "public_checks.py"],
        submission,
        manifest,
        InlineSandbox(),
        seed=SEED,
        only=task,
    )


def main() -> None:
    """Judge the request on standard input; findings go to standard output, as JSON on the last line."""
    from autograder.judging.judge import SuiteError, judge
    from autograder.sandboxing.sandbox import ProcessSandbox, SandboxUnavailable

    request = json.loads(sys.stdin.buffer.read())
    folder = Path(request["folder"])
    manifest = Manifest.load(folder)
    fields = request["submission"]
    submission = Submission(**{**fields, "review": tuple(fields["review"]), "remarks": tuple(fields["remarks"])})
    try:
        findings = judge(
            manifest.public_assignment(), [folder / "public_checks.py"], submission, manifest, ProcessSandbox(),
            seed=SEED, only=request["task"],
        )  # fmt: skip
    except (SuiteError, SandboxUnavailable) as error:
        sys.exit(str(error))
    print(json.dumps([finding.model_dump(mode="json") for finding in findings]))


if __name__ == "__main__":
    main()
