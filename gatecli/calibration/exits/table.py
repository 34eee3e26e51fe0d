"""Accuracy and mean cost of every combination of the exits' candidate thresholds.

All come from one joint histogram of the margins. A sample counts only by its rank at each exit: how
many of the candidates its margin reaches. It leaves at exit e under the candidates j_1..j_E where
rank_e > j_e and rank_i <= j_i for all i < e, so sums over those who leave there are cumulative sums
of a histogram over the ranks: O(N E + cells) for all combinations, exact for these thresholds.

Memory: at most CELLS cells of the histogram, about eight tensors of 8 bytes a cell: some 130 MB,
for up to EXITS exits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gatecli.calibration.exits.samples import OperatingPoint, Samples, point
from gatecli.errors import SettingError

__all__ = [
    "CELLS",
    "Grid",
    "candidates",
    "frontier",
    "leaving_sums",
    "make_grid",
    "points_at",
    "ranks",
    "root",
    "spread",
    "table_frontier",
    "total",
]

CELLS = 2**21  # 127 thresholds each for three exits
EXITS = 10
Grid = Sequence[Tensor]  # each exit's candidate thresholds, ascending


def frontier(samples: Samples, levels: int | None = None) -> list[OperatingPoint]:
    """All points than which no other combination of the candidates is as cheap and as accurate.

    Of combinations with the same accuracy and cost the one with the highest thresholds is given,
    the first exit's counting most: an exit that no sample takes has the threshold inf.

    Args:
        samples: With at most EXITS exits.
        levels: Candidate thresholds an exit; by default as many as the table can hold, 127 for
            three exits.

    Returns:
        The points, the cheapest first.

    Raises:
        SettingError: There are more than EXITS exits, or `levels` is below 2 or more than the table
            can hold.
    """
    return table_frontier(samples, make_grid(samples, levels))


def make_grid(samples: Samples, levels: int | None = None) -> list[Tensor]:
    """At most `levels` candidates for each exit; by default as many as CELLS allow.

    Raises:
        SettingError: As `frontier`.
    """
    if samples.exits > EXITS:
        raise SettingError(
            f"expected at most {EXITS} exits to calibrate together, but got {samples.exits}"
        )
    most = root(CELLS, samples.exits) - 1
    if levels is not None and not 2 <= levels <= most:
        raise SettingError(
            f"expected `levels` to be between 2 and {most} for {samples.exits} exits, but got"
            f" {levels}"
        )
    return [candidates(column, levels or most) for column in samples.margins.unbind(1)]


def root(value: int, degree: int) -> int:
    """The whole part of a root."""
    return int(value ** (1 / degree) + 1e-9)


def spread(values: Tensor, count: int) -> Tensor:
    """At most `count`, and at least two, of the values, evenly spaced, both ends among them."""
    count = max(2, min(count, len(values)))
    return values[torch.linspace(0, len(values) - 1, count, dtype=torch.float64).round().long()]


def candidates(margins: Tensor, levels: int | None = None) -> Tensor:
    """-inf, thresholds between neighbouring distinct margins, inf.

    A threshold is a number of the margins' own type, so that the network compares as was done here:
    the midpoint of its neighbours, or the upper one where rounding leaves nothing between.

    Args:
        margins: (N,), of one exit.
        levels: How many, at even quantiles of the distinct margins; none: all.

    Returns:
        Ascending, (n,).
    """
    values = torch.unique(margins[~margins.isnan()])
    edges = torch.arange(1, max(len(values), 1))
    if levels is not None and len(edges) > levels - 2:
        middles = (torch.arange(levels - 2) + 0.5).double()
        edges = edges[middles.mul(len(edges) / max(levels - 2, 1)).long()]
    below = values[edges - 1]
    above = values[edges]
    middle = below / 2 + above / 2
    inner = torch.where((middle > below) & (middle <= above), middle, above)
    return torch.cat([inner.new_tensor([-math.inf]), inner, inner.new_tensor([math.inf])])


def ranks(margins: Tensor, grid: Grid) -> list[Tensor]:
    """How many of each exit's candidates a sample's margin reaches, none where it is NaN.

    Args:
        margins: (N, E).
        grid: E exits' candidates.

    Returns:
        E tensors (N,).
    """
    reached = []
    for column, values in zip(margins.t().contiguous(), grid, strict=True):
        rank = torch.searchsorted(values, column, right=True)
        reached.append(rank.masked_fill(column.isnan(), 0))
    return reached


def leaving_sums(
    reached: Sequence[Tensor], sizes: Sequence[int], values: Tensor
) -> Iterator[Tensor]:
    """For each exit, and last the final classifier, a sum over the samples that leave there.

    Args:
        reached: The samples' ranks, as `ranks` gives them.
        sizes: How many candidates each exit has.
        values: (N, E + 1), what to sum: its column e at exit e.

    Yields:
        Tensors of shape sizes[: e + 1] (sizes at last): who leaves at an exit does not depend on
        later thresholds.
    """
    cell = torch.zeros(len(values), dtype=torch.long)
    for e in range(len(sizes) + 1):
        bins = [size + 1 for size in sizes[: e + 1]]
        if e < len(sizes):
            cell = cell * bins[e] + reached[e]
        sums = torch.bincount(cell, values[:, e].double(), math.prod(bins)).view(bins)
        for earlier in range(min(e, len(sizes))):
            sums = sums.narrow(earlier, 0, sizes[earlier]).cumsum(earlier)
        if e < len(sizes):
            sums = sums.sum(e, keepdim=True) - sums.cumsum(e).narrow(e, 0, sizes[e])
        yield sums


def total(parts: Iterator[Tensor], sizes: Sequence[int]) -> Tensor:
    """The sum over the exits, of shape sizes."""
    sums = torch.zeros(tuple(sizes), dtype=torch.float64)
    for part in parts:
        sums += part.view(*part.shape, *[1] * (len(sizes) - part.dim()))
    return sums


def table_frontier(samples: Samples, grid: Grid) -> list[OperatingPoint]:
    """The Pareto frontier of the combinations of `grid`, the cheapest first; as `frontier`."""
    sizes = [len(values) for values in grid]
    reached = ranks(samples.margins, grid)
    right = total(leaving_sums(reached, sizes, samples.correct), sizes).flatten().long()
    cost = total(leaving_sums(reached, sizes, samples.costs), sizes).flatten()
    return points_at(samples, grid, _best(right, cost, len(samples)))


def _best(right: Tensor, cost: Tensor, count: int) -> Tensor:
    """The frontier's cells, ascending in cost and accuracy.

    Sorts nothing: accuracy can only take count + 1 values.

    Args:
        right: How many samples each combination gets right, (cells,).
        cost: What it costs, (cells,).
        count: How many samples there are.
    """
    none = torch.full((count + 1,), math.inf, dtype=torch.float64)
    least = none.scatter_reduce(0, right, cost, "amin")
    beyond = least.flip(0).cummin(0).values.flip(0)  # the least cost at this accuracy or above
    worth = least < torch.cat([beyond[1:], beyond.new_tensor([math.inf])])
    cells = (cost == least.where(worth, -1)[right]).nonzero().flatten()
    no_cell = torch.full((count + 1,), -1)
    return no_cell.scatter_reduce(0, right[cells], cells, "amax")[worth]


def points_at(samples: Samples, grid: Grid, cells: Tensor) -> list[OperatingPoint]:
    """What the combinations with these flat indices, (P,), give on the samples."""
    sizes = [len(values) for values in grid]
    reached = ranks(samples.margins, grid)
    at = torch.unravel_index(cells, sizes)

    def gathered(values: Tensor) -> Tensor:
        """The sums of `values` at the cells, (P, E + 1)."""
        parts = leaving_sums(reached, sizes, values)
        return torch.stack([part[at[: part.dim()]] for part in parts], 1)

    columns = [values[index] for values, index in zip(grid, at, strict=True)]
    thresholds = torch.stack(columns, 1).tolist()
    right = gathered(samples.correct).sum(1).tolist()
    cost = gathered(samples.costs).sum(1).tolist()
    counts = gathered(torch.ones(1).expand(len(samples), samples.exits + 1)).tolist()
    return [point(*one, len(samples)) for one in zip(thresholds, right, cost, counts, strict=True)]
