"""One threshold for all gates: which values to measure.

Decisions change only where the threshold passes a P(on). Where no gate depends on the image there
are at most gates + 1 ways to decide, and each is measured. Elsewhere P(on) is known only for the
threshold that a pass was made with, as what one gate skips
changes what the next ones see: thresholds are taken from what the passes saw, spread evenly first,
then halving the gap where a cheaper point that reaches the target may lie. A gap is closed for good
when the passes on its two sides saw nothing more to part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.calibration.gates.points import Measure, Point, Thresholds, choose, get_thresholds
from gatecli.network import Network

# log-odds closer than this are one value: a pass in other batches may round them otherwise
NOISE = 1e-5

WORTH = 0.002  # of the MACs: gaps that can save less come last


def cuts(odds: Tensor) -> Tensor:
    """Thresholds that part log-odds (n,).

    Ascending, each well between two distinct values, the last above all of them: (k,).

    Halfway in log-odds, as that is what gates compare; float32 and below 1, as that is what a gate
    stores. Values that float32 cannot part (P(on) above 1 - 6e-8) stay together.
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
    """The thresholds between two that were measured, and the log-odds in between that the left pass
    and the right pass saw.
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
        pool = torch.cat(
            [self.from_left, self.from_right]
        )  # below the left pass's first value, and above the right pass's last, nothing changes
        inner = cuts(pool[(pool >= self.from_left.min()) & (pool <= self.from_right.max())])[:-1]
        return float(inner[len(inner) // 2]) if len(inner) else None

    def split(self, tau: float, point: Point, seen: Tensor) -> tuple[Gap, Gap]:
        lower, upper = (
            between(self.from_left, self.low, tau),
            between(self.from_right, tau, self.high),
        )
        return Gap(self.left, point, self.low, tau, lower, between(seen, self.low, tau)), Gap(
            point, self.right, tau, self.high, between(seen, tau, self.high), upper
        )


def between(odds: Tensor, low: float, high: float) -> Tensor:
    low, high = torch.logit(torch.tensor([low, high])).tolist()
    return odds[(odds > low) & (odds <= high)]


class UniformSearch:
    """Finds one threshold for all gates.

    Every point it measures is in `measure.points`, and `opened` is the one with all gates open.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure, self.network = measure, measure.network
        self.present = get_thresholds(self.network)
        with measure.passes("all gates open", 1):
            self.opened, self._seen = self._at(0.0)

    def run(self, target: float, candidates: int, refine: int) -> None:
        """Measure the present thresholds, at most `candidates` others (all, where no gate depends
        on the image) and `refine` more, near top-1 `target`.
        """
        gaps = self._spread(self.opened, self._seen, candidates)
        if any(gate.data_dependent for gate in self.network.site_gates.values()):
            self._refine(gaps, target, refine)

    def _at(self, tau: float) -> tuple[Point, Tensor]:
        point, odds = self.measure.observe(alike(self.network, tau))
        return point, pooled(odds)

    def _spread(self, start: Point, seen: Tensor, candidates: int) -> list[Gap]:
        dependent = any(gate.data_dependent for gate in self.network.site_gates.values())
        possible = cuts(seen)
        taus = thin(possible, candidates if dependent else len(possible))
        gaps, left, low = [], start, 0.0
        with self.measure.passes("candidates", len(taus) + 1):
            for tau in taus:
                right, after = self._at(tau)
                gaps.append(
                    Gap(left, right, low, tau, between(seen, low, tau), between(after, low, tau))
                )
                left, low, seen = right, tau, after
            self.measure(self.present)
        return gaps

    def _refine(self, gaps: list[Gap], target: float, passes: int) -> None:
        with self.measure.passes("refining", passes):
            for _ in range(passes):
                found = self._promising(gaps, target)
                if found is None:
                    return
                gap, tau = found
                gaps.remove(gap)
                gaps += gap.split(tau, *self._at(tau))

    def _promising(self, gaps: list[Gap], target: float) -> tuple[Gap, float] | None:
        """The open gap whose ends come nearest to the target, among those that may hold something
        cheaper than the best so far.
        """
        best = choose(self.measure.points, target)
        hopeful = [gap for gap in gaps if best is None or gap.right.macs < best.macs]

        def rank(gap: Gap) -> tuple[bool, float]:
            little = best is not None and gap.right.macs > (1 - WORTH) * best.macs
            return little, -max(gap.left.top1, gap.right.top1)

        for gap in sorted(hopeful, key=rank):
            tau = gap.middle()
            if tau is not None:
                return gap, tau
        return None


def pooled(odds: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([seen.flatten() for seen in odds.values()]) if odds else torch.empty(0)
