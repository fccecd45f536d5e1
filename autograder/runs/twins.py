"""Identical submissions are judged once per run, and each student has a result of their own.

Identical is what a judge could not tell apart: the same graded content, byte for byte. Copied are seed and findings; what
belongs to one student (name, file, remarks, reasons to withhold, the copy of what was handed in) is always the student's own.

Covered: nothing of a student's reaches another but what follows from the content alone. Where a finding may be the machine's
doing or is for a person to look at (see `FINAL`), or the judge failed, each submission is judged for itself.
Not covered: submissions that were graded by an earlier run; content that differs in a blank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autograder.finding import Outcome
from autograder.grade import Graded
from autograder.results import Result, copy_of
from autograder.runs.grading import Executor, Job, graded_as, store
from autograder.suite import Suite

if TYPE_CHECKING:
    from autograder.signing import SigningKey

__all__ = ["FINAL", "grade_once", "result_of_twin", "twins"]

FINAL = frozenset({Outcome.PASSED, Outcome.FAILED, Outcome.BLOCKED})
"""What a check establishes about the content. The other outcomes are about one run of it."""


def twins(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs in groups that a judge could not tell apart, in the order of their first ones."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        content = job.submission
        assert content is not None
        # names that ungraded cells define stand in messages, and are not part of the hash
        seen = json.dumps([content.hash, sorted(content.elsewhere.items()), job.seed, job.only])
        groups.setdefault(seen, []).append(job)
    return list(groups.values())


def result_of_twin(result: Result, job: Job) -> Result | None:
    """The result of `job`, whose submission is identical with the one of `result`; `None` if it must be judged itself."""
    content = job.submission
    if content is None or content.hash != result.submission_hash:
        return None
    if not all(finding.outcome in FINAL for finding in result.findings):
        return None
    own = {
        "student": job.student, "source": content.source, "submission_copy": copy_of(content)[0],
        "withheld": content.review, "remarks": content.remarks, "judged_with": result.student,
    }  # fmt: skip
    return result.model_copy(update=own)


def grade_once(
    executor: Executor,
    suite: Suite,
    folder: Path,
    jobs: Sequence[Job],
    done: Callable[[Graded], None],
    signing_key: SigningKey | None = None,
) -> None:
    """Grade `jobs` with `executor`, identical ones once. Results are stored under `folder`. Raises what the executor raises."""
    others = {first.student: rest for first, *rest in twins(jobs)}
    left: list[Job] = []

    def judged(each: Graded) -> None:
        done(each)
        for job in others.pop(each.student):
            if each.result and (own := result_of_twin(each.result, job)):
                store(suite, folder, job, own, signing_key)
                done(graded_as(suite, own, fresh=True))
            else:
                left.append(job)

    executor.grade([job for job in jobs if job.student in others], judged)
    if left and not executor.stopping:
        executor.grade(left, done)
