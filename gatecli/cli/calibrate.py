"""gatecli calibrate: thresholds for gates; those for exits are in gatecli.cli.exits."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.cli import exits
from gatecli.cli.goal import Goal
from gatecli.cli.images import open_data
from gatecli.cli.options import Checkpoint, Data, Loading, Output, reads_checkpoints
from gatecli.cli.parsing import remembered
from gatecli.cli.progress import Reporter
from gatecli.cli.render import MACS_FOOT, gmacs, percent, table
from gatecli.cli.session import Session
from gatecli.cli.workspace import output_of
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from gatecli.calibration import Calibrated, Point

__all__ = ["calibrate"]

HEURISTIC = "gate by gate (a heuristic, not necessarily the best)"


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
        typer.Option(
            help=(
                "Data-dependent gates: passes over val at most, to look between the first"
                " thresholds tried."
            )
        ),
    ] = 12,
    loading: Loading = Loading(),
    output: Output = Output(),
) -> dict[str, Any]:
    """Choose the gates' thresholds: an asked accuracy on the val split, at the fewest MACs."""
    from gatecli import calibration
    from gatecli.checkpoint import write
    from gatecli.stages.chance import chance_notes

    if goal.target_acc is not None:
        calibration.check_target(goal.target_acc)
    path = session.checkpoint(checkpoint)
    target = output_of(path, "calibrated", output)
    network = session.open_gated(path, "calibrate")
    where = remembered(data)
    _check(goal, per_gate=per_gate, has_exits=bool(network.site_exits))
    if network.site_exits:
        asked = exits.Asked(goal=goal, data=where, loading=loading)
        return exits.calibrate(session, network, path, target, asked)
    calibration.check_target(goal.target_acc, goal.max_drop)
    dataset = open_data(session, network, where)
    result = calibration.calibrate(
        network,
        dataset,
        target_acc=goal.target_acc,
        max_drop=goal.max_drop,
        per_gate=per_gate,
        refine=refine,
        batch_size=loading.batch_size,
        workers=loading.workers,
        progress=Reporter(session),
    )
    write(result.network, target)
    _report(session, result)
    for line in chance_notes(result.baseline_top1, dataset, "val"):
        session.say(f"note: {line}")
    session.written(target)
    session.say(f"next: gatecli prune --data {shlex.quote(data or dataset.spec)}")
    return _json(result, path, target)


def _check(goal: Goal, *, per_gate: bool, has_exits: bool) -> None:
    """Refuse options for gates where a network has exits, and those for exits where it has none."""
    if has_exits and per_gate:
        raise SettingError(
            "--per-gate is for gates: the thresholds of exits are chosen together as it is"
        )
    if not has_exits and goal.for_exits:
        raise SettingError(
            "gates are calibrated to --target-acc or --max-drop; --max-gmacs, --max-ms,"
            " --thresholds, --cost, --confidence and --reuse are for exits"
        )


def _report(session: Session, result: Calibrated) -> None:
    if not session.json_:
        _print_frontier(session, result)
    if result.per_gate:
        before = result.single
        session.say(
            f"{HEURISTIC}: from val top-1 {percent(before.top1)} at {gmacs(before.macs)} GMACs with"
            f" one threshold to {percent(result.top1)} at {gmacs(result.macs_expected)} GMACs"
        )
    session.say(
        f"val top-1 {percent(result.top1)} ({percent(result.target_top1)} asked,"
        f" {percent(result.baseline_top1)} with all gates open), {gmacs(result.macs_expected)}"
        f" GMACs of {gmacs(result.network.macs_dense)}"
    )


def _print_frontier(session: Session, result: Calibrated) -> None:
    columns = ("<", "<threshold", "val top-1", "GMACs", "of all on")
    rows = [_row(point, result) for point in result.frontier]
    foot = (
        f"* chosen, for {percent(result.target_top1)} asked; all gates open:"
        f" {percent(result.baseline_top1)}. {MACS_FOOT}"
    )
    table(session, "frontier on val", columns, rows, foot)


def _row(point: Point, result: Calibrated) -> tuple[str, ...]:
    share = point.macs / result.network.macs_dense
    return (
        "*" if point.thresholds == result.thresholds else "",
        _threshold(point),
        percent(point.top1),
        gmacs(point.macs),
        f"{100 * share:.1f} %",
    )


def _threshold(point: Point) -> str:
    """The threshold of all gates, or the range of theirs."""
    least = min(min(units) for units in point.thresholds.values())
    most = max(max(units) for units in point.thresholds.values())
    return f"{least:.6g}" if least == most else f"{least:.6g} to {most:.6g}, by site"


def _json(result: Calibrated, path: Path, target: Path) -> dict[str, Any]:
    from gatecli.calibration import site_values
    from gatecli.network.costs import site_rates

    network = result.network
    frontier = []
    for point in result.frontier:
        thresholds = site_values(point.thresholds)
        frontier.append({"thresholds": thresholds, "top1": point.top1, "macs": point.macs})
    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": network.recipe.source.arch,
        "split": "val",
        "thresholds": site_values(result.thresholds),
        "top1": result.top1,
        "baseline_top1": result.baseline_top1,
        "target_top1": result.target_top1,
        "params": network.params,
        "macs_dense": network.macs_dense,
        "macs_expected": result.macs_expected,
        "rates": site_rates(result.rates),
        "per_gate": result.per_gate,
        "frontier": frontier,
    }
