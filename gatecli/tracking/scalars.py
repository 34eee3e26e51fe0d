"""A line of a run's log as numbers with names, alike for all trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SCALARS", "scalars"]

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


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line: those of SCALARS, and `rate/SITE` for each site."""
    found = {tag: row[name] for name, tag in SCALARS.items() if row.get(name) is not None}
    found.update({f"rate/{site}": rate for site, rate in row.get("rates", {}).items()})
    return found
