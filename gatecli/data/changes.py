"""Random changes of single images, once they are cut out: RandAugment, and random erasing.

The operations are torchvision's, on uint8 images, so erased rectangles are filled with the mean
colour, which is nearly zero once normalised. What an image meets is a function of the seed, the
epoch and its row in the split: not of its batch, nor of how many processes read.

References: Cubuk et al. 2020, "RandAugment"; Zhong et al. 2020, "Random erasing".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gatecli.data.augment import CHANGES, generator, lent
from gatecli.traced.recipe import InputSpec

if TYPE_CHECKING:
    from gatecli.data.walk import Plan

__all__ = ["RANDAUGMENT", "UNCHANGED", "Changes", "changed"]

RANDAUGMENT = "randaugment"  # what --augment calls it: the data's own augmentation comes before it


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Which changes.

    Attributes:
        randaugment: Whether two operations are drawn for each image, at torchvision's strength.
        erase: The chance of an image that a rectangle of it is erased.
    """

    randaugment: bool = False
    erase: float = 0.0


UNCHANGED = Changes()


def changed(images: Tensor, rows: Tensor, plan: Plan) -> Tensor:
    """Images as they are after the changes of a walk.

    Args:
        images: uint8 (n, C, H, W).
        rows: theirs in the split, int64 (n,).
        plan: what the walk is.
    """
    operations = _operations(plan.changes, _colour(plan.input, images.shape[1]))
    if not operations:
        return images
    done = []
    for image, row in zip(images, rows.tolist(), strict=True):
        with lent(generator(CHANGES, plan.seed, plan.epoch, row)):
            for operation in operations:
                image = operation(image)
        done.append(image)
    return torch.stack(done)


def _colour(input: InputSpec, channels: int) -> tuple[float, ...]:
    """The mean colour of images with so many channels, 0 to 255."""
    mean = input.mean or (0.0,)
    if len(mean) != channels:
        mean = (sum(mean) / len(mean),) * channels
    return tuple(float(round(255 * value)) for value in mean)


@functools.lru_cache(maxsize=8)
def _operations(
    changes: Changes, colour: tuple[float, ...]
) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Operations of torchvision's for the changes."""
    from torchvision.transforms import InterpolationMode, v2

    found: list[Callable[[Tensor], Tensor]] = []
    if changes.randaugment:
        found.append(v2.RandAugment(interpolation=InterpolationMode.BILINEAR))
    if changes.erase:
        found.append(v2.RandomErasing(changes.erase, value=list(colour)))
    return tuple(found)
