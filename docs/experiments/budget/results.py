"""From the file's lines to what each way came to, at the learning rate that val chose for it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from claims.claim import Figures, Paper, Results
from claims.differences import numbers
from claims.results import Line, figures_of, lines_of
from claims.verdicts import Judged, judge

from budget.parts import LRS

__all__ = ["Outcome", "compared", "narrowed", "outcome"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a way came to.

    Attributes:
        runs: The figures of each seed, at the learning rate chosen; none: it was not run.
        lr: That one: the best on val, for the first seed that was run.
        tried: How many were run for that seed.
    """

    runs: Mapping[int, Figures]
    lr: float
    tried: int

    def mean(self, figure: str) -> float:
        """A figure's mean over the seeds."""
        return statistics.fmean(self.of(figure))

    def of(self, figure: str) -> list[float]:
        """A figure, a number for each seed: the mean where there is one for each fold."""
        return [statistics.fmean(numbers(run, figure)) for run in self.runs.values()]


def outcome(results: Results, name: str) -> Outcome:
    """What runs that differ in the learning rate came to.

    Args:
        results: By name, and by seed.
        name: Theirs, without the rate.
    """
    by_lr = {lr: results.get(f"{name}, lr {lr:g}", {}) for lr in LRS}
    seeds = [seed for runs in by_lr.values() for seed in runs]
    if not seeds:
        return Outcome(runs={}, lr=LRS[0], tried=0)
    first = min(seeds)
    tried = [lr for lr in LRS if first in by_lr[lr]]
    best = max(tried, key=lambda lr: numbers(by_lr[lr][first], "val_top1")[0])
    return Outcome(runs=by_lr[best], lr=best, tried=len(tried))


def narrowed(part: Paper, lines: Sequence[Line]) -> Paper:
    """The part for further seeds: at the learning rates that val has chosen at the first."""
    results = figures_of(lines_of(part, lines, None))
    variants = []
    for variant in part.variants:
        name, _, lr = variant.name.rpartition(", lr ")
        found = outcome(results, name)
        if not found.runs or f"{found.lr:g}" == lr:
            variants.append(variant)
    return replace(part, variants=variants)


def compared(one: Outcome, other: Outcome) -> Judged:
    """How much more of the test images one gets right than the other, seed by seed."""
    differences = {}
    for seed in sorted(one.runs.keys() & other.runs.keys()):
        pairs = zip(*(numbers(each.runs[seed], "top1") for each in (one, other)), strict=True)
        differences[seed] = [mine - theirs for mine, theirs in pairs]
    return judge(differences, "more", 1.0)
