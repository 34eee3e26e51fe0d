"""What a comparison looks at: the difference of two figures, or of two curves at equal rate."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from claims.claim import Figures, Results

__all__ = ["AtEqual", "Less", "Mean"]

REACH = 0.05  # a point this far beyond a curve's end is compared with its end


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a figure over variants; most often over one."""

    variants: Sequence[str]
    figure: str

    def by_seed(self, results: Results) -> dict[int, list[float]]:
        """A number for each fold, or one, of the seeds that all the variants have."""
        found = {}
        for seed in seeds_of(results, self.variants):
            each = [numbers(results[name][seed], self.figure) for name in self.variants]
            found[seed] = [statistics.fmean(fold) for fold in zip(*each, strict=True)]
        return found


@dataclass(frozen=True, kw_only=True)
class Less:
    """One side less another, for the seeds that both have."""

    one: Mean
    other: Mean

    def differences(self, results: Results) -> dict[int, list[float]]:
        """By seed, one for each fold."""
        first, second = self.one.by_seed(results), self.other.by_seed(results)
        found = {}
        for seed in sorted(first.keys() & second.keys()):
            pairs = zip(first[seed], second[seed], strict=True)
            found[seed] = [one - other for one, other in pairs]
        return found


@dataclass(frozen=True, kw_only=True)
class AtEqual:
    """The mean height of some variants over the curve through others, at the same cost.

    The curve is piecewise linear, flat for REACH beyond its ends. Variants further away are left
    out.

    Attributes:
        ones: The variants that are compared with the curve.
        others: The variants that it goes through.
        figure: What is compared.
        cost: The figure that is to be equal.
        reach: How far beyond the curve's ends is near enough, in the cost's unit.
    """

    ones: Sequence[str]
    others: Sequence[str]
    figure: str
    cost: str
    reach: float = REACH

    def differences(self, results: Results) -> dict[int, list[float]]:
        """By seed, one for each fold."""
        found = {}
        for seed in seeds_of(results, [*self.ones, *self.others]):
            curve = sorted((results[name][seed] for name in self.others), key=self._cost)
            each = [self._above(results[name][seed], curve) for name in self.ones]
            near = [folds for folds in each if folds]
            if near:
                found[seed] = [statistics.fmean(fold) for fold in zip(*near, strict=True)]
        return found

    def _cost(self, figures: Figures) -> float:
        return statistics.fmean(numbers(figures, self.cost))

    def _above(self, figures: Figures, curve: Sequence[Figures]) -> list[float]:
        """How far it lies above the curve, by fold; nothing where the curve does not reach."""
        at = self._cost(figures)
        costs = [self._cost(each) for each in curve]
        if not costs[0] - self.reach <= at <= costs[-1] + self.reach:
            return []
        heights = zip(*(numbers(each, self.figure) for each in curve), strict=True)
        own = numbers(figures, self.figure)
        return [
            mine - float(np.interp(at, costs, fold))
            for mine, fold in zip(own, heights, strict=True)
        ]


def seeds_of(results: Results, variants: Iterable[str]) -> list[int]:
    """The seeds that all of some variants have."""
    each = [set(results.get(name, {})) for name in variants]
    return sorted(set.intersection(*each))


def numbers(figures: Figures, name: str) -> list[float]:
    """A figure as a list: a number for each fold, or one."""
    value = figures[name]
    return value if isinstance(value, list) else [value]
