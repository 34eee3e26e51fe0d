"""calibrate a network with exits.

One pass over val, then the thresholds, chosen among all of them at once; the layer gates stay as
they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatecli.calibration.certify import Certified, certify
from gatecli.calibration.exit_search import search
from gatecli.calibration.exit_table import frontier
from gatecli.calibration.exits import OperatingPoint, Samples, leaves, measure, most_accurate
from gatecli.calibration.latency import leaving_times
from gatecli.costs import leaving_costs, site_rates
from gatecli.data import DataSet, batches, steps
from gatecli.errors import SettingError, TrainingError
from gatecli.inference import ask_exits
from gatecli.network import Network
from gatecli.probe import require_finite
from gatecli.progress import Progress, silent
from gatecli.record import record_gates
from gatecli.traced.recipe import Step, finite

COSTS = ("macs", "latency")
HIGHEST = {"target_acc": 100.0, "max_drop": 100.0, "confidence": 1.0}
RECORDED = 200  # points of the frontier that a checkpoint keeps, at most


@dataclass(frozen=True)
class ExitsCalibrated:
    """A copy of the network with its exits' thresholds chosen, and what they give on val.

    `point`: thresholds, top-1, mean MACs and shares; `frontier`: all Pareto points of the joint
    table, the cheapest first, the chosen one among them;
    `gap`: by what share of its cost the point could be cheaper at most, None where it was not asked
    for; `certified`: with a confidence.
    `times`: where milliseconds were the price, what leaving at each exit, and nowhere, takes; None
    where MACs were.
    """

    network: Network
    point: OperatingPoint
    baseline_top1: float
    target_top1: float | None
    frontier: list[OperatingPoint]
    rates: dict[str, list[float]]
    gap: float | None
    certified: Certified | None
    times: list[float] | None = None


def calibrate_exits(
    network: Network,
    data: DataSet,
    *,
    target_acc: float | None = None,
    max_drop: float | None = None,
    max_gmacs: float | None = None,
    max_ms: float | None = None,
    confidence: float | None = None,
    cost: str = "macs",
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress = silent,
) -> ExitsCalibrated:
    """Choose the exits' thresholds on `data`'s val split; `network` itself stays as it is.

    Args: exactly one of
        target_acc: val top-1 to reach, in percent, at the least cost; max_drop: the same, in points
            below the network with nobody leaving early;
        max_gmacs: the highest val top-1 for at most so many GMACs an image; max_ms: for at most so
            many milliseconds, with `cost` latency.
        confidence: the accuracy shall hold on unseen data with this probability (see
            gatecli.calibration.certify); with a target.
        cost: "macs", or "latency": milliseconds that single images take on this machine, see
            gatecli.calibration.latency.
    Raises: SettingError for values out of range or out of reach; TrainingError without trained
    exits; DataError; Interrupted.
    """
    _check(
        network,
        {"target_acc": target_acc, "max_drop": max_drop, "max_gmacs": max_gmacs, "max_ms": max_ms},
        confidence,
        cost,
    )
    copy = network.copy().eval()
    seen, decisions = gather(copy, data, batch_size, workers, progress)
    times = leaving_times(copy, _first_images(copy, data)) if cost == "latency" else None
    priced = seen if times is None else Samples.of(seen.margins, seen.correct, times)
    baseline = 100 * seen.correct[:, -1].double().mean().item()
    target = target_acc if max_drop is None else baseline - max_drop
    points = frontier(priced)
    point, gap, certified = _choose(priced, points, target, max_gmacs, max_ms, confidence, seed)
    for threshold, exit_ in zip(point.thresholds, copy.site_exits.values(), strict=True):
        exit_.threshold.fill_(_stored(threshold))
    in_macs = [
        each if times is None else measure(seen, each.thresholds) for each in _with(points, point)
    ]
    point = next(each for each in in_macs if each.thresholds == point.thresholds)
    result = ExitsCalibrated(
        copy,
        point,
        baseline,
        target,
        in_macs,
        _rates(copy, decisions, seen, point),
        gap,
        certified,
        None if times is None else times.tolist(),
    )
    settings = {
        "target_acc": target_acc,
        "max_drop": max_drop,
        "max_gmacs": max_gmacs,
        "max_ms": max_ms,
        "confidence": confidence,
        "cost": cost,
        "data": data.spec,
    }
    copy.recipe = copy.recipe.with_step(Step("calibrate", settings, _measured(result)))
    return result


def _choose(
    samples: Samples,
    points: list[OperatingPoint],
    target: float | None,
    max_gmacs: float | None,
    max_ms: float | None,
    confidence: float | None,
    seed: int,
) -> tuple[OperatingPoint, float | None, Certified | None]:
    """The point to take; the gap that the search leaves and the certificate, if there are such."""
    unit, scale = ("ms", 1.0) if max_ms is not None else ("GMACs", 1e9)
    if target is None:
        budget = max_ms if max_ms is not None else max_gmacs
        assert budget is not None
        point = most_accurate(points, budget * scale)
        if point is None:
            raise SettingError(
                f"{budget:g} {unit} are out of reach: the cheapest thresholds take"
                f" {points[0].cost / scale:.4g} {unit}, at val top-1 {points[0].top1:.2f}"
            )
        return point, None, None
    if confidence is not None:
        certified = certify(samples, target, confidence, seed)
        return certified.point, None, certified
    found = search(samples, target)
    if found is None:
        raise SettingError(
            f"val top-1 {target:g} is out of reach: the highest is"
            f" {math.floor(points[-1].top1 * 100) / 100:.2f}"
        )
    return found.point, found.gap, None


def _first_images(network: Network, data: DataSet) -> Tensor:
    x, _ = next(iter(batches(data.splits["val"], input=network.input, batch_size=8)))
    return x


def _check(
    network: Network, asked: Mapping[str, float | None], confidence: float | None, cost: str
) -> None:
    if not network.site_exits:
        raise TrainingError(
            "the network has no exits to calibrate: attach some first (gatecli attach --method"
            " dgate)"
        )
    given = [option(name) for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise SettingError(
            f"expected one of {', '.join(map(option, asked))}, but got"
            f" {' and '.join(given) or 'none'}"
        )
    for name, value in {**asked, "confidence": confidence}.items():
        high = HIGHEST.get(name, math.inf)
        if value is not None and not 0 <= value <= high:
            raise SettingError(
                f"expected {option(name)} to be between 0 and {high:g}, but got {value}"
            )
    if confidence is not None and given[0] in ("--max-gmacs", "--max-ms"):
        raise SettingError(
            "--confidence is about an accuracy: expected it with --target-acc or --max-drop, but"
            f" got {given[0]}"
        )
    if cost not in COSTS:
        raise SettingError(f"expected --cost to be one of {', '.join(COSTS)}, but got `{cost}`")
    if (cost, given[0]) in (("macs", "--max-ms"), ("latency", "--max-gmacs")):
        raise SettingError(
            f"{given[0]} is no budget for --cost {cost}: "
            + ("add --cost latency" if cost == "macs" else "expected --max-ms")
        )
    if not any(exit_.trained for exit_ in network.site_exits.values()):
        raise TrainingError(
            "the exits have not been trained yet: gatecli finetune --data ... first"
        )


def option(name: str) -> str:
    """max_ms -> --max-ms."""
    return "--" + name.replace("_", "-")


def gather(
    network: Network, data: DataSet, batch_size: int, workers: int, progress: Progress
) -> tuple[Samples, dict[str, Tensor]]:
    """Every exit's score of every image of val, who is right, and what leaving there costs.

    And the other gates' decisions (N, units) with nobody leaving.
    """
    split, scores, right, decided = (
        data.splits["val"],
        list[Tensor](),
        list[Tensor](),
        dict[str, list[Tensor]](),
    )
    with (
        torch.no_grad(),
        record_gates(network) as record,
        progress.task("scores on val", steps(split, batch_size)) as task,
    ):
        for x, y in batches(split, input=network.input, batch_size=batch_size, workers=workers):
            record.clear()
            answers, sure, logits = ask_exits(network, x)
            require_finite(logits)
            scores.append(torch.stack(list(sure.values()), 1).float().cpu())
            right.append(
                torch.stack([each.argmax(1).cpu() == y for each in (*answers.values(), logits)], 1)
            )
            for site, z in record.latest().items():
                decided.setdefault(site, []).append(z.cpu())
            task.advance()
    decisions = {site: torch.cat(each) for site, each in decided.items()}
    costs = leaving_costs(network, decisions)
    samples = Samples.of(torch.cat(scores), torch.cat(right), costs if len(costs) > 1 else costs[0])
    return samples, decisions


def _rates(
    network: Network, decisions: Mapping[str, Tensor], samples: Samples, point: OperatingPoint
) -> dict[str, list[float]]:
    """Each site's rate as a share of all samples.

    One that has left before it runs nothing there.
    """
    exits, left = list(network.site_exits), leaves(samples.margins, point.thresholds)
    rates = {site: [share] for site, share in zip(exits, point.shares, strict=False)}
    for site, z in decisions.items():
        before = torch.tensor(
            [exits.index(name) for name in network.before(site)], dtype=left.dtype
        )
        comes = ~torch.isin(left, before)
        rates[site] = (z.double() * comes[:, None]).mean(0).tolist()
    return rates


def _with(points: list[OperatingPoint], chosen: OperatingPoint) -> list[OperatingPoint]:
    """The frontier with the chosen point in its place, if it is not there."""
    if chosen in points:
        return points
    others = [
        point for point in points if not (chosen.cost <= point.cost and chosen.top1 >= point.top1)
    ]
    return sorted([*others, chosen], key=lambda point: (point.cost, point.top1))


def _stored(threshold: float) -> float:
    """Everybody leaves at minus infinity, for which JSON has no word, and at the lowest finite
    number.
    """
    return max(threshold, torch.finfo(torch.float32).min)


def recorded(result: ExitsCalibrated, point: OperatingPoint) -> dict[str, Any]:
    """A point as checkpoints and reports hold it; an infinite threshold is null.

    `ms`, where latency was the price: the mean of a single image.
    """
    thresholds = {
        site: finite(_stored(value))
        for site, value in zip(result.network.site_exits, point.thresholds, strict=True)
    }
    ms = (
        {}
        if result.times is None
        else {
            "ms": sum(share * time for share, time in zip(point.shares, result.times, strict=True))
        }
    )
    return {
        "thresholds": thresholds,
        "top1": point.top1,
        "macs": point.cost,
        **ms,
        "shares": list(point.shares),
    }


def _measured(result: ExitsCalibrated) -> dict[str, Any]:
    chosen = recorded(result, result.point)
    return {
        "top1": result.point.top1,
        "baseline_top1": result.baseline_top1,
        "split": "val",
        "macs_expected": result.point.cost,
        "thresholds": chosen["thresholds"],
        "rates": site_rates(result.rates),
        "unit_rates": result.rates,
        "gap": result.gap,
        "leaving_ms": result.times,
        "exit_frontier": [
            recorded(result, point) for point in thinned(result.frontier, result.point)
        ],
    }


def thinned(points: Sequence[OperatingPoint], chosen: OperatingPoint) -> list[OperatingPoint]:
    """At most RECORDED points, evenly by rank, the ends and the chosen one among them."""
    places = {
        round(index * (len(points) - 1) / max(1, min(RECORDED, len(points)) - 1))
        for index in range(min(RECORDED, len(points)))
    }
    return [point for index, point in enumerate(points) if index in places or point == chosen]
