"""Thresholds whose accuracy holds on unseen data with a stated probability.

Learn-then-Test with fixed-sequence testing, with exact binomial tails as the loss is zero or one.
The sequence of candidates comes from one half of the samples, the tests use the other: found and
tested on the same half, a candidate would have been chosen for its luck there, and the promise
would break.

Reference: Angelopoulos et al., "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk
Control" (2021), as used for early exits by Jazbec et al., "Fast yet Safe: Early-Exiting with Risk
Control" (2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.calibration.exits.samples import OperatingPoint, Samples, measure
from gatecli.calibration.exits.table import frontier, leaving_sums, ranks
from gatecli.errors import SettingError

__all__ = ["Certified", "binomial_tails", "certify", "halves", "lower_bound", "right_counts"]


@dataclass(frozen=True)
class Certified:
    """A point that reaches `target_top1` percent on unseen data with probability `confidence`.

    Attributes:
        point: Measured on all samples, those that it was found with included.
        tested: The same thresholds on the other half alone, which they were tested with.
        target_top1: As asked for.
        confidence: As asked for.
        p_value: The chance of so many right there, were the true accuracy just the target; at most
            1 - confidence.
        passed: How many of the sequence were certified before the first that was not.
        candidates: The length of the sequence.
    """

    point: OperatingPoint
    tested: OperatingPoint
    target_top1: float
    confidence: float
    p_value: float
    passed: int
    candidates: int


def certify(
    samples: Samples,
    target_top1: float,
    confidence: float = 0.95,
    seed: int = 0,
    levels: int | None = None,
) -> Certified:
    """The cheapest point that can be certified to reach `target_top1` percent.

    It does with probability `confidence` over the draw of the samples. The frontier of a seeded
    half is walked from its dearest, most accurate point to cheaper ones. Each is tested on the
    other half at the level 1 - confidence; the walk ends at the first that fails, so that no
    correction for many tests is owed.

    Args:
        samples: Found and tested with.
        target_top1: Percent, between 0 and 100.
        confidence: Between 0 and 1.
        seed: Of the halves.
        levels: As in `table.frontier`.

    Raises:
        SettingError: The target or the confidence is out of range, there are fewer than two
            samples, or no point can be certified: then the text says what could be.
    """
    _check(samples, target_top1, confidence)
    found, held_out = halves(samples, seed)
    sequence = frontier(found, levels)[::-1]
    right = right_counts(held_out, [one.thresholds for one in sequence])
    p_values = binomial_tails(len(held_out), target_top1 / 100)[right]
    rejected = p_values <= 1 - confidence
    passed = int(rejected.long().cumprod(0).sum())
    if not passed:
        raise SettingError(_beyond(target_top1, confidence, int(right[0]), len(held_out)))
    last = sequence[passed - 1].thresholds
    return Certified(
        point=measure(samples, last),
        tested=measure(held_out, last),
        target_top1=target_top1,
        confidence=confidence,
        p_value=p_values[passed - 1].item(),
        passed=passed,
        candidates=len(sequence),
    )


def _check(samples: Samples, target_top1: float, confidence: float) -> None:
    if not 0 < target_top1 < 100 or not 0 < confidence < 1:
        raise SettingError(
            "expected a target between 0 and 100 percent and a confidence between 0 and 1, both"
            f" exclusive, but got {target_top1} and {confidence}"
        )
    if len(samples) < 2:
        raise SettingError("expected at least two samples to certify an accuracy with, but got one")


def halves(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Two halves drawn at random; of an odd number the second is the larger."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    middle = len(order) // 2
    return samples.take(order[:middle]), samples.take(order[middle:])


def right_counts(samples: Samples, settings: list[tuple[float, ...]]) -> Tensor:
    """How many samples each of P settings of the E thresholds gets right, (P,).

    Counted with one joint table of the thresholds that occur.
    """
    columns = samples.margins.new_tensor(settings).t().contiguous()
    grid = [torch.unique(column) for column in columns]
    at = [torch.searchsorted(values, column) for values, column in zip(grid, columns, strict=True)]
    sizes = [len(values) for values in grid]
    right = torch.zeros(len(settings), dtype=torch.float64)
    for part in leaving_sums(ranks(samples.margins, grid), sizes, samples.correct):
        right = right + part[tuple(at[: part.dim()])]
    return right.long()


def binomial_tails(count: int, rate: float) -> Tensor:
    """P(X >= k) of X ~ Binomial(count, rate) for all k = 0..count.

    From sums of the exact terms' logarithms.

    Returns:
        (count + 1,), float64.
    """
    k = torch.arange(count + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    terms = (
        ways + torch.xlogy(k, k.new_tensor(rate)) + torch.xlogy(count - k, k.new_tensor(1 - rate))
    )
    return terms.flip(0).logcumsumexp(0).flip(0).exp().clamp(max=1)


def lower_bound(right: int, count: int, confidence: float) -> float:
    """The highest rate that `right` of `count` certify, from below, within 1e-6.

    Reference: the one-sided interval of Clopper and Pearson (1934).
    """
    low = 0.0
    high = right / count
    while high - low > 1e-6:
        middle = (low + high) / 2
        if binomial_tails(count, middle)[right] <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def _beyond(target: float, confidence: float, right: int, count: int) -> str:
    # rounded up, it could not be certified either
    highest = math.floor(lower_bound(right, count, confidence) * 1e4) / 100
    return (
        f"no thresholds can be certified to reach {target:g} percent with confidence"
        f" {confidence:g}: the most accurate ones got {100 * right / count:.2f} percent of {count}"
        f" samples right, which certifies {highest:.2f}; ask for at most that, for less confidence,"
        " or bring more samples"
    )
