"""calibrate a network with exits: one pass over val, then the thresholds, chosen among all of them at once; the layer gates stay as they are."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatecli.calibration.certify import Certified, certify
from gatecli.calibration.exit_search import search
from gatecli.calibration.exit_table import frontier
from gatecli.calibration.exits import OperatingPoint, Samples, most_accurate
from gatecli.costs import leaving_costs, site_rates
from gatecli.data import DataSet, batches, steps
from gatecli.errors import SettingError, TrainingError
from gatecli.network import Network
from gatecli.progress import Progress, silent
from gatecli.recipe import Step, finite
from gatecli.record import record_gates

RECORDED = 200  # points of the frontier that a checkpoint keeps, at most


@dataclass(frozen=True)
class ExitsCalibrated:
    """A copy of the network with its exits' thresholds chosen, and what they give on val.

    `point`: thresholds, top-1, mean MACs and shares; `frontier`: all Pareto points of the joint table, the cheapest first, the chosen one among them;
    `gap`: by what share of its cost the point could be cheaper at most, None where it was not asked for; `certified`: with a confidence.
    """

    network: Network
    point: OperatingPoint
    baseline_top1: float
    target_top1: float | None
    frontier: list[OperatingPoint]
    rates: dict[str, list[float]]
    gap: float | None
    certified: Certified | None


def calibrate_exits(
    network: Network,
    data: DataSet,
    *,
    target_acc: float | None = None,
    max_drop: float | None = None,
    max_gmacs: float | None = None,
    confidence: float | None = None,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress = silent,
) -> ExitsCalibrated:
    """Choose the exits' thresholds on `data`'s val split; `network` itself stays as it is.

    Args: exactly one of
        target_acc: val top-1 to reach, in percent, at the fewest MACs; max_drop: the same, in points below the network with nobody leaving early;
        max_gmacs: the highest val top-1 for at most so many GMACs an image.
        confidence: the accuracy shall hold on unseen data with this probability (see gatecli.calibration.certify); with a target.
    Raises: SettingError for values out of range or out of reach; TrainingError without trained exits; DataError; Interrupted.
    """
    _check(network, target_acc, max_drop, max_gmacs, confidence)
    copy = network.copy().eval()
    seen, rates = gather(copy, data, batch_size, workers, progress)
    baseline = 100 * seen.correct[:, -1].double().mean().item()
    target = target_acc if max_drop is None else baseline - max_drop
    points, certified, gap = frontier(seen), None, None
    if target is None:
        assert max_gmacs is not None
        point = most_accurate(points, max_gmacs * 1e9)
        if point is None:
            raise SettingError(f"--max-gmacs {max_gmacs:g} is out of reach: the cheapest thresholds take {points[0].cost / 1e9:.4g} GMACs, at val top-1 {points[0].top1:.2f}")
    elif confidence is not None:
        certified = certify(seen, target, confidence, seed)
        point = certified.point
    else:
        found = search(seen, target)
        if found is None:
            best = points[-1]
            raise SettingError(f"val top-1 {target:g} is out of reach: the highest is {math.floor(best.top1 * 100) / 100:.2f}, at {best.cost / 1e9:.4g} GMACs of {copy.macs_dense / 1e9:.4g}")
        point, gap = found.point, found.gap
    for threshold, exit_ in zip(point.thresholds, copy.site_exits.values(), strict=True):
        exit_.threshold.fill_(_stored(threshold))
    result = ExitsCalibrated(copy, point, baseline, target, _with(points, point), _rates(copy, rates, point), gap, certified)
    settings = {"target_acc": target_acc, "max_drop": max_drop, "max_gmacs": max_gmacs, "confidence": confidence, "data": data.spec}
    copy.recipe = copy.recipe.with_step(Step("calibrate", settings, _measured(result)))
    return result


def _check(network: Network, target_acc: float | None, max_drop: float | None, max_gmacs: float | None, confidence: float | None) -> None:
    if not network.site_exits:
        raise TrainingError("the network has no exits to calibrate: attach some first (gatecli attach --method dgate)")
    if sum(value is not None for value in (target_acc, max_drop, max_gmacs)) != 1:
        raise SettingError("expected one of --target-acc, --max-drop and --max-gmacs")
    for name, value, high in (("--target-acc", target_acc, 100.0), ("--max-drop", max_drop, 100.0), ("--max-gmacs", max_gmacs, math.inf), ("--confidence", confidence, 1.0)):
        if value is not None and not 0 <= value <= high:
            raise SettingError(f"expected {name} to be between 0 and {high:g}, but got {value}")
    if confidence is not None and max_gmacs is not None:
        raise SettingError("--confidence is about an accuracy: expected it with --target-acc or --max-drop, but got --max-gmacs")
    if network.recipe.last("finetune", "attach") is not None and all(not bool(exit_.get_parameter("linear.weight").any()) for exit_ in network.site_exits.values()):
        raise TrainingError("the exits have not been trained yet: gatecli finetune --data ... first")


def gather(network: Network, data: DataSet, batch_size: int, workers: int, progress: Progress) -> tuple[Samples, dict[str, list[float]]]:
    """Every exit's score of every image of val, who is right, and what leaving there costs; and the layer gates' rates with nobody leaving."""
    split, scores, right, decided = data.splits["val"], list[Tensor](), list[Tensor](), dict[str, list[Tensor]]()
    with torch.no_grad(), record_gates(network) as record, progress.task("scores on val", steps(split, batch_size)) as task:
        for x, y in batches(split, input=network.input, batch_size=batch_size, workers=workers):
            record.clear()
            values, logits = network.at_exits(x.to(network.device))
            heads = {site: exit_.classify(values[site]) for site, exit_ in network.site_exits.items()}
            scores.append(torch.cat([exit_.score(heads[site]) for site, exit_ in network.site_exits.items()], 1).float().cpu())
            right.append(torch.stack([head.argmax(1).cpu() == y for head in (*heads.values(), logits)], 1))
            for site, z in record.latest().items():
                decided.setdefault(site, []).append(z.cpu())
            task.advance()
    decisions = {site: torch.cat(each) for site, each in decided.items()}
    costs = leaving_costs(network, decisions)
    samples = Samples.of(torch.cat(scores), torch.cat(right), costs if len(costs) > 1 else costs[0])
    return samples, {site: z.double().mean(0).tolist() for site, z in decisions.items()}


def _rates(network: Network, gates: dict[str, list[float]], point: OperatingPoint) -> dict[str, list[float]]:
    """Each site's rate as a share of all samples; those of layer gates taken to be the same for all who come to them."""
    exits = {site: [share] for site, share in zip(network.site_exits, point.shares, strict=False)}
    come = {site: 1 - sum(exits[name][0] for name in network.before(site)) for site in gates}
    return {**{site: [come[site] * rate for rate in units] for site, units in gates.items()}, **exits}


