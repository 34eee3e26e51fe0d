"""A run's log as TensorBoard reads it: scalars over the steps.

Needs the extra `report`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gatecli.errors import SettingError
from gatecli.training.run import Run

__all__ = ["SCALARS", "Board", "on_board"]

# of a logged step, and of an epoch
SCALARS = {
    "loss": "train/loss",
    "rate": "train/rate",
    "lr": "train/lr",
    "val_top1": "val/top1",
    "achieved_rate": "val/rate",
    "target_rate": "val/target_rate",
    "macs_expected": "val/macs",
}


class Board:
    """Writes each line of a run's log as scalars into a folder."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`, which is made when the first line comes.

        Raises:
            SettingError: TensorBoard is not installed.
        """
        try:
            self._writers = import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise SettingError(
                f"--tensorboard needs TensorBoard, which is not installed ({error}): pip install"
                " 'gatecli[report]'"
            ) from error
        self.folder = folder
        self._writer: Any = None

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Write one line of the log."""
        step = row["step"]
        if self._writer is None:
            # what a run that was cut off had logged from here on comes again: drop it
            self._writer = self._writers.SummaryWriter(str(self.folder), purge_step=step)
        scalars = {tag: row[name] for name, tag in SCALARS.items() if row.get(name) is not None}
        scalars.update({f"rate/{site}": rate for site, rate in row.get("rates", {}).items()})
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def on_board(run: Run, board: Board | None) -> Iterator[None]:
    """Show on `board`, if any, what `run` logs inside the block.

    Raises:
        OSError: The board's folder cannot be made; at once.
    """
    if board is None:
        yield
        return
    board.folder.mkdir(parents=True, exist_ok=True)
    run.listeners.append(board)
    try:
        yield
    finally:
        run.listeners.remove(board)
        board.close()
