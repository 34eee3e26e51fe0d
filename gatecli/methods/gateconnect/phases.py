"""The four phases of a training: joint, then at the rate, a tenth and a hundredth of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gatecli.errors import SettingError
from gatecli.methods.values import ValueType

__all__ = ["PHASES", "Phases", "check_phases", "has_chosen", "joint_share", "phase_rate"]

Phases = str | tuple[float, ...]  # the paper's by name, or four lengths: epochs or shares

PAPERS: dict[str, tuple[float, ...]] = {
    "cifar": (120, 100, 50, 50),
    "imagenet": (30, 30, 30, 30),
}  # epochs, which scale with those that there are
NEAR = 1e-9  # shares of the training that differ less are the same


def _read(given: Any) -> Phases:
    if isinstance(given, str) and given in PAPERS:
        return str(given)
    parts = given.split(",") if isinstance(given, str) else given
    if not isinstance(parts, (list, tuple)) or any(isinstance(part, bool) for part in parts):
        raise TypeError(given)
    lengths = tuple(float(part) for part in parts)
    if len(lengths) != 4 or not (_are_epochs(lengths) or _are_shares(lengths)):
        raise ValueError(given)
    return lengths


def _are_epochs(lengths: Sequence[float]) -> bool:
    are_whole = all(length >= 0 and length.is_integer() for length in lengths)
    return are_whole and sum(lengths) > 0


def _are_shares(lengths: Sequence[float]) -> bool:
    return min(lengths) >= 0 and math.isclose(sum(lengths), 1, abs_tol=1e-6)


PHASES = ValueType(
    expected="cifar, imagenet, or four lengths: whole epochs, as 48,40,20,20, or shares of the"
    " training that add up to 1",
    read=_read,
    words="cifar|imagenet|n,n,n,n",
)


def check_phases(phases: Phases, epochs: int) -> None:
    """Check that told phases fit a training of so many epochs. Raises SettingError."""
    lengths = _lengths(phases)
    if isinstance(phases, str) or _are_shares(lengths) or sum(lengths) == epochs:
        return
    told = ",".join(f"{length:g}" for length in lengths)
    raise SettingError(
        f"expected setting `phases` to add up to the {epochs} epochs, but got {told}, which are"
        f" {sum(lengths):g}: say --epochs {sum(lengths):g}, or shares that add up to 1"
    )


def joint_share(phases: Phases) -> float:
    """The share of the training in which connections are learned."""
    lengths = _lengths(phases)
    return lengths[0] / sum(lengths)


def has_chosen(phases: Phases, done: float) -> bool:
    """Whether the joint phase is over once the share `done` of the training is."""
    return done >= joint_share(phases) - NEAR


def phase_rate(phases: Phases, base: float, done: float) -> float:
    """The learning rate for its `base` once the share `done` of the training is over."""
    joint, same, tenth, hundredth = _lengths(phases)
    at = done * (joint + same + tenth + hundredth)
    return base * (1.0 if at < joint + same else 0.1 if at < joint + same + tenth else 0.01)


def _lengths(phases: Phases) -> tuple[float, ...]:
    return PAPERS[phases] if isinstance(phases, str) else phases