def _with(points: list[OperatingPoint], chosen: OperatingPoint) -> list[OperatingPoint]:
    """The frontier with the chosen point in its place, if it is not there."""
    if chosen in points:
        return points
    others = [point for point in points if not (chosen.cost <= point.cost and chosen.top1 >= point.top1)]
    return sorted([*others, chosen], key=lambda point: (point.cost, point.top1))


def _stored(threshold: float) -> float:
    """Everybody leaves at minus infinity, for which JSON has no word, and at the lowest finite number."""
    return max(threshold, torch.finfo(torch.float32).min)


def recorded(network: Network, point: OperatingPoint) -> dict[str, Any]:
    """A point as checkpoints and reports hold it; an infinite threshold is null."""
    thresholds = {site: finite(_stored(value)) for site, value in zip(network.site_exits, point.thresholds, strict=True)}
    return {"thresholds": thresholds, "top1": point.top1, "macs": point.cost, "shares": list(point.shares)}


def _measured(result: ExitsCalibrated) -> dict[str, Any]:
    chosen = recorded(result.network, result.point)
    return {
        "top1": result.point.top1, "baseline_top1": result.baseline_top1, "split": "val", "macs_expected": result.point.cost, "thresholds": chosen["thresholds"],
        "rates": site_rates(result.rates), "unit_rates": result.rates, "gap": result.gap,
        "exit_frontier": [recorded(result.network, point) for point in thinned(result.frontier, result.point)],
    }  # fmt: skip


def thinned(points: Sequence[OperatingPoint], chosen: OperatingPoint) -> list[OperatingPoint]:
    """At most RECORDED points, evenly by rank, the ends and the chosen one among them."""
    places = {round(index * (len(points) - 1) / max(1, min(RECORDED, len(points)) - 1)) for index in range(min(RECORDED, len(points)))}
    return [point for index, point in enumerate(points) if index in places or point == chosen]
