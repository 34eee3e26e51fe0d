"""How the learning rate and the target rate change over the epochs. Numbers in, a number out."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = [
    "LEARNING_RATES",
    "annealed_target",
    "learning_rate",
    "warmed",
]

LEARNING_RATES = ("step", "cosine", "constant")
MILESTONES = (0.3, 0.6, 0.9)  # of all epochs: the papers' 30, 60, 90 of 100


def learning_rate(
    schedule: str, base: float, progress: float, milestones: Sequence[float] = MILESTONES
) -> float:
    """The learning rate at a point of the training.

    Args:
        schedule: `step`: x0.1 at each milestone; `cosine`: half a cosine down to zero;
            `constant`: `base`.
        base: At the start.
        progress: The share of the training that is done, in [0, 1).
        milestones: Of `step`, as shares of the training.

    Reference: Herrmann et al. 2018, section 4.1.1, for `step`.
    """
    if schedule == "step":
        return base * 0.1 ** sum(progress >= milestone for milestone in milestones)
    if schedule == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * progress))
    return base


def warmed(rate: float, step: int, steps: float) -> float:
    """A learning rate in the training's step number `step` (from 0), warmed up.

    It rises in a line over the first `steps` steps, and is not touched from then on.

    Reference: Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2.
    """
    return rate if step + 1 >= steps else rate * (step + 1) / steps


def annealed_target(target: float, epoch: int, start: float, step: float, every: int) -> float:
    """The target rate in `epoch` (from 0).

    From `start` down by `step` every `every` epochs, never below `target`; step 0: no annealing.

    Reference: Herrmann et al. 2018, S2.1 (typical: step .05, every 5 epochs).
    """
    if step == 0:
        return target
    return max(target, start - step * (epoch // every))
