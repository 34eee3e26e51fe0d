"""gatecli calibrate, for a network with exits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatecli.cli.frontier import Figures, print_frontier, spell_thresholds
from gatecli.cli.goal import Goal, said_asked
from gatecli.cli.images import open_data
from gatecli.cli.options import Loading
from gatecli.cli.parsing import parse_thresholds
from gatecli.cli.progress import Reporter
from gatecli.cli.render import gmacs, percent
from gatecli.cli.session import Session
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from gatecli.calibration.exits.result import ExitsCalibrated
    from gatecli.network import Network

__all__ = ["Asked", "calibrate"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What calibrate shall reach, and with which images.

    Attributes:
        goal: What to reach.
        data: The data set; None: the one remembered.
        loading: How its images are read.
    """

    goal: Goal
    data: str | None
    loading: Loading


@dataclass(frozen=True, kw_only=True)
class Found:
    """The network with its thresholds, their figures, and what else there is to say."""

    network: Network
    figures: Figures
    notes: list[str]


def calibrate(
    session: Session, network: Network, path: Path, out: Path, asked: Asked
) -> dict[str, Any]:
    """Choose the exits' thresholds by data, or along a frontier that is recorded.

    Args:
        session: The command's.
        network: What `path` holds.
        path: The checkpoint read.
        out: Where to write.
        asked: The goal, and the images to reach it on.

    Returns:
        The command's JSON.

    Raises:
        SettingError: No thresholds reach the goal, or --reuse cannot be combined with it.
    """
    from gatecli.checkpoint import write

    found = _reused(network, asked) if asked.goal.reuse else _measured(session, network, asked)
    if session.is_main:
        write(found.network, out)
    figures = found.figures
    if not session.json_ and figures.frontier:
        print_frontier(session, figures)
    told = said_asked(figures.target_top1, figures.counted_from)
    target = f" ({told})" if told else ""
    spelled = spell_thresholds(figures.thresholds)
    session.say(
        f"val top-1 {percent(figures.top1)}{target}, {gmacs(figures.macs_expected)} GMACs of"
        f" {gmacs(network.macs_dense)}{_time(figures)}; thresholds {spelled}"
    )
    for line in found.notes:
        session.say(line)
    session.written(out)
    session.say("next: gatecli profile")
    return {
        "checkpoint": str(path),
        "out": str(out),
        "arch": network.recipe.source.arch,
        "split": "val",
        "params": found.network.params,
        "macs_dense": found.network.macs_dense,
        **asdict(figures),
    }


def _measured(session: Session, network: Network, asked: Asked) -> Found:
    from gatecli.calibration.exits.calibrate import calibrate_exits
    from gatecli.stages.chance import chance_notes

    goal = asked.goal
    dataset = open_data(session, network, asked.data)
    result = calibrate_exits(
        network,
        dataset,
        target_acc=goal.target_acc,
        max_drop=goal.max_drop,
        max_gmacs=goal.max_gmacs,
        max_ms=goal.max_ms,
        confidence=goal.confidence,
        cost=goal.cost,
        thresholds=parse_thresholds(goal.thresholds),
        seed=session.seed,
        batch_size=asked.loading.batch_size,
        workers=asked.loading.workers,
        progress=Reporter(session),
    )
    notes = [*_notes(result), *chance_notes(result.baseline_top1, dataset, "val")]
    return Found(network=result.network, figures=_figures(result), notes=notes)


def _figures(result: ExitsCalibrated) -> Figures:
    from gatecli.calibration.exits.result import recorded

    chosen = recorded(result, result.point)
    return Figures(
        thresholds=chosen["thresholds"],
        shares=chosen["shares"],
        top1=result.point.top1,
        macs_expected=result.point.cost,
        baseline_top1=result.baseline_top1,
        target_top1=result.target_top1,
        counted_from=result.counted_from,
        gap=result.gap,
        ms=chosen.get("ms"),
        leaving_ms=result.times,
        frontier=[recorded(result, point) for point in result.frontier],
    )


def _notes(result: ExitsCalibrated) -> list[str]:
    notes = []
    for site, share in zip(result.network.site_exits, result.point.shares, strict=False):
        if share == 0:
            notes.append(f"nobody leaves at {site}: gatecli prune removes it")
    if result.gap is not None:
        notes.append(f"no thresholds at all could be cheaper by more than {100 * result.gap:.2f} %")
    certified = result.certified
    if certified is not None:
        notes.append(
            f"certified: top-1 of at least {percent(certified.target_top1)} on unseen data with"
            f" probability {certified.confidence:g} ({percent(certified.tested.top1)} on the half"
            f" that the test used, p = {certified.p_value:.3g})"
        )
    return notes


def _reused(network: Network, asked: Asked) -> Found:
    """Take a point of the recorded frontier; `network` itself moves to it, and its recipe says so.

    Raises:
        SettingError: Something is asked for that needs data, or no recorded point is good enough.
    """
    _check_reuse(asked)
    goals = {
        "target_acc": asked.goal.target_acc,
        "max_gmacs": asked.goal.max_gmacs,
        "max_ms": asked.goal.max_ms,
    }
    point = network.set_operating_point(**goals)
    measured = _record(network, goals, point)
    figures = Figures(
        thresholds=measured["thresholds"],
        shares=point["shares"],
        top1=point["top1"],
        macs_expected=point["macs"],
        baseline_top1=measured["baseline_top1"],
        target_top1=asked.goal.target_acc,
        counted_from=None,
        gap=None,
        ms=point["ms"],
        leaving_ms=None,
        frontier=[],
    )
    notes = ["taken from the recorded frontier: nothing was measured anew"]
    return Found(network=network, figures=figures, notes=notes)


def _record(
    network: Network, goals: dict[str, float | None], point: dict[str, Any]
) -> dict[str, Any]:
    """Add a step to the recipe for the point taken; returns the step's results."""
    from gatecli.traced.recipe import Step, finite

    before = network.recipe.last("calibrate")
    assert before is not None  # whose frontier the point is of
    exits = {}
    for site, share in zip(network.site_exits, point["shares"], strict=False):
        exits[site] = [share]
    rates = before.results["unit_rates"]
    others = {site: units for site, units in rates.items() if site not in exits}
    results = {
        "top1": point["top1"],
        "macs_expected": point["macs"],
        "split": "val",
        "thresholds": {site: finite(value) for site, value in point["thresholds"].items()},
        "unit_rates": {**others, **exits},
        "exit_frontier": before.results["exit_frontier"],
        "baseline_top1": before.results["baseline_top1"],
    }
    step = Step(op="calibrate", settings={**goals, "reuse": True}, results=results)
    network.recipe = network.recipe.with_step(step)
    return results


def _check_reuse(asked: Asked) -> None:
    goal = asked.goal
    needs_data = (goal.max_drop, goal.confidence, goal.thresholds, asked.data)
    if any(each is not None for each in needs_data) or goal.cost != "macs":
        raise SettingError(
            "--reuse moves along what is recorded: expected it with --target-acc, --max-gmacs or"
            " --max-ms alone"
        )


def _time(figures: Figures) -> str:
    """What to say of an image's milliseconds, where they are known."""
    if figures.ms is None:
        return ""
    if not figures.leaving_ms:
        return f", {figures.ms:.3g} ms"
    return f", {figures.ms:.3g} ms of {figures.leaving_ms[-1]:.3g}"
