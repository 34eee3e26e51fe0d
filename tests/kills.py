"""Kills in the midst of a row of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gatecli import checkpoint
from gatecli.cli.road import Road
from gatecli.training import Run
from gatecli.training.loop import Loop

__all__ = ["Crash", "watch"]

EVENTS = ((Loop, "_step"), (Run, "save"), (checkpoint, "write"), (Road, "_save"))


class Crash(BaseException):
    """What no handler catches, as a kill."""


def watch(patch: pytest.MonkeyPatch, told: Callable[[], None]) -> None:
    """Be told whenever a step is made, or something written."""
    for owner, name in EVENTS:
        original = getattr(owner, name)

        def wrapped(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            told()
            return result

        patch.setattr(owner, name, wrapped)
