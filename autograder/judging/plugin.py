"""The judge inside pytest: gives checks their submission, and turns what happens to them into findings.

A check passes only if its function ran to its end. What the submission did wrong arrives as `CheckFailed`, `SubmissionRaised`
or `SubmissionFault` and makes it FAILED; every other exception is ours and makes it BROKEN.
"""

from __future__ import annotations

import inspect
import random
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import platformdirs
import pytest

from autograder.checks import CheckFailed, SubmissionFault, SubmissionRaised, sentence_and_hint
from autograder.finding import NOT_IMPLEMENTED, Finding, Outcome
from autograder.judging.blame import Blame
from autograder.judging.remote import RunningSubmission
from autograder.judging.timed import Inconclusive, NeedsReview, NotHere, Timed, TooSlow
from autograder.manifest import HELPERS
from autograder.sandboxing.isolation import GIB
from autograder.sandboxing.sandbox import SandboxUnavailable
from autograder.spec import Assignment, Check, SpecError
from autograder.submission import Submission
from autograder.worker.wire import Deadline
from gpu_env import models
from gpu_env.models import ModelMissing

__all__ = ["JudgePlugin"]

TIMEOUTS_PER_TASK = 2
"""After so many the rest of a task is not run: an endless loop would otherwise cost its limit once per check."""
PUBLIC_FILES = ("test_public.py", "public_checks.py")
MAX_LOGGED = 600
"""Characters of what a submission's server logged."""
ADDRESS = re.compile(r"(?<= at )0x[0-9A-Fa-f]+")
"""Where Python's own texts say where an object lies: another place in every run, and no help to anybody."""


