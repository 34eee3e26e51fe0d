"""finetune --track: who shows the run while it trains."""

from __future__ import annotations

import typing
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli import tracking
from gatecli.cli.begun import Begun
from gatecli.cli.session import Session

if TYPE_CHECKING:
    from gatecli.training import Run
    from gatecli.training.trackers import Shown

__all__ = ["Track", "opened_trackers", "shown"]

Track = Annotated[
    typing.Optional[list[str]],
    typer.Option(
        "--track",
        help=f"Where to show the run, beside its own log; repeatable: {tracking.listed()}.",
    ),
]


def opened_trackers(begun: Begun, track: list[str] | None, tensorboard: Path | None) -> list[Shown]:
    """The trackers of a run; what is missing or misspelt shows before any work.

    Args:
        begun: the run, whose own are taken where none are named.
        track: what --track says this time.
        tensorboard: the same of --tensorboard.

    Raises:
        SettingError: one is unknown, or its package is missing.
    """
    from gatecli.training.trackers import opened

    board = tensorboard or begun.tensorboard
    specs = [*(track or begun.track), *([] if board is None else [f"tensorboard:{board}"])]
    return opened(specs)


def shown(
    session: Session, run: Run, begun: Begun, found: list[Shown], *, resumed: bool
) -> AbstractContextManager[None]:
    """Show what the run logs inside the block.

    Args:
        session: the command's.
        run: its log is listened to.
        begun: what the run was begun with.
        found: the trackers.
        resumed: whether the run has been begun before.
    """
    from gatecli.training import trackers

    told = tracking.Told(name=run.folder.name, config=_config(begun))
    return trackers.shown(run, found, told, session.say, resumed=resumed)


def _config(begun: Begun) -> dict[str, Any]:
    """How a run was begun, as plain values by name."""
    names = ("checkpoint", "sha256", "out", "data", "teacher", "threads", "device")
    said = asdict(begun)
    settings = {f"set.{name}": value for name, value in begun.settings.items()}
    return {**{name: said[name] for name in names}, **begun.options, **settings}
