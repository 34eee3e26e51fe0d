"""Thresholds finer than a joint table can hold, or for more exits, with a lower bound on what any thresholds at all could cost.

Upwards: the joint table's best point, then joint tables of ever finer windows around the best so far, then each exit alone at full
resolution. Downwards, two relaxations: every sample may leave where it likes (solved exactly by sorting); and boxes of thresholds, in
each of which a sample whose margin lies inside an exit's interval may choose.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from gatecli.calibration.exit_table import Grid, candidates, frontier, make_grid, ranks, table_frontier, total
from gatecli.calibration.exits import SLACK, OperatingPoint, Pick, Samples, cheapest

WINDOW = 2**17  # combinations in one window of the refinement
BOXES = 2**16
ROUNDS = 100  # windows looked at; each halves the step or has found a better point
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the average price of a right sample


@dataclass(frozen=True)
class Found:
    """The cheapest point found for an accuracy, and a cost below which no thresholds whatever can reach it."""

    point: OperatingPoint
    bound: float

    @property
    def gap(self) -> float:
        """By what share of its cost the point could be improved at most."""
        return 1 - self.bound / self.point.cost if self.point.cost else 0.0


def search(samples: Samples, target_top1: float, levels: int | None = None) -> Found | None:
    """The cheapest point found with at least `target_top1` percent, for any number of exits up to 21; None where none was found.

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
    return Found(found, max(oracle_cost(samples, target_top1), box_bound(samples, target_top1, _price(points[0], found))))


def refine(samples: Samples, start: OperatingPoint, pick: Pick) -> OperatingPoint:
    """A point that `pick` prefers to `start`, or `start`: no better one within a window of neighbouring thresholds, nor by any one exit."""
    full = [candidates(column) for column in samples.margins.unbind(1)]
    best = _windows(samples, full, start, pick)
    while (better := _one_by_one(samples, full, best, pick)) != best:
        best = _windows(samples, full, better, pick, stride=1)
    return best


def _windows(samples: Samples, full: Grid, best: OperatingPoint, pick: Pick, stride: int | None = None) -> OperatingPoint:
    """Move by joint tables of evenly spaced neighbours; where none is better, halve the spacing, down to all neighbours."""
    reach = max(1, int((WINDOW ** (1 / samples.exits) - 1) / 2))
    stride = stride or max(1, max(map(len, full)) // (2 * reach))
    for _ in range(ROUNDS):
        better = pick([best, *table_frontier(samples, [_around(values, t, stride, reach) for values, t in zip(full, best.thresholds, strict=True)])])
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
    """One turn over the exits, each at all its thresholds while the others stay."""
    for e, values in enumerate(full):
        fixed = [values.new_tensor([t]) for t in best.thresholds]
        best = pick([best, *table_frontier(samples, [*fixed[:e], values, *fixed[e + 1 :]])]) or best
    return best


def oracle_cost(samples: Samples, target_top1: float) -> float:
    """The least mean cost of `target_top1` percent if each sample could leave wherever is best, whatever the margins say; inf beyond reach.

    Every sample costs at least its cheapest way out. Being right costs it so much more, and the samples for which that is least are taken.
    """
    lowest = samples.costs.amin(1)
    right = samples.costs.masked_fill(~samples.correct, math.inf).amin(1)
    extra = (right - lowest).sort().values[: _needed(samples, target_top1)]
    return (lowest.sum() + extra.sum()).item() / len(samples)


def _needed(samples: Samples, target_top1: float) -> int:
    """How many samples must be right."""
    return max(0, math.ceil((target_top1 - SLACK) * len(samples) / 100))


def _price(cheap: OperatingPoint, dear: OperatingPoint) -> float:
    """What a sample more that is right costs, on average between the two points."""
    return 100 * (dear.cost - cheap.cost) / (dear.top1 - cheap.top1) if dear.top1 > cheap.top1 else 0.0


def box_bound(samples: Samples, target_top1: float, price: float, cells: int = BOXES) -> float:
    """A lower bound on the mean cost of any thresholds that reach `target_top1` percent; inf where none does.

    Intervals between neighbouring candidates cut the space of all thresholds into boxes. Within a box a sample that an exit's interval
    separates from neither side may leave there or pass, as suits it best: that bounds its cost, its being right, and the Lagrangian
    cost - price x right for any price. A box counts with the best of its bounds, the whole with its lowest box.

    Args:
        price: the order of magnitude of a right sample's price; multiples of it are tried.
        cells: how many boxes at most.
    """
    grid, needed = make_grid(samples, cells=cells), _needed(samples, target_top1)
    reached = ranks(samples.margins, grid)
    sizes = [len(values) for values in grid]
    reachable = -_relaxed(reached, sizes, -samples.correct.double()) >= needed
    bounds = [_relaxed(reached, sizes, samples.costs - p * samples.correct)[reachable] + p * needed for p in _prices(samples, price)]
    return max(0.0, torch.stack(bounds).amax(0).min().item() / len(samples)) if reachable.any() else math.inf


def _prices(samples: Samples, price: float) -> list[float]:
    """Zero and powers of two about the price: like the costs, they add up without rounding, so that no bound is off."""
    highest = samples.costs.amax().item()
    powers = {2.0 ** round(math.log2(price * factor)) for factor in FACTORS if 0 < highest * 2**-20 <= price * factor <= highest / 2}
    return [0.0, *sorted(powers)]


def _relaxed(reached: Sequence[Tensor], sizes: Sequence[int], values: Tensor) -> Tensor:
    """For each box, the sum of the least of `values`, (N, E + 1), that each sample can get there; of shape sizes - 1.

    Box j of an exit holds the thresholds from its candidate j to j + 1: ranks up to j pass, j + 1 chooses, above leaves. So who leaves at
    exit e at the latest, having had the choice at the exits `free`, is counted by one histogram for every e and every `free`.
    """
    boxes = [size - 1 for size in sizes]
    sums = torch.zeros(boxes, dtype=torch.float64)
    for e in range(len(sizes) + 1):
        sums += total(_relaxed_at(e, reached, sizes, values), boxes)
    return sums


def _relaxed_at(e: int, reached: Sequence[Tensor], sizes: Sequence[int], values: Tensor) -> Iterator[Tensor]:
    """The parts of `_relaxed` of the samples that leave at exit e at the latest, one for each choice of `free`."""
    bins, boxes, exits = [size + 1 for size in sizes[: e + 1]], [size - 1 for size in sizes], len(sizes)
    cell = torch.zeros(len(values), dtype=torch.long)
    for size, rank in zip(bins, reached, strict=False):
        cell = cell * size + rank
    for free in product((False, True), repeat=e):
        options = [*(i for i, chooses in enumerate(free) if chooses), e]
        sums = torch.bincount(cell, values[:, options].amin(1), math.prod(bins)).view(bins)
        for i, chooses in enumerate(free):
            sums = sums.narrow(i, 1, boxes[i]) if chooses else sums.narrow(i, 0, boxes[i]).cumsum(i)
        yield sums.sum(e, keepdim=True) - sums.cumsum(e).narrow(e, 1, boxes[e]) if e < exits else sums