class JudgePlugin:
    """One run of the checks of `assignment` on one submission. `findings` fill as checks end."""

    def __init__(
        self,
        assignment: Assignment,
        submission: Submission,
        running: RunningSubmission,
        blame: Blame,
        seed: int,
        only: str | None,
        measure: Callable[..., Timed],
    ) -> None:
        self.assignment = assignment
        self.content = submission
        self.running = running
        self.blame = blame
        self.seed = seed
        self.only = only
        self.measure = measure
        self.timed_now: Timed | None = None
        self.figures_now: dict[str, float] = {}
        self.findings: list[Finding] = []
        self.errors: list[str] = []
        self.blocked: dict[str, str] = {}
        self.timeouts: Counter[str] = Counter()
        self.ended = ""
        """Why no further check is run: the machine failed, and all is to be tried again."""

    @pytest.fixture
    def submission(self) -> RunningSubmission:
        """The submission: call what it defines."""
        return self.running

    @pytest.fixture
    def rng(self, request: pytest.FixtureRequest) -> random.Random:
        """Random numbers for inputs, seeded by the run's secret seed and the check's name."""
        return random.Random(f"{self.seed}/{request.node.name}")

    @pytest.fixture
    def timed(self, request: pytest.FixtureRequest) -> Timed:
        """Measures the submission's speed against a reference implementation."""
        self.timed_now = self.measure(
            thresholds=self._check(request.node).thresholds,
            seed=f"{self.seed}/{request.node.name}/timed",
            alive=request.config.hook.pytest_judge_alive,
        )
        return self.timed_now

    @pytest.fixture
    def figures(self) -> dict[str, float]:
        """What a check measures beside its verdict, by names with their units. Stored with the finding, and shown."""
        return self.figures_now

    def pytest_addhooks(self, pluginmanager: pytest.PytestPluginManager) -> None:
        """Whoever counts a silent judge as hanging hears of one that is at work."""
        pluginmanager.add_hookspecs(_Hooks)

    def pytest_runtest_setup(self) -> None:
        """No measurement outlives its check."""
        self.timed_now = None
        self.figures_now = {}

    def pytest_configure(self) -> None:
        from hypothesis import HealthCheck, Phase, configuration, core, settings

        # It keeps a cache; not in the folder where somebody happens to grade or to check.
        configuration.set_hypothesis_home_dir(
            platformdirs.user_cache_path("inference-autograder", appauthor=False) / "hypothesis"
        )
        settings.register_profile(
            "grading",
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate),  # shrinking costs minutes on a wrong submission
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        settings.load_profile("grading")
        core.global_force_seed = self.seed  # type: ignore[assignment]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Match test functions and the assignment's checks, one to one, and put them into the assignment's order."""
        try:
            items[:] = self._match(items)
        except SpecError as error:
            self.errors.append(str(error))
            items.clear()

    def _match(self, items: list[pytest.Item]) -> list[pytest.Item]:
        checks = {check.name: check for check in self.assignment.checks}
        found: dict[str, pytest.Item] = {}
        for item in items:
            check = checks.get(item.name)
            if check is None or item.name in found:
                raise SpecError(f"{item.nodeid} is {'in two files' if check else 'not in spec.py'}.")
            if check.hidden == (Path(item.path).name in PUBLIC_FILES):
                raise SpecError(f"{item.nodeid}: spec.py calls it {'hidden' if check.hidden else 'public'}.")
            if not inspect.getdoc(getattr(item, "obj", None)):
                raise SpecError(f"{item.nodeid} has no docstring; its first line is what the student reads.")
            found[item.name] = item
        if absent := checks.keys() - found.keys():
            raise SpecError(f"spec.py names checks without a test function: {', '.join(sorted(absent))}.")
        # All public ones first: a submission that remembers hidden inputs must find no message to put them into.
        order = sorted(checks.values(), key=lambda check: check.hidden)
        return [found[check.name] for check in order if self.only in (None, check.task)]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(str(report.longrepr))

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Iterator[None]:
        """Run one check between the test of what it needs and the end of its time."""
        check = self._check(pyfuncitem)
        self.running.begin_check(Deadline(self.assignment.check_s))
        self._require(check)
        result = yield
        if self.timed_now and not self.timed_now.measurements:
            raise RuntimeError("The check asked for `timed` and measured nothing.")
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Function, call: pytest.CallInfo[None]) -> pytest.TestReport:
        """Note the finding. In place of pytest's report, whose traceback nobody reads and which takes 40 ms to lay out."""
        error = call.excinfo.value if call.excinfo else None
        if call.when == "call" or error is not None:
            if call.when == "call" or not any(finding.check == item.name for finding in self.findings):
                self.findings.append(self._finding(item, error, call.duration))
            else:
                self.errors.append(f"{item.nodeid}, {call.when}: {error!r}")
        assert call.when != "collect"
        return pytest.TestReport(item.nodeid, item.location, {}, "failed" if error else "passed", None, call.when)

    def _check(self, item: pytest.Item) -> Check:
        return next(check for check in self.assignment.checks if check.name == item.name)

    def _require(self, check: Check) -> None:
        """Raise what keeps `check` from being run at all."""
        if self.ended:
            raise _MachineFault(self.ended)
        if check.task in self.blocked:
            raise _Blocked(self.blocked[check.task])
        if check.task in self.content.missing:
            self.blocked[check.task] = "The cell of the task is missing."
            raise _Unusable(self.content.missing[check.task])
        try:
            kind = self.running.describe(check.task)
        except SubmissionFault as fault:
            self.blocked.update(dict.fromkeys((task.name for task in self.assignment), str(fault)))
            raise
        if kind.kind in ("class", "callable"):
            return
        self.blocked[check.task] = f"There is no {check.task} to call."
        if error := self.running.load_errors.get(check.task):
            raise _Unusable(f"The cell of {check.task} could not be loaded: {self._describe(error, check.task)}")
        if kind.kind == "value":
            raise _Unusable(f"{check.task} is neither a function nor a class.", value=kind.type_name)
        raise _Unusable(f"The cell of {check.task} does not define that name.")

    def _finding(self, item: pytest.Function, error: BaseException | None, seconds: float) -> Finding:
        check = self._check(item)
        sentence, hint = sentence_and_hint(inspect.getdoc(item.obj) or "")
        outcome, message, value, expected = self._verdict(check, error)
        return Finding(
            check=check.name,
            task=check.task,
            outcome=outcome,
            hidden=check.hidden,
            sentence=sentence,
            message=_lasting(message),
            hint=hint if outcome is Outcome.FAILED and self._leads_on(error) else "",
            printed="" if check.hidden or outcome is Outcome.PASSED else self.running.printed(),
            value=None if value is None else _lasting(value),
            expected=None if expected is None else _lasting(expected),
            credit=error.credit if isinstance(error, TooSlow) else None,
            measurements=self.timed_now.measurements if self.timed_now else self.figures_now,
            seconds=round(seconds, 4),
        )

    def _leads_on(self, error: BaseException | None) -> bool:
        """Whether the submission ran and was wrong, or did not answer: only then does the author's hint lead anywhere."""
        return any(
            type(part) in (CheckFailed, TooSlow) or (isinstance(part, SubmissionFault) and not _is_sentence(part))
            for part in _flatten(error)
        )

    def _verdict(self, check: Check, error: BaseException | None) -> tuple[Outcome, str, str | None, str | None]:
        if error is not None:
            try:
                for name in self.assignment.models:
                    models.find(name)
            except ModelMissing as missing:  # whatever went wrong, that may be why
                return Outcome.SKIPPED, str(missing), None, None
        for part in _flatten(error):
            if isinstance(part, SubmissionFault) and (excuse := self.blame.excuse(part, check.name)):
                self.ended = f"Not run, as the machine failed in {check.name}."
                return Outcome.BROKEN, excuse, None, None
            if isinstance(part, SandboxUnavailable | _MachineFault):
                return Outcome.BROKEN, str(part), None, None
            if isinstance(part, CheckFailed):
                return Outcome.FAILED, part.message + self._logged(check.task), part.value, part.expected
            if isinstance(part, SubmissionRaised):
                return Outcome.FAILED, self._describe(part, check.task), None, None
            if isinstance(part, SubmissionFault):
                self.timeouts[check.task] += part.timeout
                if self.timeouts[check.task] >= TIMEOUTS_PER_TASK:
                    self.blocked.setdefault(
                        check.task, f"Your code ran out of time {TIMEOUTS_PER_TASK} times in this task."
                    )
                text = str(part) if _is_sentence(part) else f"Your code {part}."
                return Outcome.FAILED, text + self._logged(check.task), None, None
        if error is None:
            return Outcome.PASSED, "", None, None
        if isinstance(error, _Blocked):
            return Outcome.BLOCKED, str(error), None, None
        if isinstance(error, ModelMissing | NotHere | pytest.skip.Exception):
            return Outcome.SKIPPED, str(error), None, None
        if isinstance(error, Inconclusive | NeedsReview):
            return Outcome.REVIEW if isinstance(error, NeedsReview) else Outcome.INCONCLUSIVE, str(error), None, None
        return Outcome.BROKEN, f"{type(error).__name__}: {error}"[:2000], None, None

    def _logged(self, task: str) -> str:
        """What the submission's server said before a check of it failed. Its own word, so it explains and decides nothing."""
        if self.running.logged is None:
            return ""
        said = self._describe(self.running.logged, task).removeprefix("Your code raised ")
        return f" Its server logged: {said[:MAX_LOGGED]}"

    def _describe(self, error: SubmissionRaised, task: str) -> str:
        """What the submission raised, in a sentence, with the line of the student's code."""
        own = [each for each in error.lines if each[0] in self.content.answers]
        cell = (own or error.lines or [(task, 0, "")])[-1][0]
        other = cell if cell != task and own and cell != HELPERS else None
        if error.type_name == "NotImplementedError":
            return f"Your code calls {other}, which is not implemented yet." if other else NOT_IMPLEMENTED
        text = f"Your code raised {error.type_name}: {error.text}{where(error.lines, self.content.answers)}".strip()
        if other:
            text += f" — that is in {other}, which this task calls"
        if error.name and error.name in self.running.load_errors:
            text += f" — the cell of {error.name} could not be loaded"
        elif error.name and error.name in self.content.elsewhere:
            text += (
                f" — {error.name} is only defined in {self.content.elsewhere[error.name]}, which is not graded. "
                "Move it to the cell of imports and helpers."
            )
        elif error.type_name == "NameError" and HELPERS in self.running.load_errors:
            broken = self.running.load_errors[HELPERS]
            line_number = f", line {broken.lines[-1][1]}" if broken.lines else ""
            text += f" — the cell of imports and helpers could not be loaded: {broken}{line_number}"
        elif error.type_name == "SyntaxError" and error.lines and error.lines[-1][2][:1] in "%!":
            text += " — notebook commands (lines with % or !) cannot stand in graded cells."
        elif self.blame.worker and ("MemoryError" in error.mro or "allocate memory" in error.text):
            text += f" — the limit is {self.blame.worker.limits.memory_bytes / GIB:.1f} GiB of memory"
        return text


