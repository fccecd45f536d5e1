"""Progress of long commands: a bar with an estimate on a terminal, a line per finished item elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
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

__all__ = ["StepProgress", "Steps"]


class Steps:
    """Progress of a long command: a bar on a terminal, a line per finished item elsewhere.

    Refreshed by hand: a refreshing thread could hold a lock while a judge is forked.
    """

    def __init__(self, console: Console, *, plain: bool) -> None:
        self.console = console
        self.plain = plain or not console.is_terminal
        self.progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=console, auto_refresh=False, transient=True,
        )  # fmt: skip

    def say(self, text: str) -> None:
        """A line of text, above the bar if there is one."""
        self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def step(self, title: str, total: int) -> Iterator[StepProgress]:
        """One step of `total` items."""
        started = time.monotonic()
        if self.plain:
            self.console.print(f"{title} ...", highlight=False)
            yield StepProgress(self, None, total)
        else:
            with self.progress:
                task = self.progress.add_task(title, total=total)
                self.progress.refresh()
                yield StepProgress(self, task, total)
                self.progress.remove_task(task)
        self.console.print(f"{title}: {total} in {time.monotonic() - started:.1f} s", highlight=False)


class StepProgress:
    """Where a step stands."""

    def __init__(self, steps: Steps, task: TaskID | None, total: int) -> None:
        self.steps, self.task, self.total, self.count = steps, task, total, 0

    def advance(self, text: str) -> None:
        """One item is done."""
        self.count += 1
        if self.task is None:
            self.steps.console.print(
                f"  {self.count}/{self.total} {text}", highlight=False, markup=False, soft_wrap=True
            )
        else:
            self.steps.progress.advance(self.task)
            self.steps.progress.refresh()
