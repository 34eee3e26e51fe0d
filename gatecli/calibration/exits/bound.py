"""What thresholds of early exits must cost at least to reach an accuracy, and which regions of
thresholds need no look.

Two relaxations. The oracle's: every sample may leave where it likes, solved exactly by sorting. And
boxes: intervals between neighbouring candidates cut the space of all thresholds into boxes, in each
of which a sample whose margin lies inside an exit's interval may leave there or pass, as suits it
best. That bounds its cost, its being right, and the Lagrangian cost - price x right for any price;
a box counts with the highest of its bounds. Boxes above a point that is known need no look, and the
rest are cut finer.

Time grows with histograms x cells, 2^(exits + 1) of (boxes + 2)^exits; beyond BOXED exits only the
oracle is left.
Memory: about ten tensors of 8 bytes a cell, less than the joint table's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from gatecli.calibration.exits.samples import SLACK, OperatingPoint, Samples
from gatecli.calibration.exits.table import Grid, candidates, ranks, root, spread, total

BOXES = 2**16
BOXED = 6  # exits; each more doubles the passes over the samples, for ever coarser boxes
CUTS = 20  # times at most that the remaining region is cut finer
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the average price of a right sample


def oracle_cost(samples: Samples, target_top1: float) -> float:
    """The least mean cost of `target_top1` percent if each sample could leave wherever is best,
    whatever the margins say; inf beyond reach.

    Every sample costs at least its cheapest way out. Being right costs it so much more, and the
    samples for which that is least are taken.
    """
    lowest = samples.costs.amin(1)
    right = samples.costs.masked_fill(~samples.correct, math.inf).amin(1)
    extra = (right - lowest).sort().values[: _needed(samples, target_top1)]
    return (lowest.sum() + extra.sum()).item() / len(samples)


def _needed(samples: Samples, target_top1: float) -> int:
    """How many samples must be right."""
    return max(0, math.ceil((target_top1 - SLACK) * len(samples) / 100))


def box_bound(
    samples: Samples, target_top1: float, known: OperatingPoint, price: float, boxes: int = BOXES
) -> tuple[float, list[Tensor]]:
    """A lower bound on the mean cost of any thresholds that reach `target_top1` percent, and the
    region that may hold ones cheaper than `known`.

    Args:
        known: a point that reaches the target; the bound is at most its cost.
        price: the order of magnitude of what a right sample more costs; multiples of it are tried.
        boxes: about how many at a time.
    Returns: the bound, 0 for more than BOXED exits; each exit's candidate thresholds in the region,
    none for all
        where `known` is proven best.
    """
    region, bound = [candidates(column) for column in samples.margins.unbind(1)], 0.0
    cuts = root(boxes, samples.exits)
    for _ in range(CUTS if samples.exits <= BOXED else 0):
        grid = [spread(values, cuts + 1) for values in region]
        lows = _box_costs(samples, grid, target_top1, price)
        bound = max(bound, min(known.cost, lows.min().item()))
        before, region = math.prod(map(len, region)), _remaining(region, grid, lows < known.cost)
        size = math.prod(map(len, region))
        if (
            size <= boxes or size > 0.8 * before
        ):  # small enough to look at all of it, or no progress
            break
    return bound, region


def _remaining(region: Grid, grid: Grid, alive: Tensor) -> list[Tensor]:
    """Each exit's candidates from the first to the last box that is alive; none where no box is."""
    remaining = []
    for e, (values, edges) in enumerate(zip(region, grid, strict=True)):
        boxes = alive.movedim(e, 0).reshape(alive.shape[e], -1).any(1).nonzero().flatten().tolist()
        remaining.append(
            values[(values >= edges[boxes[0]]) & (values <= edges[boxes[-1] + 1])]
            if boxes
            else values[:0]
        )
    return remaining


def _box_costs(samples: Samples, grid: Grid, target_top1: float, price: float) -> Tensor:
    """A lower bound on the mean cost in each box, of shape sizes - 1.

    Inf where the target is out of reach.
    """
    reached, sizes, needed = (
        ranks(samples.margins, grid),
        [len(values) for values in grid],
        _needed(samples, target_top1),
    )
    lows = torch.full([size - 1 for size in sizes], -math.inf, dtype=torch.float64)
    for p in _prices(samples, price):
        lows = torch.maximum(
            lows, _relaxed(reached, sizes, samples.costs - p * samples.correct) + p * needed
        )
    reachable = -_relaxed(reached, sizes, -samples.correct.double()) >= needed
    return (lows / len(samples)).masked_fill(~reachable, math.inf)


def _prices(samples: Samples, price: float) -> list[float]:
    """Zero and powers of two about the price.

    Like the costs, they add up without rounding, so that no bound is off.
    """
    highest = samples.costs.amax().item()
    powers = {
        2.0 ** round(math.log2(price * factor))
        for factor in FACTORS
        if 0 < highest * 2**-20 <= price * factor <= highest / 2
    }
    return [0.0, *sorted(powers)]


def _relaxed(reached: Sequence[Tensor], sizes: Sequence[int], values: Tensor) -> Tensor:
    """For each box, the sum of the least of `values`, (N, E + 1), that each sample can get there.

    Of shape sizes - 1.

    Box j of an exit holds the thresholds from its candidate j to j + 1: ranks up to j pass, j + 1
    chooses, above leaves. So who leaves at exit e at the latest, having had the choice at the exits
    `free`, is counted by one histogram for every e and every `free`.
    """
    boxes = [size - 1 for size in sizes]
    sums = torch.zeros(boxes, dtype=torch.float64)
    for e in range(len(sizes) + 1):
        sums += total(_relaxed_at(e, reached, sizes, values), boxes)
    return sums


def _relaxed_at(
    e: int, reached: Sequence[Tensor], sizes: Sequence[int], values: Tensor
) -> Iterator[Tensor]:
    """The parts of `_relaxed` of the samples that leave at exit e at the latest, one for each
    choice of `free`.
    """
    bins, boxes, exits = (
        [size + 1 for size in sizes[: e + 1]],
        [size - 1 for size in sizes],
        len(sizes),
    )
    cell = torch.zeros(len(values), dtype=torch.long)
    for size, rank in zip(bins, reached, strict=False):
        cell = cell * size + rank
    for free in product((False, True), repeat=e):
        options = [*(i for i, chooses in enumerate(free) if chooses), e]
        sums = torch.bincount(cell, values[:, options].amin(1), math.prod(bins)).view(bins)
        for i, chooses in enumerate(free):
            sums = sums.narrow(i, 1, boxes[i]) if chooses else sums.narrow(i, 0, boxes[i]).cumsum(i)
        yield (
            sums.sum(e, keepdim=True) - sums.cumsum(e).narrow(e, 1, boxes[e]) if e < exits else sums
        )