def where(lines: Sequence[tuple[str, int, str]], own: Container[str]) -> str:
    """The last line of the student's `own` cells, and the line of a given cell where that ended. Empty if none is known."""
    mine = [each for each in lines if each[0] in own]
    if not lines:
        return ""
    cell, number, line = (mine or lines)[-1]
    if not mine or lines[-1] == mine[-1]:
        return f" (cell {cell}, line {number}: {line})"
    return f" (cell {cell}, line {number}: {line}; raised in the given cell {lines[-1][0]}, line {lines[-1][1]})"


class _Hooks:
    """What other plug-ins may want to know."""

    def pytest_judge_alive(self) -> None:
        """The judge is at work in a check that takes long."""


class _Unusable(CheckFailed):
    """There is nothing that the check could be tried on."""


class _Blocked(Exception):
    """A check was not run."""


class _MachineFault(Exception):
    """A check was not run, as the machine failed in an earlier one."""


def _is_sentence(fault: SubmissionFault) -> bool:
    """Whether its text stands alone; others follow "Your code". Only those of loading do, which no hint is about."""
    return str(fault)[:1].isupper()


def _lasting(text: str) -> str:
    """`text` without what would be different if the same were judged again."""
    return ADDRESS.sub("0x…", text)


def _flatten(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, or the errors in it: hypothesis groups what a submission that changes its mind raised."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _flatten(part)
    elif error is not None:
        yield error
