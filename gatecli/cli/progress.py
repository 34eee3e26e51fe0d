"""Progress for people.

A bar with rate and time left on a terminal, a line every few seconds elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gatecli.cli import several
from gatecli.cli.session import Session
from gatecli.cli.text import printable
from gatecli.errors import Interrupted

__all__ = ["Reporter"]

LINE_EVERY = 5.0  # seconds


class Reporter:
    """The command line's `gatecli.progress.Progress`."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked to stop."""
        return self.session.stopping

    def say(self, line: str) -> None:
        """Print a line for people."""
        self.session.say(line)

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Any]:
        """Begin work of `total` batches; the task yielded counts them."""
        with self.session.working():
            if self.session.quiet:
                yield _Counter(self.session)
            elif sys.stderr.isatty():
                with _bar() as bar:
                    task = bar.add_task(printable(label), total=total, shown="")
                    yield _Bar(self.session, bar, task)
            else:
                yield _Lines(self.session, label, total)


class _Counter:
    """A task that shows nothing."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def advance(self, **shown: str) -> None:
        """Count one more batch; raises Interrupted where somebody has asked to stop."""
        self.show(shown)
        # several processes agree among themselves where to stop
        if self.session.stopping and not several.started() > 1:
            raise Interrupted("interrupted; nothing was written")

    def show(self, shown: dict[str, str]) -> None:
        """Show that a batch is done, and short texts by name."""


class _Lines(_Counter):
    """A task that prints a line every few seconds."""

    def __init__(self, session: Session, label: str, total: int | None) -> None:
        super().__init__(session)
        self.label = label
        self.total = total
        self.done = 0
        self.start = time.monotonic()
        self.last = self.start

    def show(self, shown: dict[str, str]) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last < LINE_EVERY:
            return
        self.last = now
        rate = self.done / (now - self.start)
        left = ""
        if self.total:
            left = f" of {self.total}, {(self.total - self.done) / rate:.0f} s left"
        self.session.say(f"{self.label}: {self.done}{left}, {rate:.1f}/s  {_spell(shown)}".rstrip())


class _Bar(_Counter):
    """A task that moves a bar of rich's."""

    def __init__(self, session: Session, bar: Any, task: Any) -> None:
        super().__init__(session)
        self.bar = bar
        self.task = task

    def show(self, shown: dict[str, str]) -> None:
        self.bar.update(self.task, advance=1, shown=_spell(shown))


def _spell(shown: dict[str, str]) -> str:
    return printable("  ".join(f"{name} {text}" for name, text in shown.items()))


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
