"""Calibrate a network with exits: one pass over val, then all thresholds, chosen at once.

The layer gates stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gatecli.calibration.exits.certify import Certified, certify
from gatecli.calibration.exits.gather import gather, rates_at
from gatecli.calibration.exits.goal import Goal
from gatecli.calibration.exits.latency import leaving_times
from gatecli.calibration.exits.result import ExitsCalibrated, measured, stored
from gatecli.calibration.exits.samples import OperatingPoint, Samples, measure, most_accurate
from gatecli.calibration.exits.search import search
from gatecli.calibration.exits.table import frontier
from gatecli.calibration.reference import Reference, best_known
from gatecli.data import DataSet, batches
from gatecli.errors import SettingError, TrainingError
from gatecli.network import Network
from gatecli.progress import Progress, silent
from gatecli.traced.recipe import Step

__all__ = ["Choice", "calibrate_exits"]


@dataclass(frozen=True)
class Choice:
    """The point taken.

    Attributes:
        point: Its cost in the samples' own unit.
        gap: What the search leaves, if it was one; see ExitsCalibrated.
        certified: The certificate, if one was asked for.
    """

    point: OperatingPoint
    gap: float | None = None
    certified: Certified | None = None


def calibrate_exits(  # noqa: PLR0913 - its command's options, by keyword
    network: Network,
    data: DataSet,
    *,
    target_acc: float | None = None,
    max_drop: float | None = None,
    max_gmacs: float | None = None,
    max_ms: float | None = None,
    confidence: float | None = None,
    cost: str = "macs",
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    workers: int | None = None,
    progress: Progress = silent,
) -> ExitsCalibrated:
    """Choose the exits' thresholds on `data`'s val split; `network` itself stays as it is.

    Exactly one of the first four, or `thresholds`, is given.

    Args:
        network: With trained exits, its input normalisation known (see gatecli.stages.fit).
        data: Chosen on its val split.
        target_acc: Val top-1 to reach, in percent, at the least cost.
        max_drop: The same, in points below the best that is known: the source's recorded baseline
            on these images, or nobody leaving early.
        max_gmacs: The highest val top-1 for at most so many GMACs an image.
        max_ms: For at most so many milliseconds, with `cost` latency.
        confidence: The accuracy shall hold on unseen data with this probability (see
            gatecli.calibration.exits.certify); with a target.
        cost: "macs", or "latency": milliseconds that single images take on this machine, see
            gatecli.calibration.exits.latency.
        thresholds: Of exits by name, to take as they are and measure: infinity lets nobody leave.
            Exits that are not named keep theirs.
        seed: Of the halves that a confidence is tested with.
        batch_size: Images at a time.
        workers: Processes that read images; None: as many as help.
        progress: Is told how far the pass is.

    Raises:
        SettingError: A value is out of range or out of reach.
        TrainingError: There are no trained exits.
        DataError: The data does not serve.
        Interrupted: The user stopped it.
    """
    goal = Goal(
        target_acc=target_acc,
        max_drop=max_drop,
        max_gmacs=max_gmacs,
        max_ms=max_ms,
        confidence=confidence,
        cost=cost,
        thresholds=thresholds,
    )
    _check(network, goal)
    by_hand = goal.by_hand(_thresholds(network))
    copy = network.copy().eval()
    seen, decisions = gather(copy, data, batch_size, workers, progress)
    times = leaving_times(copy, _first_images(copy, data)) if cost == "latency" else None
    priced = seen if times is None else Samples.of(seen.margins, seen.correct, times)
    baseline = 100 * seen.correct[:, -1].double().mean().item()
    reference = _reference(network, data, goal, baseline)
    points = frontier(priced)
    choice = (
        _choose(priced, points, goal, reference, seed)
        if by_hand is None
        else Choice(measure(priced, by_hand))
    )
    for threshold, gate in zip(choice.point.thresholds, copy.site_exits.values(), strict=True):
        gate.threshold.fill_(stored(threshold))
    in_macs = _with(points, choice.point)
    point = choice.point
    if times is not None:
        in_macs = [measure(seen, each.thresholds) for each in in_macs]
        point = measure(seen, point.thresholds)
    result = ExitsCalibrated(
        network=copy,
        point=point,
        baseline_top1=baseline,
        target_top1=goal.target_top1(reference),
        counted_from=reference,
        frontier=in_macs,
        rates=rates_at(copy, decisions, seen, point),
        gap=choice.gap,
        certified=choice.certified,
        times=None if times is None else times.tolist(),
    )
    settings = {**goal.recorded(), "data": data.spec}
    copy.recipe = copy.recipe.with_step(Step("calibrate", settings, measured(result)))
    return result


def _check(network: Network, goal: Goal) -> None:
    exits = network.site_exits.values()
    if not exits:
        raise TrainingError(
            "the network has no exits to calibrate: attach some first (gatecli attach --method"
            " dgate)"
        )
    goal.check()
    if not any(gate.trained for gate in exits):
        raise TrainingError(
            "the exits have not been trained yet: gatecli finetune --data ... first"
        )


def _thresholds(network: Network) -> dict[str, float]:
    """The exits' thresholds as they are, by site."""
    return {site: gate.threshold.item() for site, gate in network.site_exits.items()}


def _reference(network: Network, data: DataSet, goal: Goal, baseline: float) -> Reference | None:
    """What a drop is counted from; None where none is asked for."""
    if goal.max_drop is None:
        return None
    staying = Reference(top1=baseline, of="nobody leaving early")
    return best_known(network.recipe, data, [staying])


def _choose(
    samples: Samples,
    points: list[OperatingPoint],
    goal: Goal,
    reference: Reference | None,
    seed: int,
) -> Choice:
    """The thresholds to take: along `points`, the samples' frontier, or by a search.

    Raises:
        SettingError: The goal is out of reach.
    """
    target = goal.target_top1(reference)
    if target is None:
        return Choice(_within_budget(points, goal))
    if goal.confidence is not None:
        certified = certify(samples, target, goal.confidence, seed)
        return Choice(certified.point, certified=certified)
    found = search(samples, target)
    if found is None:
        highest = math.floor(points[-1].top1 * 100) / 100
        raise SettingError(
            f"no thresholds reach {goal.said(reference)} on val: the highest top-1 is {highest:.2f}"
        )
    return Choice(found.point, gap=found.gap)


def _within_budget(points: list[OperatingPoint], goal: Goal) -> OperatingPoint:
    in_ms = goal.max_ms is not None
    budget = goal.max_ms if in_ms else goal.max_gmacs
    unit = "ms" if in_ms else "GMACs"
    scale = 1.0 if in_ms else 1e9
    assert budget is not None  # a goal without a target has a budget
    point = most_accurate(points, budget * scale)
    if point is None:
        raise SettingError(
            f"{budget:g} {unit} are out of reach: the cheapest thresholds take"
            f" {points[0].cost / scale:.4g} {unit}, at val top-1 {points[0].top1:.2f}"
        )
    return point


def _first_images(network: Network, data: DataSet) -> Tensor:
    x, _ = next(iter(batches(data.splits["val"], input=network.input, batch_size=8)))
    return x


def _with(points: list[OperatingPoint], chosen: OperatingPoint) -> list[OperatingPoint]:
    """The frontier with the chosen point in its place, if it is not there."""
    if chosen in points:
        return points
    others = [point for point in points if not _beats(chosen, point)]
    return sorted([*others, chosen], key=lambda point: (point.cost, point.top1))


def _beats(one: OperatingPoint, other: OperatingPoint) -> bool:
    return one.cost <= other.cost and one.top1 >= other.top1
