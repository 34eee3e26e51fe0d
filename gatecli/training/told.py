"""Words and numbers of what a training says of its steps and epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gatecli.training.goals import Row

__all__ = ["asked", "in_ms", "mean_rate", "of_epoch", "of_suited"]


def in_ms(row: Row) -> str:
    """An epoch's milliseconds, where these are looked at."""
    return f", {row['ms_expected']:.4g} ms" if "ms_expected" in row else ""


def asked(rate: float | None) -> str:
    """What stands behind a rate achieved: the rate asked for, if any."""
    return "" if rate is None else f" (asked {rate:.2f})"


def of_epoch(row: Row, epochs: int, of: str) -> str:
    """An epoch's line; `of`: what its rate is a share of, in words."""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.3f}, val top-1"
        f" {row['val_top1']:.2f}, rate {row['achieved_rate']:.3f}{asked(row['target_rate'])}{of},"
        f" {row['macs_expected'] / 1e9:.4g} GMACs{in_ms(row)}"
    )


def of_suited(suited: Mapping[str, Mapping[str, float]], steps: int) -> Iterator[str]:
    """A line for each method whose settings follow from the training's length, in steps."""
    for name, found in suited.items():
        values = " ".join(f"{setting}={value:g}" for setting, value in found.items())
        yield (
            f"a short run, {steps} steps: {name} is trained with {values}, as nobody has set them"
            " (gatecli methods says more)"
        )


def mean_rate(decisions: Mapping[str, Tensor]) -> float:
    """The mean over all gates and images, or over all gates where there is a row of means.

    1 where nothing is decided.
    """
    if not decisions:
        return 1.0
    return torch.cat([z.mean(0) for z in decisions.values()]).mean().item()
