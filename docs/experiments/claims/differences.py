"""What a comparison looks at: the difference of two figures, or of two curves at equal cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from claims.claim import Figures, Results

__all__ = ["Above", "AtEqual", "Best", "Less", "Mean"]

REACH = 0.05  # a point this far beyond a curve's end is compared with its end


class Side(Protocol):
    """A figure to compare."""

    def by_seed(self, results: Results) -> dict[int, list[float]]:
        """A number for each fold, or one, by seed."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of a figure over variants, for the seeds that all have; most often over one."""

    variants: Sequence[str]
    figure: str

    def by_seed(self, results: Results) -> dict[int, list[float]]:
        found = {}
        for seed in seeds_of(results, self.variants, self.figure):
            each = [numbers(results[name][seed], self.figure) for name in self.variants]
            found[seed] = [statistics.fmean(fold) for fold in zip(*each, strict=True)]
        return found


@dataclass(frozen=True, kw_only=True)
class Best:
    """The figure of that variant which val says is best, seed by seed."""

    variants: Sequence[str]
    figure: str
    by: str = "val_top1"

    def by_seed(self, results: Results) -> dict[int, list[float]]:
        found = {}
        for seed in seeds_of(results, self.variants, self.figure, self.by):
            runs = [results[name][seed] for name in self.variants]
            best = max(runs, key=lambda figures: cost_of(figures, self.by))
            found[seed] = numbers(best, self.figure)
        return found


@dataclass(frozen=True, kw_only=True)
class Less:
    """One side less another, for the seeds that both have."""

    one: Side
    other: Side

    def differences(self, results: Results) -> dict[int, list[float]]:
        first, second = self.one.by_seed(results), self.other.by_seed(results)
        found = {}
        for seed in sorted(first.keys() & second.keys()):
            pairs = zip(first[seed], second[seed], strict=True)
            found[seed] = [one - other for one, other in pairs]
        return found


@dataclass(frozen=True, kw_only=True)
class Above:
    """A side less a number that the paper names."""

    one: Side
    number: float

    def differences(self, results: Results) -> dict[int, list[float]]:
        found = {}
        for seed, folds in self.one.by_seed(results).items():
            found[seed] = [fold - self.number for fold in folds]
        return found


@dataclass(frozen=True, kw_only=True)
class AtEqual:
    """The mean height of some points over the curve through others, at the same cost.

    The curve is piecewise linear, and flat beyond its ends as far as `reach`. Points further away
    are left out.

    Attributes:
        ones: The variants that are compared with the curve.
        others: The variants that it goes through.
        figure: What is compared.
        cost: The figure that is to be equal.
        points: What both figures' names end in, where a variant has several points.
        reach: How far beyond the curve's ends is near enough, in the cost's unit.
    """

    ones: Sequence[str]
    others: Sequence[str]
    figure: str
    cost: str
    points: Sequence[str] = ("",)
    reach: float = REACH

    def differences(self, results: Results) -> dict[int, list[float]]:
        needed = [name + point for point in self.points for name in (self.figure, self.cost)]
        found = {}
        for seed in seeds_of(results, [*self.ones, *self.others], *needed):
            curve = sorted(self._points(results, self.others, seed), key=lambda point: point[0])
            each = [self._above(point, curve) for point in self._points(results, self.ones, seed)]
            near = [folds for folds in each if folds]
            if near:
                found[seed] = [statistics.fmean(fold) for fold in zip(*near, strict=True)]
        return found

    def _points(self, results: Results, variants: Sequence[str], seed: int) -> list[Point]:
        found = []
        for name in variants:
            figures = results[name][seed]
            for end in self.points:
                point = cost_of(figures, self.cost + end), numbers(figures, self.figure + end)
                found.append(point)
        return found

    def _above(self, point: Point, curve: Sequence[Point]) -> list[float]:
        """How far it lies above the curve, by fold; nothing where the curve does not reach."""
        at, own = point
        costs = [cost for cost, _ in curve]
        if not costs[0] - self.reach <= at <= costs[-1] + self.reach:
            return []
        heights = zip(*(heights for _, heights in curve), strict=True)
        curves = [float(np.interp(at, costs, fold)) for fold in heights]
        return [mine - theirs for mine, theirs in zip(own, curves, strict=True)]


Point = tuple[float, "list[float]"]  # a cost, and a figure by fold


def seeds_of(results: Results, variants: Iterable[str], *figures: str) -> list[int]:
    """The seeds for which all of some variants have all of some figures."""
    each = []
    for name in variants:
        runs = results.get(name, {})
        each.append({seed for seed, run in runs.items() if all(need in run for need in figures)})
    return sorted(set.intersection(*each))


def numbers(figures: Figures, name: str) -> list[float]:
    """A figure as a list: a number for each fold, or one."""
    value = figures[name]
    return value if isinstance(value, list) else [value]


def cost_of(figures: Figures, name: str) -> float:
    """A figure as one number."""
    return statistics.fmean(numbers(figures, name))
