"""Which exported files `gatecli run` can open. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gatecli.exporting.registry import registered
from gatecli.exporting.split.names import SUFFIX

if TYPE_CHECKING:
    from gatecli.exporting.runner import Runner

__all__ = ["opener"]


def opener(file: str) -> Callable[[Path], Runner] | None:
    """What makes a file of that name ready for `gatecli run`; None: it is no exported file."""
    if file.endswith(SUFFIX):
        return _open_split
    for format in registered():
        if format.open is not None and file.endswith(format.suffix):
            return format.open
    return None


def _open_split(path: Path) -> Runner:
    from gatecli.exporting.split.run import open_split

    return open_split(path)
