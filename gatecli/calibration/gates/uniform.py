"""One threshold for all gates: which values to measure.

Decisions change only where the threshold passes a P(on). Where no gate depends on the image there
are at most units + 1 ways to decide, and few of them are each measured; of filters there may be
thousands. Elsewhere P(on) is known only for the threshold that a pass was made with, as what one
gate skips changes what the next ones see. So thresholds are taken from what the passes saw, spread
evenly first, then halving the gap where a cheaper point that reaches the target may lie. A gap is
closed for good when the passes on its two sides saw nothing more to part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.calibration.gates.goal import Goal
from gatecli.calibration.gates.grains import in_grains
from gatecli.calibration.gates.points import Measure, Point, Thresholds, get_thresholds
from gatecli.network import Network

__all__ = ["Gap", "UniformSearch", "alike", "between", "cuts", "pooled", "thin"]

FEW = 64  # ways to decide that are each measured
# log-odds closer than this are one value: a pass in other batches may round them otherwise
NOISE = 1e-5


def cuts(odds: Tensor) -> Tensor:
    """Thresholds that part log-odds (n,).

    Halfway in log-odds, as that is what gates compare; float32 and below 1, as that is what a gate
    stores. Values that float32 cannot part (P(on) above 1 - 6e-8) stay together.

    Returns:
        Ascending, each well between two distinct values, the last above all of them, (k,).
    """
    values: Tensor = torch.unique(odds[odds.isfinite()].double())
    if not len(values):
        return torch.empty(0)
    above = torch.cat([values[1:], values.new_tensor([torch.inf])])
    middle = torch.cat([(values[1:] + values[:-1]) / 2, values[-1:] + 1])
    tau = torch.sigmoid(middle).float()
    limit = torch.logit(tau).double()
    return tau[(above - values > NOISE) & (limit > values) & (limit < above)]


def thin(values: Tensor, most: int) -> list[float]:
    """At most `most` of sorted values, evenly by rank, first and last included."""
    ranks = torch.linspace(0, len(values) - 1, min(most, len(values))).round().long()
    return [float(value) for value in values[ranks]]


def alike(network: Network, tau: float) -> Thresholds:
    """The setting that gives every unit the threshold `tau`."""
    return {site: [tau] * gate.units for site, gate in network.site_gates.items()}


@dataclass(frozen=True)
class Gap:
    """The thresholds between two that were measured.

    Attributes:
        left: What the lower one gives.
        right: What the higher one gives.
        low: The lower threshold.
        high: The higher threshold.
        from_left: The log-odds in between that the left pass saw, (n,).
        from_right: The log-odds in between that the right pass saw, (m,).
    """

    left: Point
    right: Point
    low: float
    high: float
    from_left: Tensor
    from_right: Tensor

    def middle(self) -> float | None:
        """The threshold that halves what is not known yet.

        None where both passes decide for all that lies between them.
        """
        if not len(self.from_left) or not len(self.from_right):
            return None
        # below the left pass's first value, and above the right pass's last, nothing changes
        pool = torch.cat([self.from_left, self.from_right])
        open_still = (pool >= self.from_left.min()) & (pool <= self.from_right.max())
        inner = cuts(pool[open_still])[:-1]
        return float(inner[len(inner) // 2]) if len(inner) else None

    def split(self, tau: float, point: Point, seen: Tensor) -> tuple[Gap, Gap]:
        """The two gaps beside a threshold in this one, which gives `point`.

        Args:
            tau: The threshold.
            point: What it gives.
            seen: The log-odds that its pass saw, (n,).
        """
        lower = Gap(
            left=self.left,
            right=point,
            low=self.low,
            high=tau,
            from_left=between(self.from_left, self.low, tau),
            from_right=between(seen, self.low, tau),
        )
        upper = Gap(
            left=point,
            right=self.right,
            low=tau,
            high=self.high,
            from_left=between(seen, tau, self.high),
            from_right=between(self.from_right, tau, self.high),
        )
        return lower, upper


def between(odds: Tensor, low: float, high: float) -> Tensor:
    """The log-odds of (n,) above the threshold `low`, up to `high`."""
    low, high = torch.logit(torch.tensor([low, high])).tolist()
    return odds[(odds > low) & (odds <= high)]


class UniformSearch:
    """Finds one threshold for all gates.

    It begins with all gates open, the present thresholds, and others spread over what was seen.

    Every point it measures is in `measure.points`; `opened` is the one with all gates open,
    `present` that of the thresholds which the network came with.

    Args:
        measure: Measures a setting.
        candidates: How many others at most; where no gate depends on the image, all if they are
            FEW.
    """

    def __init__(self, measure: Measure, candidates: int) -> None:
        self.measure = measure
        self.network = measure.network
        present = get_thresholds(self.network)
        with measure.passes("all gates open", 1):
            self.opened, self._odds = measure.observe(alike(self.network, 0.0))
        self._gaps = self._spread(self.opened, pooled(self._odds), candidates)
        with measure.passes("the present thresholds", 1):
            self.present = measure(present)

    def run(self, goal: Goal, refine: int) -> None:
        """Measure further thresholds.

        Args:
            goal: Near which it looks closer.
            refine: How many more at most.
        """
        gaps = self._gaps
        with self.measure.passes("refining", refine):
            for _ in range(refine):
                found = self._promising(gaps, goal)
                if found is None:
                    return
                gap, tau = found
                gaps.remove(gap)
                gaps += gap.split(tau, *self._at(tau))

    def _at(self, tau: float) -> tuple[Point, Tensor]:
        """What one threshold gives, and all log-odds that its pass saw, (n,)."""
        thresholds = in_grains(self.measure, alike(self.network, tau), self._odds)
        point, odds = self.measure.observe(thresholds)
        return point, pooled(odds)

    def _spread(self, start: Point, seen: Tensor, candidates: int) -> list[Gap]:
        """Measure thresholds spread over what was seen at the start; the gaps between them."""
        dependent = any(gate.data_dependent for gate in self.network.site_gates.values())
        taus = thin(cuts(seen), candidates if dependent else max(candidates, FEW))
        gaps = []
        left = start
        low = 0.0
        with self.measure.passes("candidates", len(taus)):
            for tau in taus:
                right, after = self._at(tau)
                gap = Gap(
                    left=left,
                    right=right,
                    low=low,
                    high=tau,
                    from_left=between(seen, low, tau),
                    from_right=between(after, low, tau),
                )
                gaps.append(gap)
                left = right
                low = tau
                seen = after
        return gaps

    def _promising(self, gaps: list[Gap], goal: Goal) -> tuple[Gap, float] | None:
        """The most accurate open gap that may hold something better than the best so far.

        Returns:
            The gap and the threshold that halves it; None where all are closed.
        """
        best = goal.choose(self.measure.points)
        hopeful = [gap for gap in gaps if goal.is_hopeful(gap.left, gap.right, best)]

        def rank(gap: Gap) -> tuple[bool, float]:
            return goal.is_little(gap.right, best), -max(gap.left.top1, gap.right.top1)

        for gap in sorted(hopeful, key=rank):
            tau = gap.middle()
            if tau is not None:
                return gap, tau
        return None


def pooled(odds: Mapping[str, Tensor]) -> Tensor:
    """All gates' log-odds, each (N, units), as one (n,)."""
    return torch.cat([seen.flatten() for seen in odds.values()]) if odds else torch.empty(0)
