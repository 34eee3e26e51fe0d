"""Thresholds finer than a joint table can hold, or for more exits.

With a lower bound on what any thresholds at all could cost.

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

__all__ = ["Found", "refine", "search"]

WINDOW = 2**17  # combinations in one window of the refinement
ROUNDS = 100  # windows looked at; each halves the step or has found a better point


@dataclass(frozen=True)
class Found:
    """The cheapest point found for an accuracy.

    Attributes:
        point: It.
        bound: A cost below which no thresholds whatever can reach the accuracy.
    """

    point: OperatingPoint
    bound: float

    @property
    def gap(self) -> float:
        """By what share of its cost the point could be improved at most."""
        return 1 - self.bound / self.point.cost if self.point.cost else 0.0


def search(samples: Samples, target_top1: float, levels: int | None = None) -> Found | None:
    """The cheapest point found with at least `target_top1` percent; None where none was found.

    Args:
        samples: With at most EXITS exits.
        target_top1: Percent.
        levels: Candidates an exit in the first table; by default as many as it can hold.

    Raises:
        SettingError: As `frontier`.
    """
    pick = partial(cheapest, target_top1=target_top1)
    points = frontier(samples, levels)
    start = pick(points)
    if start is None:
        return None
    found = refine(samples, start, pick)
    bound, region = box_bound(samples, target_top1, found, _price(points[0], found))
    if math.prod(len(values) + 1 for values in region) > CELLS:
        return Found(point=found, bound=max(bound, oracle_cost(samples, target_top1)))
    # nothing outside the region is cheaper, and inside it all are looked at
    inside = table_frontier(samples, region) if all(map(len, region)) else []
    best = pick([found, *inside]) or found
    return Found(point=best, bound=best.cost)


def refine(samples: Samples, start: OperatingPoint, pick: Pick) -> OperatingPoint:
    """A point that `pick` prefers to `start`, or `start`.

    There is no better one within a window of neighbouring thresholds, nor by any one exit.
    """
    full = [candidates(column) for column in samples.margins.unbind(1)]
    best = _windows(samples, full, start, pick)
    while True:
        better = _one_by_one(samples, full, best, pick)
        if better == best:
            return best
        best = _windows(samples, full, better, pick, stride=1)


def _windows(
    samples: Samples, full: Grid, best: OperatingPoint, pick: Pick, stride: int | None = None
) -> OperatingPoint:
    """Move by joint tables of evenly spaced neighbours.

    Where none is better, halve the spacing, down to all neighbours.
    """
    reach = max(1, root(WINDOW, samples.exits) // 2 - 1)
    stride = stride or max(1, max(map(len, full)) // (2 * reach))
    for _ in range(ROUNDS):
        at = zip(full, best.thresholds, strict=True)
        window = [_around(values, threshold, stride, reach) for values, threshold in at]
        better = pick([best, *table_frontier(samples, window)])
        if better is not None and better != best:
            best = better
        elif stride > 1:
            stride //= 2
        else:
            break
    return best


def _around(values: Tensor, threshold: float, stride: int, reach: int) -> Tensor:
    """Up to `reach` of the values on either side of the threshold, `stride` apart."""
    middle = int(torch.searchsorted(values, values.new_tensor(threshold)))
    index = middle + stride * torch.arange(-reach, reach + 1)
    return values[index[(index >= 0) & (index < len(values))]]


def _one_by_one(samples: Samples, full: Grid, best: OperatingPoint, pick: Pick) -> OperatingPoint:
    """One turn over the exits, each at all its thresholds while the others stay.

    At fewer where a table does not hold them all.
    """
    for e, values in enumerate(full):
        grid = [values.new_tensor([threshold]) for threshold in best.thresholds]
        grid[e] = spread(values, CELLS >> samples.exits)  # all of 50,000 for up to five exits
        best = pick([best, *table_frontier(samples, grid)]) or best
    return best


def _price(cheap: OperatingPoint, dear: OperatingPoint) -> float:
    """What a sample more that is right costs, on average between the two points."""
    if dear.top1 <= cheap.top1:
        return 0.0
    return 100 * (dear.cost - cheap.cost) / (dear.top1 - cheap.top1)
