"""What a checkpoint keeps of a training's course: a few numbers an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["EPOCHS", "curves"]

EPOCHS = 200  # that a checkpoint keeps, at most
KEPT = ("epoch", "train_loss", "val_top1", "achieved_rate", "target_rate", "exits")


def curves(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The figures of single epochs, evenly spread where there are many, the last among them.

    Args:
        history: A row an epoch, as `finetune` reports it.

    Returns:
        What `KEPT` names of each row, where it has it.
    """
    last = len(history) - 1
    count = min(EPOCHS, len(history))
    places = sorted({round(index * last / max(1, count - 1)) for index in range(count)})
    return [_kept(history[place]) for place in places]


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in KEPT if row.get(name) is not None}
