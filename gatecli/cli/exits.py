"""gatecli calibrate, for a network with exits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatecli.cli.progress import Reporter
from gatecli.cli.render import MACS_FOOT, gmacs, percent, table
from gatecli.cli.session import Session
from gatecli.errors import SettingError

if TYPE_CHECKING:
    from gatecli.calibration.at_exits import ExitsCalibrated
    from gatecli.network import Network

SHOWN = 20  # rows of the frontier


@dataclass(frozen=True)
class Asked:
    """What calibrate shall reach: one of `goals` (by the option's name), with what confidence, at
    what kind of cost.
    """

    goals: dict[str, float | None]
    confidence: float | None
    cost: str


def calibrate(
    session: Session,
    network: Network,
    path: Path,
    out: Path,
    asked: Asked,
    reuse: bool,
    data: str | None,
    batch_size: int,
    workers: int,
) -> dict[str, Any]:
    """Choose the exits' thresholds by data, or along a frontier that is recorded.

    Write and report.
    """
    from gatecli.checkpoint import write

    network_out, found = (
        _reused(network, asked, data)
        if reuse
        else _measured(session, network, asked, data, batch_size, workers)
    )
    write(network_out, out)
    if not session.json_ and found["frontier"]:
        _print(session, found)
    target = "" if found["target_top1"] is None else f" ({percent(found['target_top1'])} asked)"
    time = (
        ""
        if found["ms"] is None
        else (
            f", {found['ms']:.3g} ms of {found['leaving_ms'][-1]:.3g}"
            if found["leaving_ms"]
            else f", {found['ms']:.3g} ms"
        )
    )
    session.say(
        f"val top-1 {percent(found['top1'])}{target}, {gmacs(found['macs_expected'])} GMACs of"
        f" {gmacs(network.macs_dense)}{time}; thresholds {_spell(found['thresholds'])}"
    )
    for line in found.pop("notes"):
        session.say(line)
    session.written(out)
    session.say("next: gatecli profile")
    return {
        "checkpoint": str(path),
        "out": str(out),
        "arch": network.recipe.source.arch,
        "split": "val",
        "params": network_out.params,
        "macs_dense": network_out.macs_dense,
        **found,
    }


def _measured(
    session: Session,
    network: Network,
    asked: Asked,
    data: str | None,
    batch_size: int,
    workers: int,
) -> tuple[Network, dict[str, Any]]:
    from gatecli.calibration.at_exits import calibrate_exits, recorded
    from gatecli.inputs import open_data

    dataset = open_data(network, data)
    how: dict[str, Any] = {
        "confidence": asked.confidence,
        "cost": asked.cost,
        "seed": session.seed,
        "batch_size": batch_size,
        "workers": workers,
    }
    result = calibrate_exits(network, dataset, progress=Reporter(session), **{**asked.goals, **how})
    frontier = [recorded(result, point) for point in result.frontier]
    chosen = recorded(result, result.point)
    return result.network, {
        "thresholds": chosen["thresholds"],
        "shares": chosen["shares"],
        "top1": result.point.top1,
        "macs_expected": result.point.cost,
        "baseline_top1": result.baseline_top1,
        "target_top1": result.target_top1,
        "gap": result.gap,
        "ms": chosen.get("ms"),
        "leaving_ms": result.times,
        "frontier": frontier,
        "notes": _notes(result),
    }


def _notes(result: ExitsCalibrated) -> list[str]:
    notes = [
        f"nobody leaves at {site}: gatecli prune removes it"
        for site, share in zip(result.network.site_exits, result.point.shares, strict=False)
        if share == 0
    ]
    if result.gap is not None:
        notes.append(f"no thresholds at all could be cheaper by more than {100 * result.gap:.2f} %")
    if result.certified is not None:
        c = result.certified
        notes.append(
            f"certified: top-1 of at least {percent(c.target_top1)} on unseen data with probability"
            f" {c.confidence:g} ({percent(c.tested.top1)} on the half that the test used, p ="
            f" {c.p_value:.3g})"
        )
    return notes


def _reused(network: Network, asked: Asked, data: str | None) -> tuple[Network, dict[str, Any]]:
    from gatecli.traced.recipe import Step, finite

    goals = {name: value for name, value in asked.goals.items() if name != "max_drop"}
    if (
        asked.goals["max_drop"] is not None
        or asked.confidence is not None
        or data is not None
        or asked.cost != "macs"
    ):
        raise SettingError(
            "--reuse moves along what is recorded: expected it with --target-acc, --max-gmacs or"
            " --max-ms alone"
        )
    before = network.recipe.last("calibrate")
    point = network.set_operating_point(**goals)
    rates = {
        site: [share] for site, share in zip(network.site_exits, point["shares"], strict=False)
    }
    others = {
        site: units
        for site, units in (before.results["unit_rates"] if before else {}).items()
        if site not in rates
    }
    thresholds = {site: finite(value) for site, value in point["thresholds"].items()}
    known = (
        {
            "exit_frontier": before.results["exit_frontier"],
            "baseline_top1": before.results["baseline_top1"],
        }
        if before
        else {}
    )
    measured = {
        "top1": point["top1"],
        "macs_expected": point["macs"],
        "split": "val",
        "thresholds": thresholds,
        "unit_rates": {**others, **rates},
        **known,
    }
    network.recipe = replace(
        network.recipe.with_step(Step("calibrate", {**goals, "reuse": True}, measured))
    )
    return network, {
        "thresholds": thresholds,
        "shares": point["shares"],
        "top1": point["top1"],
        "macs_expected": point["macs"],
        "baseline_top1": known.get("baseline_top1"),
        "target_top1": goals["target_acc"],
        "gap": None,
        "ms": point["ms"],
        "leaving_ms": None,
        "frontier": [],
        "notes": ["taken from the recorded frontier: nothing was measured anew"],
    }


def _print(session: Session, found: dict[str, Any]) -> None:
    points, sites, timed = (
        found["frontier"],
        list(found["thresholds"]),
        found["leaving_ms"] is not None,
    )
    shown = (
        {round(index * (len(points) - 1) / (SHOWN - 1)) for index in range(SHOWN)}
        if len(points) > SHOWN
        else set(range(len(points)))
    )
    rows = []
    for index, point in enumerate(points):
        chosen = point["thresholds"] == found["thresholds"]
        if index in shown or chosen:
            leaving = " / ".join(f"{100 * share:.1f}" for share in point["shares"])
            rows.append(
                (
                    "*" if chosen else "",
                    _spell(point["thresholds"]),
                    percent(point["top1"]),
                    gmacs(point["macs"]),
                    *([f"{point['ms']:.3g}"] if timed else []),
                    leaving,
                )
            )
    foot = (
        f"* chosen; {len(points)} points in all; nobody leaving early:"
        f" {percent(found['baseline_top1'])}. {MACS_FOOT}"
        + ("; ms: of single images, on this machine" if timed else "")
    )
    table(
        session,
        "frontier on val",
        (
            "<",
            f"<thresholds of {', '.join(sites)}",
            "val top-1",
            "GMACs",
            *(["ms"] if timed else []),
            "% leaving at each, at the end",
        ),
        rows,
        foot,
    )


def _spell(thresholds: dict[str, float | None]) -> str:
    return ", ".join(
        "never" if value is None else "all" if value < -1e38 else f"{value:.4g}"
        for value in thresholds.values()
    )
