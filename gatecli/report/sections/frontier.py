"""Accuracy against price, as calibrations recorded it, with the point that was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gatecli.report.blocks import Figure, Missing
from gatecli.report.drawing import COLORS, Picture, draw
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, each
from gatecli.traced.recipe import Step
from gatecli.words import percent

__all__ = ["PART"]

Point = Mapping[str, Any]


def _frontiers(material: Material, key: str) -> Found:
    recipe = material.network.recipe
    figures = []
    for number, step in enumerate(recipe.steps, 1):
        points = step.results.get("exit_frontier") or step.results.get("frontier")
        if step.op == "calibrate" and points:
            figures.append(_figure(f"{key}-{number}", number, step, points))
    if figures:
        return figures
    if not material.network.gated_by:
        return None
    return Missing(
        words="No frontier of accuracy against price is recorded: no thresholds were calibrated.",
        command=f"gatecli calibrate {material.place} --max-drop 1 --data DATA",
    )


def _figure(key: str, number: int, step: Step, points: Sequence[Point]) -> Figure:
    top1, macs = float(step.results["top1"]), float(step.results["macs_expected"])
    tops = [float(point["top1"]) for point in points]
    costs = [float(point["macs"]) for point in points]
    asked = step.settings.get("target_acc")
    goal = "" if asked is None else f", for a top-1 of at least {percent(float(asked))}"
    return draw(
        key,
        _curve(costs, tops, (macs, top1), step.results.get("baseline_top1")),
        title=f"Frontier of step {number}",
        description=(
            f"{len(points)} settings of thresholds from {min(costs) / 1e9:.4g} to"
            f" {max(costs) / 1e9:.4g} GMACs and from {percent(min(tops))} to {percent(max(tops))}"
            f" percent; taken: {percent(top1)} percent at {macs / 1e9:.4g} GMACs."
        ),
        size=(8, 4),
        foot=(
            f"Measured on val in step {number}. Taken{goal}: {percent(top1)} percent at"
            f" {macs / 1e9:.4g} GMACs."
        ),
    )


def _curve(
    costs: Sequence[float],
    tops: Sequence[float],
    taken: tuple[float, float],
    baseline: float | None,
) -> Picture:
    def picture(axes: Any) -> None:
        across = [cost / 1e9 for cost in costs]
        line = {"color": COLORS["on"], "marker": "o", "markersize": 4, "drawstyle": "steps-post"}
        axes.plot(across, tops, label="measured", **line)
        axes.plot(
            taken[0] / 1e9,
            taken[1],
            color=COLORS["image"],
            marker="*",
            markersize=16,
            linestyle="none",
            label="taken",
        )
        if baseline is not None:
            axes.axhline(baseline, color=COLORS["gone"], linestyle="--", label="all on")
        axes.set_xlabel("GMACs an image")
        axes.set_ylabel("val top-1, percent")
        axes.legend()

    return picture


PART = Part(
    key="frontier",
    title="Accuracy against price",
    about="The settings of thresholds than which none measured was both cheaper and better.",
    build=each(_frontiers),
)
