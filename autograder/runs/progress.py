"""Progress of long commands: on a terminal a bar with an estimate and what each worker does, in a log a line per item.

Covered: counts per outcome of a check, the slowest check, the time left if the rest takes as long as what is done.
Not covered: how long a single submission will take.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from autograder.finding import Finding

__all__ = ["Activity", "StepProgress", "Steps"]

REDRAW_S = 0.2
LOG_S = 30.0
"""How often a log gets a line on the whole."""


@dataclass(frozen=True)
class Activity:
    """What one worker does now. `check` is empty before the first one; `seconds` since its submission was begun."""

    worker: str
    student: str
    check: str
    seconds: float


class Steps:
    """The steps of a long command.

    Refreshed by hand: a refreshing thread could hold a lock while a judge is forked.
    """

    def __init__(self, console: Console, *, plain: bool) -> None:
        self.console = console
        self.plain = plain or not console.is_terminal
        self.progress = _Bar(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=console, auto_refresh=False, transient=True,
        )  # fmt: skip

    def say(self, text: str) -> None:
        """A line of text, above the bar if there is one."""
        self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, title: str, total: int) -> Iterator[StepProgress]:
        """One step of `total` items."""
        if self.plain:
            self.console.print(f"{title} ...", highlight=False)
            made = StepProgress(self, None, total)
            yield made
        else:
            with self.progress:
                task = self.progress.add_task(title, total=total)
                self.progress.refresh()
                made = StepProgress(self, task, total)
                self.progress.below = made.lines
                yield made
                self.progress.below = list
                self.progress.remove_task(task)
        done = f"{total}" if made.count == total else f"{made.count} of {total}"
        self.console.print(f"{title}: {done} in {made.lasted():.1f} s", highlight=False)
        if summary := made.summary():
            self.console.print(f"  {summary}", highlight=False, markup=False, soft_wrap=True)


class _Bar(Progress):
    """A progress bar with lines of text below."""

    below: Callable[[], list[str]] = staticmethod(list)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and as many lines as the terminal has room for."""
        yield from super().get_renderables()
        lines = self.below()
        if not lines:
            return  # rich asks for the first time when there is no console yet
        room = max(1, self.console.height - 3)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"  and {len(lines) - room + 1} more at work"]
        for line in lines:
            yield Text(line, no_wrap=True, overflow="ellipsis", style="dim")


class StepProgress:
    """Where a step stands."""

    def __init__(self, steps: Steps, task: TaskID | None, total: int) -> None:
        self.steps, self.task, self.total, self.count = steps, task, total, 0
        self.activities: Callable[[], Sequence[Activity]] = list
        """What is going on, for those who look."""
        self._outcomes: Counter[str] = Counter()
        self._slowest: tuple[float, str, str] | None = None
        self._began = self._drawn = self._logged = time.monotonic()

    def advance(self, text: str, findings: Iterable[Finding] = (), whose: str = "") -> None:
        """One item is done; `findings` are those of `whose` submission."""
        self.count += 1
        for finding in findings:
            self._outcomes[finding.outcome] += 1
            self._slowest = max(self._slowest or (0.0, "", ""), (finding.seconds, finding.check, whose))
        if self.task is None:
            self.steps.console.print(
                f"  {self.count}/{self.total} {text}", highlight=False, markup=False, soft_wrap=True
            )
        else:
            self.steps.progress.advance(self.task)
            self.steps.progress.refresh()

    def tick(self) -> None:
        """Time goes by: draw again, or from time to time write a line into the log."""
        now = time.monotonic()
        if self.task is not None and now - self._drawn >= REDRAW_S:
            self._drawn = now
            self.steps.progress.refresh()
        elif self.task is None and now - self._logged >= LOG_S:
            self._logged = now
            parts = [
                f"{self.count}/{self.total} after {self.lasted():.0f} s",
                *self._left(),
                *filter(None, [self.summary()]),
            ]
            self.steps.console.print(f"  -- {'; '.join(parts)}", highlight=False, markup=False, soft_wrap=True)
            for line in self.lines()[bool(self.summary()) :]:
                self.steps.console.print(f"  -- {line.strip()}", highlight=False, markup=False, soft_wrap=True)

    def lasted(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def summary(self) -> str:
        """Counts per outcome and the slowest check, if there were any."""
        if self._slowest is None:
            return ""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self._outcomes.most_common())
        seconds, check, whose = self._slowest
        return f"checks: {counts}; slowest: {check}, {seconds:.1f} s ({_printable(whose)})"

    def lines(self) -> list[str]:
        """The summary, and what each worker does."""
        doing = [
            f"  {_printable(each.worker)}: {_printable(each.student)}, {each.seconds:.0f} s, {each.check or 'starting'}"
            for each in self.activities()
        ]
        return [f"  {summary}", *doing] if (summary := self.summary()) else doing

    def _left(self) -> list[str]:
        if not self.count or self.count >= self.total:
            return []
        return [f"about {self.lasted() / self.count * (self.total - self.count):.0f} s left"]


def _printable(text: str) -> str:
    """Names of folders can hold what a terminal would act on."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
