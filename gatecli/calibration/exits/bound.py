"""What thresholds of early exits must cost at least to reach an accuracy.

And so which regions of thresholds need no look. Two relaxations. The oracle's: every sample may
leave where it likes, solved exactly by sorting. And boxes: intervals between neighbouring
candidates cut the space of all thresholds into boxes, in each of which a sample whose margin lies
inside an exit's interval may leave there or pass, as suits it best. That bounds its cost, its being
right, and the Lagrangian cost - price x right for any price; a box counts with the highest of its
bounds. Boxes above a point that is known need no look, and the rest are cut finer.

Time grows with histograms x cells, 2^(exits + 1) of (boxes + 2)^exits; beyond BOXED exits only the
oracle is left. Memory: about ten tensors of 8 bytes a cell, less than the joint table's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from gatecli.calibration.exits.samples import SLACK, OperatingPoint, Samples
from gatecli.calibration.exits.table import Grid, candidates, ranks, root, spread, total

__all__ = ["box_bound", "oracle_cost"]

BOXES = 2**16
BOXED = 6  # exits; each more doubles the passes over the samples, for ever coarser boxes
CUTS = 20  # times at most that the remaining region is cut finer
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the average price of a right sample


def oracle_cost(samples: Samples, target_top1: float) -> float:
    """The least mean cost of `target_top1` percent if each sample could leave wherever is best.

    Whatever the margins say; inf beyond reach. Every sample costs at least its cheapest way out.
    Being right costs it so much more, and the samples for which that is least are taken.
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
    """A lower bound on the mean cost of any thresholds that reach `target_top1` percent.

    Args:
        samples: What the thresholds are for.
        target_top1: Percent.
        known: A point that reaches the target; the bound is at most its cost.
        price: The order of magnitude of what a right sample more costs; multiples of it are tried.
        boxes: About how many at a time.

    Returns:
        The bound, 0 for more than BOXED exits, and the region that may hold thresholds cheaper than
        `known`: each exit's candidates in it, none for all where `known` is proven best.
    """
    region = [candidates(column) for column in samples.margins.unbind(1)]
    bound = 0.0
    if samples.exits > BOXED:
        return bound, region
    cuts = root(boxes, samples.exits)
    for _ in range(CUTS):
        grid = [spread(values, cuts + 1) for values in region]
        lows = _box_costs(samples, grid, target_top1, price)
        bound = max(bound, min(known.cost, lows.min().item()))
        before = math.prod(map(len, region))
        region = _remaining(region, grid, lows < known.cost)
        size = math.prod(map(len, region))
        no_progress = size > 0.8 * before
        if size <= boxes or no_progress:
            break
    return bound, region


def _remaining(region: Grid, grid: Grid, alive: Tensor) -> list[Tensor]:
    """Each exit's candidates from the first to the last box that is alive; none where no box is."""
    remaining = []
    for e, (values, edges) in enumerate(zip(region, grid, strict=True)):
        alive_here = alive.movedim(e, 0).reshape(alive.shape[e], -1).any(1)
        boxes = alive_here.nonzero().flatten().tolist()
        if not boxes:
            remaining.append(values[:0])
            continue
        low = edges[boxes[0]]
        high = edges[boxes[-1] + 1]
        remaining.append(values[(values >= low) & (values <= high)])
    return remaining


def _box_costs(samples: Samples, grid: Grid, target_top1: float, price: float) -> Tensor:
    """A lower bound on the mean cost in each box, of shape sizes - 1.

    Inf where the target is out of reach.
    """
    reached = ranks(samples.margins, grid)
    sizes = [len(values) for values in grid]
    needed = _needed(samples, target_top1)
    lows = torch.full([size - 1 for size in sizes], -math.inf, dtype=torch.float64)
    for p in _prices(samples, price):
        least = _relaxed(reached, sizes, samples.costs - p * samples.correct)
        lows = torch.maximum(lows, least + p * needed)
    reachable = -_relaxed(reached, sizes, -samples.correct.double()) >= needed
    return (lows / len(samples)).masked_fill(~reachable, math.inf)


def _prices(samples: Samples, price: float) -> list[float]:
    """Zero and powers of two about the price.

    Like the costs, they add up without rounding, so that no bound is off.
    """
    highest = samples.costs.amax().item()
    prices = [price * factor for factor in FACTORS]
    worth = [p for p in prices if 0 < highest * 2**-20 <= p <= highest / 2]
    powers = {2.0 ** round(math.log2(p)) for p in worth}
    return [0.0, *sorted(powers)]


def _relaxed(reached: Sequence[Tensor], sizes: Sequence[int], values: Tensor) -> Tensor:
    """For each box, the sum of the least of `values`, (N, E + 1), that each sample can get there.

    Box j of an exit holds the thresholds from its candidate j to j + 1: ranks up to j pass, j + 1
    chooses, above leaves. So who leaves at exit e at the latest, having had the choice at the exits
    `free`, is counted by one histogram for every e and every `free`.

    Returns:
        Of shape sizes - 1.
    """
    boxes = [size - 1 for size in sizes]
    sums = torch.zeros(boxes, dtype=torch.float64)
    for e in range(len(sizes) + 1):
        sums += total(_relaxed_at(e, reached, sizes, values), boxes)
    return sums


def _relaxed_at(
    e: int, reached: Sequence[Tensor], sizes: Sequence[int], values: Tensor
) -> Iterator[Tensor]:
    """The parts of `_relaxed` of the samples that leave at exit e at the latest.

    One for each choice of `free`.
    """
    bins = [size + 1 for size in sizes[: e + 1]]
    boxes = [size - 1 for size in sizes]
    exits = len(sizes)
    cell = torch.zeros(len(values), dtype=torch.long)
    for size, rank in zip(bins, reached, strict=False):
        cell = cell * size + rank
    for free in product((False, True), repeat=e):
        options = [*(i for i, chooses in enumerate(free) if chooses), e]
        sums = torch.bincount(cell, values[:, options].amin(1), math.prod(bins)).view(bins)
        for i, chooses in enumerate(free):
            sums = sums.narrow(i, 1, boxes[i]) if chooses else sums.narrow(i, 0, boxes[i]).cumsum(i)
        if e < exits:
            sums = sums.sum(e, keepdim=True) - sums.cumsum(e).narrow(e, 1, boxes[e])
        yield sums
