"""Settings of thresholds: what each gives on a split, which are worth having, which one to take.

Nothing here knows how a setting is found: a search (gatecli.calibration.gates.uniform, per_gate)
proposes, this measures and judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gatecli import methods, together
from gatecli.data import Split, Walk, batches, steps
from gatecli.data.walk import DEALT
from gatecli.gates.decider import Decider
from gatecli.gates.observe import RateMeter
from gatecli.network import Network
from gatecli.network.costs import Rates, expected_macs
from gatecli.network.price import Macs, Price
from gatecli.progress import Progress, Task
from gatecli.stages.predict import predict
from gatecli.traced.recipe import finite

__all__ = [
    "Loading",
    "Measure",
    "OddsMeter",
    "Point",
    "Thresholds",
    "choose",
    "get_thresholds",
    "pareto",
    "reaches",
    "set_thresholds",
    "site_values",
]

Thresholds = dict[str, list[float]]  # site -> the threshold of each of its units
SLACK = 1e-9  # percent: 57 of 100 right is 56.99999999999999 in floating point


@dataclass(frozen=True)
class Point:
    """One setting of the thresholds and what it gave.

    Attributes:
        thresholds: Of each unit, by site.
        top1: Percent.
        macs: Mean of one image.
        rates: Of each unit, by site.
        ms: Mean of one image by a latency table, where that is the price; else None.
    """

    thresholds: Thresholds
    top1: float
    macs: float
    rates: dict[str, list[float]]
    ms: float | None = None

    @property
    def cost(self) -> float:
        """What the search holds down."""
        return self.macs if self.ms is None else self.ms


def reaches(point: Point, target: float) -> bool:
    """Whether the point's top-1 is at least `target` percent."""
    return point.top1 >= target - SLACK


