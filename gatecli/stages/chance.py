"""A network that does no better on labelled images than guessing: said, with the likely causes."""

from __future__ import annotations

import math

from gatecli.data import DataSet

__all__ = ["at_chance", "chance_notes"]

DEVIATIONS = 3.0
CAUSES = (
    "are --mean, --std and --input-size those of its training, are the classes in its order, and is"
    " it this network (gatecli inspect says what was assumed)?"
)


def at_chance(top1: float, samples: int, classes: int) -> bool:
    """Whether an accuracy is within the noise of guessing.

    Args:
        top1: percent.
        samples: images that it was measured on.
        classes: how many classes they are of.

    Returns:
        Whether it is below chance and three standard deviations more; never of fewer than 2
        classes, or of so few images that a faultless network could be below.
    """
    if classes < 2 or samples < 1:
        return False
    chance = 1 / classes
    bound = chance + DEVIATIONS * math.sqrt(chance * (1 - chance) / samples)
    return bound < 1 and top1 / 100 < bound


def chance_notes(top1: float, data: DataSet, split: str) -> list[str]:
    """What to say of an accuracy on a split; nothing where it is better than guessing.

    Args:
        top1: percent.
        data: has the split.
        split: its name.
    """
    samples, classes = len(data.splits[split]), len(data.classes)
    if not at_chance(top1, samples, classes):
        return []
    return [
        f"top-1 {top1:.2f} % on {samples} images of {classes} classes is no better than guessing:"
        f" {CAUSES}"
    ]
