"""What thresholds of early exits give on samples whose margins are known.

A sample leaves at the first exit e with margin_e >= t_e, t_e = inf meaning never and -inf always;
one that leaves nowhere reaches the final classifier. How points are found: table (all combinations
at once), search (finer, with a bound), certify (with confidence).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.errors import DataError, SettingError

__all__ = [
    "SLACK",
    "OperatingPoint",
    "Pick",
    "Samples",
    "cheapest",
    "leaves",
    "measure",
    "most_accurate",
    "point",
]

SLACK = 1e-9  # percent: 57 of 100 right is 56.99999999999999 in floating point


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds of the E exits and what they give.

    Attributes:
        thresholds: One an exit.
        top1: Percent.
        cost: Mean of a sample, in the samples' unit.
        shares: Of the samples that leave at each exit and, last, at the final classifier.
    """

    thresholds: tuple[float, ...]
    top1: float
    cost: float
    shares: tuple[float, ...]


# `cheapest` or `most_accurate` with its limit filled in
Pick = Callable[[Iterable[OperatingPoint]], "OperatingPoint | None"]


@dataclass(frozen=True)
class Samples:
    """One pass over val: N samples at E exits and at the final classifier.

    Attributes:
        margins: (N, E), floating, never infinite above.
        correct: (N, E + 1), bool.
        costs: (N, E + 1), float64.
    """

    margins: Tensor
    correct: Tensor
    costs: Tensor

    @classmethod
    def of(cls, margins: Tensor, correct: Tensor, costs: Tensor) -> Samples:
        """Check the three and bring them to one form.

        Args:
            margins: (N, E), the exits' scores; NaN never exits, +inf leaves at every finite
                threshold.
            correct: (N, E + 1), bool: whether the exit's, in the last column the final
                classifier's, prediction is right.
            costs: (N, E + 1) or (E + 1,): MACs, or milliseconds, spent on a sample that leaves
                there.

        Raises:
            DataError: There are no samples, shapes do not fit each other, or a cost is negative,
                infinite or NaN.
        """
        if margins.dim() != 2 or not margins.numel():
            raise DataError(
                "expected the margins of at least one sample at one exit, of shape (N, E), but got"
                f" {tuple(margins.shape)}"
            )
        count, exits = margins.shape
        if correct.shape != (count, exits + 1) or correct.dtype != torch.bool:
            raise DataError(
                f"expected `correct` to be bool of shape {(count, exits + 1)} for margins of"
                f" {(count, exits)}, but got {correct.dtype} of {tuple(correct.shape)}"
            )
        if costs.shape not in ((exits + 1,), (count, exits + 1)):
            raise DataError(
                f"expected `costs` to have shape {(exits + 1,)} or {(count, exits + 1)}, but got"
                f" {tuple(costs.shape)}"
            )
        if not (costs.isfinite() & (costs >= 0)).all():
            raise DataError("expected costs to be finite and not negative")
        margins = margins.detach().cpu().to(torch.promote_types(margins.dtype, torch.float32))
        return cls(
            margins=margins.clamp(max=torch.finfo(margins.dtype).max),
            correct=correct.cpu(),
            costs=_summable(costs.detach().cpu().double().expand(count, -1)),
        )

    @property
    def exits(self) -> int:
        """E, the number of exits."""
        return self.margins.shape[1]

    def __len__(self) -> int:
        return len(self.margins)

    def take(self, index: Tensor) -> Samples:
        """Some of the samples, by index (n,)."""
        return Samples(self.margins[index], self.correct[index], self.costs[index])


def _summable(costs: Tensor) -> Tensor:
    """Round costs so that every sum of them is exact.

    They come to lie on a grid of a power of two, so fine that nothing shows: whole MACs stay as
    they are. Then a cost does not depend on the order in which it was summed, and equal points
    compare as equal.
    """
    highest = costs.amax().item() * len(costs)
    step = 2.0 ** (math.frexp(highest)[1] - 52)
    return (costs / step).round() * step if highest else costs


def leaves(margins: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Where each sample leaves, (N,): the exit's index, E for the final classifier.

    Args:
        margins: (N, E).
        thresholds: E of them.
    """
    limits = margins.new_tensor(thresholds)
    taken = (margins >= limits) & (limits < math.inf)
    ends = torch.cat([taken, taken.new_ones(len(taken), 1)], 1)
    return ends.int().argmax(1)  # the first of equals


def measure(samples: Samples, thresholds: Sequence[float]) -> OperatingPoint:
    """What one setting of the E thresholds gives on the samples.

    Raises:
        SettingError: There are more or fewer thresholds than exits, or one is NaN.
    """
    if len(thresholds) != samples.exits or any(math.isnan(value) for value in thresholds):
        raise SettingError(
            f"expected {samples.exits} thresholds, one an exit and none NaN, but got"
            f" {list(thresholds)}"
        )
    where = leaves(samples.margins, thresholds)[:, None]
    counts = torch.bincount(where.flatten(), minlength=samples.exits + 1).tolist()
    right = samples.correct.gather(1, where).sum().item()
    cost = samples.costs.gather(1, where).sum().item()
    return point(thresholds, right, cost, counts, len(samples))


def point(
    thresholds: Iterable[float], right: float, cost: float, counts: Iterable[float], total: int
) -> OperatingPoint:
    """An operating point from sums over `total` samples."""
    return OperatingPoint(
        thresholds=tuple(thresholds),
        top1=100 * right / total,
        cost=cost / total,
        shares=tuple(count / total for count in counts),
    )


def cheapest(points: Iterable[OperatingPoint], target_top1: float) -> OperatingPoint | None:
    """The point of least cost whose top-1 is at least `target_top1` percent.

    Of equals the more accurate, then the first; None where none reaches the target.
    """
    good = [point for point in points if point.top1 >= target_top1 - SLACK]
    return min(good, key=lambda point: (point.cost, -point.top1), default=None)


def most_accurate(points: Iterable[OperatingPoint], budget: float) -> OperatingPoint | None:
    """The point of highest top-1 whose mean cost is at most `budget`.

    Of equals the cheaper, then the first; None where none is so cheap.
    """
    good = [point for point in points if point.cost <= budget]
    return min(good, key=lambda point: (-point.top1, point.cost), default=None)
