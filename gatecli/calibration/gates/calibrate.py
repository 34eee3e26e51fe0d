"""Choose the thresholds that reach an asked accuracy on val at the fewest expected MACs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gatecli.calibration.gates.per_gate import descend
from gatecli.calibration.gates.points import (
    Measure,
    Point,
    Thresholds,
    choose,
    pareto,
    set_thresholds,
    site_values,
)
from gatecli.calibration.gates.uniform import UniformSearch
from gatecli.data import DataSet
from gatecli.errors import SettingError, TrainingError
from gatecli.gates.observe import strategy
from gatecli.network import Network
from gatecli.network.costs import site_rates
from gatecli.progress import Progress, silent
from gatecli.traced.recipe import Step

__all__ = ["Calibrated", "calibrate", "check_target"]

CANDIDATES = 17  # passes over val
REFINE = 12  # passes more


@dataclass(frozen=True)
class Calibrated:
    """A copy of the network with the thresholds chosen, and what they give on val.

    Attributes:
        network: The copy.
        thresholds: Of each unit, by site.
        top1: Percent.
        baseline_top1: Percent, with all gates open.
        target_top1: Percent asked for.
        macs_expected: Mean MACs of an image.
        rates: Each unit's rate, by site.
        frontier: The points measured that no other one beats, the cheapest first; the chosen one
            is among them.
        single: What one threshold for all gates gave, before any descent gate by gate.
        per_gate: Whether there was such a descent.
    """

    network: Network
    thresholds: Thresholds
    top1: float
    baseline_top1: float
    target_top1: float
    macs_expected: float
    rates: dict[str, list[float]]
    frontier: list[Point]
    single: Point
    per_gate: bool


def calibrate(  # noqa: PLR0913 - its command's options, by keyword
    network: Network,
    data: DataSet,
    *,
    target_acc: float | None = None,
    max_drop: float | None = None,
    per_gate: bool = False,
    candidates: int = CANDIDATES,
    refine: int = REFINE,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress = silent,
) -> Calibrated:
    """Choose the gates' thresholds on `data`'s val split.

    `network` itself, whose normalisation must be known (gatecli.stages.fit), stays as it is.

    Args:
        network: A gated network without exits.
        data: Chosen on its val split.
        target_acc: Val top-1 to reach, in percent.
        max_drop: The same, in points below all gates open. One of the two is given.
        per_gate: Go on with a threshold a site, by coordinate descent: a heuristic.
        candidates: Thresholds measured at first, a pass each, where a gate depends on the image;
            elsewhere all that differ are.
        refine: Passes at most to look between them.
        batch_size: Images at a time.
        workers: Processes that read images.
        progress: Is told how far the passes are.

    Raises:
        SettingError: A value is out of range, or the target out of reach.
        TrainingError: There are no gates.
        DataError: The data does not serve.
        Interrupted: The user stopped it.
    """
    check_target(target_acc, max_drop)
    if candidates < 1 or refine < 0:
        raise SettingError(
            f"expected `candidates` to be at least 1 and `refine` at least 0, but got {candidates}"
            f" and {refine}"
        )
    _check_gates(network)
    copy = network.copy()
    with strategy(copy, "threshold"):
        measure = Measure(copy, data.splits["val"], batch_size, workers, progress)
        search = UniformSearch(measure)
        if target_acc is not None:
            target = target_acc
        else:
            target = max(0.0, search.opened.top1 - (max_drop or 0.0))
        search.run(target, candidates, refine)
        single = choose(measure.points, target)
        if single is None:
            raise SettingError(_out_of_reach(measure, target))
        chosen = descend(measure, single, target) if per_gate else single
    set_thresholds(copy, chosen.thresholds)
    result = Calibrated(
        network=copy,
        thresholds=chosen.thresholds,
        top1=chosen.top1,
        baseline_top1=search.opened.top1,
        target_top1=target,
        macs_expected=chosen.macs,
        rates=chosen.rates,
        frontier=pareto([chosen, *measure.points]),
        single=single,
        per_gate=per_gate,
    )
    _record(result, data, candidates, refine)
    return result


def _check_gates(network: Network) -> None:
    if not network.gated_by:
        raise TrainingError(
            f"{network.recipe.source.file or 'the network'} has no gates to calibrate: attach a"
            " method first (gatecli attach CHECKPOINT --method NAME)"
        )
    if network.site_exits:
        raise SettingError(
            "the network has exits, whose thresholds are no probabilities: gatecli.calibrate_exits"
            " chooses them"
        )


def check_target(target_acc: float | None, max_drop: float | None = None) -> None:
    """Check that exactly one is given, in range.

    Args:
        target_acc: A percentage.
        max_drop: Points of one.

    Raises:
        SettingError: It is not so.
    """
    if (target_acc is None) == (max_drop is None):
        raise SettingError(
            "expected one of --target-acc and --max-drop, but got"
            f" {'neither' if target_acc is None else 'both'}"
        )
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise SettingError(
            f"expected --max-drop to be between 0 and 100 points, but got {max_drop}"
        )
    if target_acc is None:
        return
    if not 0 <= target_acc <= 100:
        raise SettingError(
            "expected --target-acc to be a top-1 accuracy between 0 and 100 percent, but got"
            f" {target_acc}"
        )
    if 0 < target_acc < 1:
        raise SettingError(
            f"expected --target-acc in percent, but got {target_acc:g}: was {100 * target_acc:g}"
            " meant?"
        )


def _out_of_reach(measure: Measure, target: float) -> str:
    highest = max(measure.points, key=lambda point: (point.top1, -point.macs))
    reachable = math.floor(highest.top1 * 100) / 100  # rounded up, it would be out of reach again
    return (
        f"no threshold measured reaches --target-acc {target:g} on val: the highest top-1 is"
        f" {reachable:.2f}, at {highest.macs / 1e9:.4g} GMACs of"
        f" {measure.network.macs_dense / 1e9:.4g}; ask for at most that, or train on with gatecli"
        " finetune"
    )


def _record(result: Calibrated, data: DataSet, candidates: int, refine: int) -> None:
    network = result.network
    settings = {
        "target_acc": result.target_top1,
        "per_gate": result.per_gate,
        "candidates": candidates,
        "refine": refine,
        "data": data.spec,
    }
    measured = {
        "top1": result.top1,
        "baseline_top1": result.baseline_top1,
        "split": "val",
        "macs_expected": result.macs_expected,
        "thresholds": site_values(result.thresholds),
        "rates": site_rates(result.rates),
        "unit_rates": result.rates,
    }
    recipe = network.recipe.with_step(Step("calibrate", settings, measured))
    if recipe.baseline is None and recipe.last("prune") is None:
        # gates open and nothing trained or removed: the source's own accuracy
        own = {
            "top1": result.baseline_top1,
            "split": "val",
            "data": data.spec,
            "images": network.input.key(),
        }
        recipe = replace(recipe, baseline=own)
    network.recipe = recipe
