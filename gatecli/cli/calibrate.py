"""gatecli calibrate: thresholds for gates; those for exits are in gatecli.cli.exits."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.cli import exits, several
from gatecli.cli.goal import Goal, said_asked
from gatecli.cli.images import open_data
from gatecli.cli.options import Checkpoint, Data, Loading, Output, reads_checkpoints, spreads
from gatecli.cli.parsing import remembered
from gatecli.cli.price import Where, priced, table_facts
from gatecli.cli.progress import Reporter
from gatecli.cli.render import MACS_FOOT, gmacs, percent, table
from gatecli.cli.session import Session
from gatecli.cli.workspace import output_of
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from gatecli.calibration import Calibrated, Point
    from gatecli.data import DataSet
    from gatecli.traced.latency import LatencyTable

__all__ = ["calibrate"]

COSTS = ("macs", "latency")
HEURISTIC = "gate by gate (a heuristic, not necessarily the best)"


@spreads
@reads_checkpoints
def calibrate(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    data: Data = None,
    goal: Goal = Goal(),
    per_gate: Annotated[
        bool,
        typer.Option(
            "--per-gate",
            help=(
                "Then a threshold for each site, by coordinate descent: a heuristic, and up to ten"
                " more passes over val for each."
            ),
        ),
    ] = False,
    refine: Annotated[
        int,
        typer.Option(help=("Passes over val at most, to look between the first thresholds tried.")),
    ] = 12,
    where: Where = Where(),
    loading: Loading = Loading(),
    output: Output = Output(),
) -> dict[str, Any]:
    """Choose thresholds: an asked accuracy on val at the least cost, or an asked cost."""
    from gatecli import calibration
    from gatecli.checkpoint import write

    if goal.target_acc is not None:
        calibration.check_target(goal.target_acc)
    path = session.checkpoint(checkpoint)
    target = output_of(path, "calibrated", output)
    network = session.open_gated(path, "calibrate")
    named = remembered(data)
    _check(goal, where, per_gate=per_gate, has_exits=bool(network.site_exits))
    several.check_untimed(timed=goal.in_ms)
    if network.site_exits:
        asked = exits.Asked(goal=goal, data=named, loading=loading)
        return exits.calibrate(session, network, path, target, asked)
    dataset = open_data(session, network, named)
    timed = None
    if goal.in_ms:
        network, timed = priced(session, network, where)
    result = calibration.calibrate(
        network,
        dataset,
        target_acc=goal.target_acc,
        max_drop=goal.max_drop,
        max_gmacs=goal.max_gmacs,
        max_ms=goal.max_ms,
        table=timed,
        per_gate=per_gate,
        refine=refine,
        batch_size=loading.batch_size,
        workers=loading.workers,
        progress=Reporter(session),
    )
    if session.is_main:
        write(result.network, target)
    _report(session, result)
    _say_notes(session, result, dataset)
    session.written(target)
    session.say(f"next: gatecli prune --data {shlex.quote(data or dataset.spec)}")
    facts = _json(result, path, target)
    return facts if timed is None else {**facts, **_timed(result, timed)}


def _check(goal: Goal, where: Where, *, per_gate: bool, has_exits: bool) -> None:
    """Refuse options for gates where a network has exits, and those for exits where it has none."""
    if has_exits and per_gate:
        raise SettingError(
            "--per-gate is for gates: the thresholds of exits are chosen together as it is"
        )
    where.check_used(
        used=goal.in_ms and not has_exits, needs="--max-ms, or --cost latency, and gates"
    )
    if not has_exits:
        _check_gates(goal)


def _check_gates(goal: Goal) -> None:
    from gatecli.calibration import Asked

    if goal.for_exits:
        raise SettingError(
            "gates are calibrated to --target-acc, --max-drop, --max-gmacs or --max-ms;"
            " --thresholds, --confidence and --reuse are for exits"
        )
    if goal.cost not in COSTS:
        raise SettingError(
            f"expected --cost to be one of {', '.join(COSTS)}, but got `{goal.cost}`"
        )
    if goal.max_gmacs is not None and goal.in_ms:
        raise SettingError("--max-gmacs is no budget for --cost latency: expected --max-ms")
    Asked(
        target_acc=goal.target_acc,
        max_drop=goal.max_drop,
        max_gmacs=goal.max_gmacs,
        max_ms=goal.max_ms,
    ).check()


def _report(session: Session, result: Calibrated) -> None:
    if not session.json_:
        _print_frontier(session, result)
    if result.per_gate:
        before = result.single
        session.say(
            f"{HEURISTIC}: from val top-1 {percent(before.top1)} at {_cost(before.macs, before.ms)}"
            f" with one threshold to {percent(result.top1)} at"
            f" {_cost(result.macs_expected, result.ms_expected)}"
        )
    session.say(
        f"val top-1 {percent(result.top1)} ({_asked(result)}"
        f"{percent(result.baseline_top1)} with all gates open),"
        f" {_cost(result.macs_expected, result.ms_expected)} of"
        f" {gmacs(result.network.macs_dense)} GMACs"
    )


def _say_notes(session: Session, result: Calibrated, dataset: DataSet) -> None:
    """Say what is odd about the accuracies measured."""
    from gatecli.calibration import open_notes
    from gatecli.stages.chance import chance_notes

    best = max(result.baseline_top1, result.top1)
    opened = open_notes(result.baseline_top1, result.present_top1)
    for line in [*opened, *chance_notes(best, dataset, "val")]:
        session.say(f"note: {line}")


def _cost(macs: float, ms: float | None) -> str:
    spent = f"{gmacs(macs)} GMACs"
    return spent if ms is None else f"{ms:.4g} ms, {spent}"


def _asked(result: Calibrated) -> str:
    asked = said_asked(result.target_top1, result.counted_from)
    return f"{asked}; " if asked else ""


def _print_frontier(session: Session, result: Calibrated) -> None:
    timed = ["ms"] if result.ms_expected is not None else []
    columns = ("<", "<threshold", "val top-1", *timed, "GMACs", "of all on")
    rows = [_row(point, result) for point in result.frontier]
    foot = f"* chosen, {_asked(result)}all gates open: {percent(result.baseline_top1)}. {MACS_FOOT}"
    table(session, "frontier on val", columns, rows, foot)


def _row(point: Point, result: Calibrated) -> tuple[str, ...]:
    share = point.macs / result.network.macs_dense
    return (
        "*" if point.thresholds == result.thresholds else "",
        _threshold(point),
        percent(point.top1),
        *([] if point.ms is None else [f"{point.ms:.4g}"]),
        gmacs(point.macs),
        f"{100 * share:.1f} %",
    )


def _threshold(point: Point) -> str:
    """The threshold of all gates, or the range of theirs."""
    least = min(min(units) for units in point.thresholds.values())
    most = max(max(units) for units in point.thresholds.values())
    return f"{least:.6g}" if least == most else f"{least:.6g} to {most:.6g}, by site"


def _timed(result: Calibrated, table: LatencyTable) -> dict[str, Any]:
    return {"ms_expected": result.ms_expected, "latency": table_facts(table)}


def _json(result: Calibrated, path: Path, target: Path) -> dict[str, Any]:
    from gatecli.calibration import site_values
    from gatecli.network.costs import site_rates

    network, counted_from = result.network, result.counted_from
    frontier = []
    for point in result.frontier:
        thresholds = site_values(point.thresholds)
        row = {"thresholds": thresholds, "top1": point.top1, "macs": point.macs}
        frontier.append(row if point.ms is None else {**row, "ms": point.ms})
    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": network.recipe.source.arch,
        "split": "val",
        "thresholds": site_values(result.thresholds),
        "top1": result.top1,
        "baseline_top1": result.baseline_top1,
        "target_top1": result.target_top1,
        "counted_from": None if counted_from is None else asdict(counted_from),
        "params": network.params,
        "macs_dense": network.macs_dense,
        "macs_expected": result.macs_expected,
        "rates": site_rates(result.rates),
        "per_gate": result.per_gate,
        "frontier": frontier,
    }
