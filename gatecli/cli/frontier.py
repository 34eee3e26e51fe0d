"""The frontier of exits' thresholds, as calibrate shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gatecli.cli.render import MACS_FOOT, gmacs, percent, table
from gatecli.cli.session import Session

if TYPE_CHECKING:
    from gatecli.calibration import Reference

__all__ = ["Figures", "print_frontier", "spell_thresholds"]

SHOWN = 20  # rows
ALL_LEAVE = -1e38  # a threshold below it lets every image leave


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the thresholds give on val: fields as in the command's JSON.

    Attributes:
        leaving_ms: What leaving at each exit, and nowhere, takes, where latency was the price.
        frontier: Points as gatecli.calibration.exits.result.recorded gives them.
    """

    thresholds: dict[str, float | None]
    shares: list[float]
    top1: float
    macs_expected: float
    baseline_top1: float | None
    target_top1: float | None
    counted_from: Reference | None
    gap: float | None
    ms: float | None
    leaving_ms: list[float] | None
    frontier: list[dict[str, Any]]


def print_frontier(session: Session, figures: Figures) -> None:
    """Print the frontier: the chosen point and up to SHOWN others, evenly spread."""
    points = figures.frontier
    timed = figures.leaving_ms is not None
    shown = _evenly(len(points))
    rows = []
    for index, point in enumerate(points):
        chosen = point["thresholds"] == figures.thresholds
        if index not in shown and not chosen:
            continue
        leaving = " / ".join(f"{100 * share:.1f}" for share in point["shares"])
        ms = [f"{point['ms']:.3g}"] if timed else []
        mark = "*" if chosen else ""
        spelled = spell_thresholds(point["thresholds"])
        rows.append((mark, spelled, percent(point["top1"]), gmacs(point["macs"]), *ms, leaving))
    columns = [
        "<",
        f"<thresholds of {', '.join(figures.thresholds)}",
        "val top-1",
        "GMACs",
        *(["ms"] if timed else []),
        "% leaving at each, at the end",
    ]
    foot = (
        f"* chosen; {len(points)} points in all; nobody leaving early:"
        f" {percent(figures.baseline_top1)}. {MACS_FOOT}"
    )
    if timed:
        foot += "; ms: of single images, on this machine"
    table(session, "frontier on val", columns, rows, foot)


def _evenly(count: int) -> set[int]:
    """At most SHOWN of `count` places, evenly spread, the first and the last among them."""
    if count <= SHOWN:
        return set(range(count))
    return {round(index * (count - 1) / (SHOWN - 1)) for index in range(SHOWN)}


def spell_thresholds(thresholds: dict[str, float | None]) -> str:
    """Spell thresholds in the order of the exits, with commas between."""
    return ", ".join(_spell_one(value) for value in thresholds.values())


def _spell_one(value: float | None) -> str:
    if value is None:
        return "never"
    return "all" if value < ALL_LEAVE else f"{value:.4g}"
