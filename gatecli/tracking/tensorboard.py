"""tensorboard:DIR, files that TensorBoard reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gatecli.checkpoint.atomic import check_name
from gatecli.tracking.base import Service, Told, Tracker, needs, register

__all__ = ["Board"]


class Board(Tracker):
    """Writes into a folder."""

    def __init__(self, folder: str) -> None:
        self._writers = needs("tensorboard", "torch.utils.tensorboard", "report")
        self.folder = Path(folder)
        check_name(self.folder)
        self._writer: Any = None

    def begin(self, told: Told) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        return str(self.folder)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            # what a run that was cut off had logged from here on comes again: drop it
            self._writer = self._writers.SummaryWriter(str(self.folder), purge_step=step)
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self, *, finished: bool) -> None:
        if self._writer is not None:
            self._writer.close()


def _itself(where: str) -> str | None:
    return where


register(Service(name="tensorboard", operand="DIR", required=True, track=Board, folder=_itself))
