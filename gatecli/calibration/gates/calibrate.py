"""Choose thresholds: an asked accuracy on val at the least cost, or the best for an asked cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gatecli.calibration.gates.goal import Asked, Budget, Goal, Target
from gatecli.calibration.gates.per_gate import descend
from gatecli.calibration.gates.points import (
    Loading,
    Measure,
    Point,
    Thresholds,
    pareto,
    set_thresholds,
    site_values,
)
from gatecli.calibration.gates.uniform import UniformSearch
from gatecli.calibration.reference import Reference, best_known
from gatecli.data import DataSet
from gatecli.errors import SettingError, TrainingError
from gatecli.gates.observe import strategy
from gatecli.network import Network
from gatecli.network.costs import site_rates
from gatecli.network.price import Macs, Milliseconds, Price
from gatecli.progress import Progress, silent
from gatecli.stages.price import known_table
from gatecli.traced.latency import LatencyTable
from gatecli.traced.recipe import Step

__all__ = ["Calibrated", "calibrate"]

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
        present_top1: Percent, with the thresholds that the network came with.
        target_top1: Percent asked for; None where a cost was limited.
        counted_from: What a drop that was asked for is counted from; else None.
        macs_expected: Mean MACs of an image.
        ms_expected: Mean milliseconds of one by the table, where that was the price; else None.
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
    present_top1: float
    target_top1: float | None
    counted_from: Reference | None
    macs_expected: float
    ms_expected: float | None
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
    max_gmacs: float | None = None,
    max_ms: float | None = None,
    table: LatencyTable | None = None,
    per_gate: bool = False,
    candidates: int = CANDIDATES,
    refine: int = REFINE,
    batch_size: int = 256,
    workers: int | None = None,
    progress: Progress = silent,
) -> Calibrated:
    """Choose the gates' thresholds on `data`'s val split.

    `network` itself, whose normalisation must be known (gatecli.stages.fit), stays as it is.

    Args:
        network: A gated network without exits.
        data: Chosen on its val split.
        target_acc: Val top-1 to reach, in percent.
        max_drop: The same, in points below the best that is known: the source's recorded baseline
            on these images, all gates open, or the gates as they were.
        max_gmacs: The highest val top-1 for at most so many GMACs an image.
        max_ms: For at most so many milliseconds. One of the four is given.
        table: What milliseconds are counted by, and what the price is in place of MACs; with
            `max_ms` and none, the one that the network keeps (gatecli.stages.price).
        per_gate: Go on with a threshold a site, by coordinate descent: a heuristic.
        candidates: Thresholds measured at first, a pass each; where no gate depends on the image,
            all that differ if there are few.
        refine: Passes at most to look between them.
        batch_size: Images at a time.
        workers: Processes that read images; None: as many as help.
        progress: Is told how far the passes are.

    Raises:
        SettingError: A value is out of range, or the target out of reach.
        TrainingError: There are no gates.
        DataError: The data does not serve.
        Interrupted: The user stopped it.
    """
    asked = Asked(target_acc=target_acc, max_drop=max_drop, max_gmacs=max_gmacs, max_ms=max_ms)
    asked.check()
    if candidates < 1 or refine < 0:
        raise SettingError(
            f"expected `candidates` to be at least 1 and `refine` at least 0, but got {candidates}"
            f" and {refine}"
        )
    _check_gates(network)
    price = _price(network, asked, table)
    if asked.budget is not None:
        Budget(price, asked.budget).check(network)
    copy = network.copy()
    with strategy(copy, "threshold"):
        loading = Loading(batch_size=batch_size, workers=workers)
        measure = Measure(copy, data.splits["val"], loading, price, progress)
        search = UniformSearch(measure, candidates)
        reference = _reference(network, data, asked, search)
        goal = _goal(price, asked, reference)
        search.run(goal, refine)
        single = goal.choose(measure.points)
        if single is None:
            raise SettingError(goal.out_of_reach(measure.points, network))
        chosen = descend(measure, single, goal) if per_gate else single
    set_thresholds(copy, chosen.thresholds)
    result = Calibrated(
        network=copy,
        thresholds=chosen.thresholds,
        top1=chosen.top1,
        baseline_top1=search.opened.top1,
        present_top1=search.present.top1,
        counted_from=reference,
        target_top1=goal.top1 if isinstance(goal, Target) else None,
        macs_expected=chosen.macs,
        ms_expected=chosen.ms,
        rates=chosen.rates,
        frontier=pareto([chosen, *measure.points]),
        single=single,
        per_gate=per_gate,
    )
    _record(result, data, asked, {"candidates": candidates, "refine": refine})
    return result


def _price(network: Network, asked: Asked, table: LatencyTable | None) -> Price:
    """What is counted: milliseconds where there is a table, or they are limited.

    Raises:
        SettingError: There is no table for these, or GMACs are limited beside one.
    """
    if asked.max_gmacs is not None and table is not None:
        raise SettingError("--max-gmacs is no budget for milliseconds: expected --max-ms")
    if table is None and asked.max_ms is not None:
        table = known_table(network)
        if table is None:
            raise SettingError(
                "--max-ms needs a latency table of this very network: gatecli price measures one"
            )
    return Macs() if table is None else Milliseconds(table)


def _reference(
    network: Network, data: DataSet, asked: Asked, search: UniformSearch
) -> Reference | None:
    """What a drop is counted from; None where none is asked for."""
    if asked.max_drop is None:
        return None
    opened = Reference(top1=search.opened.top1, of="all gates open")
    present = Reference(top1=search.present.top1, of="the gates as they were")
    return best_known(network.recipe, data, [opened, present])


def _goal(price: Price, asked: Asked, reference: Reference | None) -> Goal:
    """What is asked for."""
    if asked.budget is not None:
        return Budget(price, asked.budget)
    if reference is not None and asked.max_drop is not None:
        return Target.below(price, reference, asked.max_drop)
    assert asked.target_acc is not None  # one of the four is given
    return Target(price, asked.target_acc)


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


def _record(result: Calibrated, data: DataSet, asked: Asked, searched: Mapping[str, int]) -> None:
    network = result.network
    settings: dict[str, Any] = {"target_acc": result.target_top1, "per_gate": result.per_gate}
    settings.update(searched)
    settings["data"] = data.spec
    limits = {"max_gmacs": asked.max_gmacs, "max_ms": asked.max_ms}
    settings.update({name: value for name, value in limits.items() if value is not None})
    measured: dict[str, Any] = {
        "top1": result.top1,
        "baseline_top1": result.baseline_top1,
        "split": "val",
        "macs_expected": result.macs_expected,
        "thresholds": site_values(result.thresholds),
        "rates": site_rates(result.rates),
        "unit_rates": result.rates,
        "frontier": [_prices(point) for point in result.frontier],
    }
    if result.counted_from is not None:
        measured["counted_from"] = asdict(result.counted_from)
    if result.ms_expected is not None:
        measured["ms_expected"] = result.ms_expected
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


def _prices(point: Point) -> dict[str, float]:
    """A point of the frontier as the recipe keeps it: what it gives, not its thresholds."""
    kept = {"top1": point.top1, "macs": point.macs}
    return kept if point.ms is None else {**kept, "ms": point.ms}
