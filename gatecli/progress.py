"""How long work reports on itself, without knowing who looks.

The command line draws bars, a library call is silent.

A task's `advance` is also where a pending Ctrl-C or SIGTERM takes effect, so that work stops
between batches, never inside one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["Progress", "Task", "silent"]


class Task(Protocol):
    """Work of a known number of batches."""

    def advance(self, **shown: str) -> None:
        """One more batch is done; `shown` are short texts by name, such as loss="0.31"."""


class Progress(Protocol):
    """Is told what is being done, and how far it is."""

    def task(self, label: str, total: int | None) -> AbstractContextManager[Task]:
        """Work of `total` batches begins.

        Inside the context, call the task's `advance` after each.
        """

    def say(self, line: str) -> None:
        """A line for people."""

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked to stop."""


class _Silent:
    stopping = False

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[_Silent]:
        yield self

    def advance(self, **shown: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass


silent: Progress = _Silent()
