"""Thresholds finer than a joint table can hold, or for more exits, with a lower bound on what any
thresholds at all could cost.

Upwards: the joint table's best point, then joint tables of ever finer windows around the best so
far, then each exit alone at full resolution. Downwards: bound; where little enough of the
space remains, a last joint table settles it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gatecli.calibration.exits.bound import box_bound, oracle_cost
from gatecli.calibration.exits.samples import OperatingPoint, Pick, Samples, cheapest
from gatecli.calibration.exits.table import (
    CELLS,
    Grid,
    candidates,
    frontier,
    root,
    spread,
    table_frontier,
)

WINDOW = 2**17  # combinations in one window of the refinement
ROUNDS = 100  # windows looked at; each halves the step or has found a better point


@dataclass(frozen=True)
class Found:
    """The cheapest point found for an accuracy, and a cost below which no thresholds whatever can
    reach it.
    """

    point: OperatingPoint
    bound: float

    @property
    def gap(self) -> float:
        """By what share of its cost the point could be improved at most."""
        return 1 - self.bound / self.point.cost if self.point.cost else 0.0


def search(samples: Samples, target_top1: float, levels: int | None = None) -> Found | None:
    """The cheapest point found with at least `target_top1` percent, for any number of exits up to
    EXITS; None where none was found.

    Args:
        levels: candidates an exit in the first table; by default as many as it can hold.
    Raises: SettingError as `frontier`.
    """
    pick = partial(cheapest, target_top1=target_top1)
    points = frontier(samples, levels)
    start = pick(points)
    if start is None:
        return None
    found = refine(samples, start, pick)
    bound, region = box_bound(samples, target_top1, found, _price(points[0], found))
    if (
        math.prod(len(values) + 1 for values in region) <= CELLS
    ):  # nothing outside the region is cheaper, and inside it all are looked at
        best = (
            pick([found, *(table_frontier(samples, region) if all(map(len, region)) else [])])
            or found
        )
        return Found(best, best.cost)
    return Found(found, max(bound, oracle_cost(samples, target_top1)))


def refine(samples: Samples, start: OperatingPoint, pick: Pick) -> OperatingPoint:
    """A point that `pick` prefers to `start`, or `start`.

    No better one within a window of neighbouring thresholds, nor by any one exit.
    """
    full = [candidates(column) for column in samples.margins.unbind(1)]
    best = _windows(samples, full, start, pick)
    while (better := _one_by_one(samples, full, best, pick)) != best:
        best = _windows(samples, full, better, pick, stride=1)
    return best


def _windows(
    samples: Samples, full: Grid, best: OperatingPoint, pick: Pick, stride: int | None = None
) -> OperatingPoint:
    """Move by joint tables of evenly spaced neighbours.

    Where none is better, halve the spacing, down to all neighbours.
    """
    reach = max(1, root(WINDOW, samples.exits) // 2 - 1)
    stride = stride or max(1, max(map(len, full)) // (2 * reach))
    for _ in range(ROUNDS):
        better = pick(
            [
                best,
                *table_frontier(
                    samples,
                    [
                        _around(values, t, stride, reach)
                        for values, t in zip(full, best.thresholds, strict=True)
                    ],
                ),
            ]
        )
        if better is None or better == best:
            if stride == 1:
                break
            stride //= 2
        else:
            best = better
    return best


def _around(values: Tensor, threshold: float, stride: int, reach: int) -> Tensor:
    """Up to `reach` of the values on either side of the threshold, `stride` apart."""
    middle = int(torch.searchsorted(values, values.new_tensor(threshold)))
    index = middle + stride * torch.arange(-reach, reach + 1)
    return values[index[(index >= 0) & (index < len(values))]]


def _one_by_one(samples: Samples, full: Grid, best: OperatingPoint, pick: Pick) -> OperatingPoint:
    """One turn over the exits, each at all its thresholds, as far as a table holds them, while the
    others stay.
    """
    for e, values in enumerate(full):
        fixed = [values.new_tensor([t]) for t in best.thresholds]
        within = spread(values, CELLS >> samples.exits)  # all of 50,000 for up to five exits
        best = pick([best, *table_frontier(samples, [*fixed[:e], within, *fixed[e + 1 :]])]) or best
    return best


def _price(cheap: OperatingPoint, dear: OperatingPoint) -> float:
    """What a sample more that is right costs, on average between the two points."""
    return (
        100 * (dear.cost - cheap.cost) / (dear.top1 - cheap.top1) if dear.top1 > cheap.top1 else 0.0
    )
