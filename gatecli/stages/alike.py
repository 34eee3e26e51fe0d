"""How alike the decisions about images are: within a class and between classes, and in number.

"You Look Twice: GaterNet" (Chen et al. 2019) shows both in pictures, its figures 5 and 4; these are
the numbers behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Counts", "Distances", "counts_of", "distances"]

BINS = 40  # of the counts, at most


@dataclass(frozen=True, kw_only=True)
class Counts:
    """For how many images how many units are on.

    Attributes:
        first: the number of units with which the first bin begins.
        width: how many numbers of units a bin spans.
        images: how many images there are in each bin.
    """

    first: int
    width: int
    images: list[int]


@dataclass(frozen=True, kw_only=True)
class Distances:
    """How many units, on average, decide differently about two images: the Hamming distance.

    None where there is no such pair of images, or where a unit decides many times in an image, so
    that what is seen of it is a mean.

    Attributes:
        within: of two images of one class.
        between: of images of two classes.
    """

    within: float | None
    between: float | None


def counts_of(on: Tensor) -> Counts:
    """The counts of how many units are on for each image, (N,)."""
    first = math.floor(on.min().item())
    width = math.ceil((math.floor(on.max().item()) - first + 1) / BINS)
    place = (on.floor().long() - first) // width
    return Counts(first=first, width=width, images=place.bincount().tolist())


def distances(vectors: Tensor, labels: Tensor) -> Distances:
    """The mean distances over all pairs of images.

    A unit that is on for a of n images tells a (n - a) pairs apart, so no pair is looked at.

    Args:
        vectors: decisions (N, units).
        labels: (N,).
    """
    if bool(((vectors != 0) & (vectors != 1)).any()):
        return Distances(within=None, between=None)
    classes = list(_by_class(vectors, labels))
    same = sum(_pairs(len(each)) for each in classes)
    apart = sum(map(_told_apart, classes))
    others = _pairs(len(vectors)) - same
    return Distances(
        within=apart / same if same else None,
        between=(_told_apart(vectors) - apart) / others if others else None,
    )


def _by_class(vectors: Tensor, labels: Tensor) -> Iterator[Tensor]:
    for label in set(labels.tolist()):
        yield vectors[labels == label]


def _pairs(count: int) -> int:
    return count * (count - 1) // 2


def _told_apart(vectors: Tensor) -> float:
    """The sum of the distances between all pairs of vectors (n, units)."""
    on = vectors.sum(0, dtype=torch.float64)
    return (on * (len(vectors) - on)).sum().item()