def choose(points: Iterable[Point], target: float) -> Point | None:
    """The cheapest point whose top-1 is at least `target` percent.

    Of equals the more accurate one; None where none reaches the target.
    """
    good = [point for point in points if reaches(point, target)]
    return min(good, key=_order, default=None)


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points than which no other is as cheap and as accurate, the cheapest first.

    Of equal points the first.
    """
    kept: list[Point] = []
    for point in sorted(points, key=_order):
        if not kept or point.top1 > kept[-1].top1:
            kept.append(point)
    return kept


def _order(point: Point) -> tuple[float, float]:
    return point.cost, -point.top1


def site_values(
    thresholds: Mapping[str, Sequence[float]],
) -> dict[str, float | list[float | None] | None]:
    """Thresholds as reports give them: a number a site, a list where its units differ.

    None for what strict JSON lacks.
    """
    found: dict[str, float | list[float | None] | None] = {}
    for site, values in thresholds.items():
        plain = [finite(value) for value in values]
        found[site] = plain[0] if len(set(plain)) == 1 else plain
    return found


def get_thresholds(network: Network) -> Thresholds:
    """The thresholds that the gates have now."""
    return {site: gate.threshold.tolist() for site, gate in network.site_gates.items()}


def set_thresholds(network: Network, thresholds: Mapping[str, Sequence[float]]) -> None:
    """Give each unit of each gate its threshold."""
    for site, gate in network.site_gates.items():
        old = gate.threshold
        gate.threshold = torch.tensor(thresholds[site], dtype=old.dtype, device=old.device)


class OddsMeter(RateMeter):
    """Keeps each sample's log-odds too, on the CPU: site -> tensors (n, units).

    Of a gate that looks at no image those of one sample.
    """

    def __init__(self) -> None:
        super().__init__()
        self.odds: dict[str, list[Tensor]] = {}

    def __call__(self, gate: Decider, z: Tensor, odds: Tensor | None) -> None:
        super().__call__(gate, z, odds)
        if odds is None or (gate.site in self.odds and not gate.data_dependent):
            return
        kept = odds if gate.data_dependent else odds[:1]
        self.odds.setdefault(gate.site, []).append(kept.detach().float().cpu())

    def gather(self) -> None:
        """See RateMeter.gather; the samples' order is another one then."""
        super().gather()
        everyone = together.gathered(self.odds)
        self.odds = {}
        for theirs in everyone:
            for site, odds in theirs.items():
                self.odds.setdefault(site, []).extend(odds)


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How images are read: so many at a time, by so many processes."""

    batch_size: int = 256
    workers: int | None = None


class Measure:
    """Measures settings of `network`'s thresholds on a split, each by a pass and only once.

    Passes are what a search costs. A pass is the only way to know: what a gate decides changes what
    the gates behind it see. The network's thresholds are left at the setting measured last, so it
    must be a copy of the user's.

    Args:
        network: The copy.
        split: Whose images are looked at.
        loading: How they are read.
        price: What thresholds shall hold down.
        progress: Is told how far the passes are.
    """

    def __init__(
        self, network: Network, split: Split, loading: Loading, price: Price, progress: Progress
    ) -> None:
        self.network = network
        self.split = split
        self.loading = loading
        self.price = price
        self.progress = progress
        self._known: dict[tuple[object, ...], Point] = {}
        self._within: Progress = progress

    @property
    def points(self) -> list[Point]:
        """All points measured, in the order in which they were."""
        return list(self._known.values())

    @contextmanager
    def passes(self, label: str, count: int) -> Iterator[None]:
        """Report the at most `count` passes made inside as one piece of work."""
        label = f"{label} (at most {count} passes over val)"
        total = count * steps(self.split, self.loading.batch_size)
        with self.progress.task(label, total) as task:
            self._within = _Within(self.progress, task)
            try:
                yield
            finally:
                self._within = self.progress

    def __call__(self, thresholds: Thresholds) -> Point:
        """What `thresholds` give.

        No pass is made where data-independent gates decide as they did in an earlier one and the
        others' thresholds are the same.
        """
        known = self._known.get(self._key(thresholds))
        if known is not None:
            return replace(known, thresholds=thresholds)
        return self.observe(thresholds)[0]

    def observe(self, thresholds: Thresholds) -> tuple[Point, dict[str, Tensor]]:
        """Make a pass whether or not the point is known.

        Returns:
            What `thresholds` give, and each gate's log-odds, site -> (N, units).
        """
        key = self._key(thresholds)
        meter = OddsMeter()
        images = batches(
            self.split,
            input=self.network.input,
            batch_size=self.loading.batch_size,
            walk=Walk(divided=DEALT, device=self.network.device),
            workers=self.loading.workers,
        )
        seen = predict(self.network, images, self._within, meter=meter)
        point = Point(
            thresholds=thresholds,
            top1=seen.top(1),
            macs=expected_macs(self.network, seen.rates, seen.busy),
            rates=seen.rates,
            ms=self._ms(seen.rates, seen.busy),
        )
        self._known.setdefault(key, point)
        return point, {site: torch.cat(odds) for site, odds in meter.odds.items()}

    def _ms(self, rates: Rates, busy: Mapping[str, float]) -> float | None:
        return None if isinstance(self.price, Macs) else self.price.of(self.network, rates, busy)

    def _key(self, thresholds: Thresholds) -> tuple[object, ...]:
        """What the decisions depend on; sets the thresholds."""
        set_thresholds(self.network, thresholds)
        key: list[tuple[object, ...]] = []
        for site, gate in self.network.site_gates.items():
            runs = methods.always_runs(gate)
            key.append((site, *(thresholds[site] if runs is None else runs)))
        return tuple(key)


class _Within:
    """A `Progress` whose tasks are parts of one that is open already."""

    def __init__(self, progress: Progress, task: Task) -> None:
        self.progress = progress
        self.open = task

    @property
    def stopping(self) -> bool:
        return self.progress.stopping

    def say(self, line: str) -> None:
        self.progress.say(line)

    @contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Task]:
        yield self.open
