"""What a calibration of exits comes to, and how checkpoints and reports hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gatecli.calibration.exits.certify import Certified
from gatecli.calibration.exits.samples import OperatingPoint
from gatecli.calibration.reference import Reference
from gatecli.network import Network
from gatecli.network.costs import site_rates
from gatecli.traced.recipe import finite

__all__ = ["ExitsCalibrated", "measured", "recorded", "stored", "thinned"]

RECORDED = 200  # points of the frontier that a checkpoint keeps, at most


@dataclass(frozen=True)
class ExitsCalibrated:
    """A copy of the network with its exits' thresholds chosen, and what they give on val.

    Attributes:
        network: The copy.
        point: Thresholds, top-1, mean MACs and shares.
        baseline_top1: Percent, with nobody leaving early.
        target_top1: What was asked for; None where a cost was limited instead.
        counted_from: What a drop that was asked for is counted from; else None.
        frontier: All Pareto points of the joint table, the cheapest first, the chosen one among
            them.
        rates: Each unit's rate by site, as a share of all samples.
        gap: By what share of its cost the point could be cheaper at most; None where that was not
            asked for.
        certified: Where a confidence was asked for.
        times: Milliseconds of leaving at each exit, and nowhere, where these were the cost; None
            where MACs were.
    """

    network: Network
    point: OperatingPoint
    baseline_top1: float
    target_top1: float | None
    counted_from: Reference | None
    frontier: list[OperatingPoint]
    rates: dict[str, list[float]]
    gap: float | None
    certified: Certified | None
    times: list[float] | None = None


def recorded(result: ExitsCalibrated, point: OperatingPoint) -> dict[str, Any]:
    """A point as checkpoints and reports hold it; an infinite threshold is null.

    Where latency was the cost, `ms` is the mean of a single image.
    """
    named = zip(result.network.site_exits, point.thresholds, strict=True)
    record: dict[str, Any] = {
        "thresholds": {site: finite(stored(value)) for site, value in named},
        "top1": point.top1,
        "macs": point.cost,
    }
    if result.times is not None:
        shared = zip(point.shares, result.times, strict=True)
        record["ms"] = sum(share * time for share, time in shared)
    record["shares"] = list(point.shares)
    return record


def stored(threshold: float) -> float:
    """A threshold as a checkpoint holds it, the lowest finite number in place of minus infinity.

    Everybody leaves at either, and JSON has no word for the latter.
    """
    return max(threshold, torch.finfo(torch.float32).min)


def measured(result: ExitsCalibrated) -> dict[str, Any]:
    """The results of the recipe's step."""
    kept = thinned(result.frontier, result.point)
    reference = result.counted_from
    counted = {} if reference is None else {"counted_from": asdict(reference)}
    return {
        "top1": result.point.top1,
        "baseline_top1": result.baseline_top1,
        **counted,
        "split": "val",
        "macs_expected": result.point.cost,
        "thresholds": recorded(result, result.point)["thresholds"],
        "rates": site_rates(result.rates),
        "unit_rates": result.rates,
        "gap": result.gap,
        "leaving_ms": result.times,
        "exit_frontier": [recorded(result, point) for point in kept],
    }


def thinned(points: Sequence[OperatingPoint], chosen: OperatingPoint) -> list[OperatingPoint]:
    """At most RECORDED points, evenly by rank, the ends and the chosen one among them."""
    count = min(RECORDED, len(points))
    last = len(points) - 1
    places = {round(index * last / max(1, count - 1)) for index in range(count)}
    return [point for index, point in enumerate(points) if index in places or point == chosen]
