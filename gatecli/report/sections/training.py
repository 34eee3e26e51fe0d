"""Training curves, of every training that the checkpoint records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gatecli.report.blocks import Figure, Missing
from gatecli.report.drawing import COLORS, Picture, draw
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, each
from gatecli.traced.recipe import Step
from gatecli.words import percent, printable

__all__ = ["PART"]

Row = Mapping[str, Any]
LINES = (  # on the left axis, in percent: key, what it is, scale, colour, style
    ("val_top1", "val top-1", 1, "on", "-"),
    ("achieved_rate", "achieved rate", 100, "image", "-"),
    ("target_rate", "target rate", 100, "image", "--"),
)
MARKS = ".xos^v"  # of exits, in turn


def _curves(material: Material, key: str) -> Found:
    steps = list(enumerate(material.network.recipe.steps, 1))
    trained = [(number, step) for number, step in steps if step.op == "finetune"]
    figures = []
    for number, step in trained:
        rows = step.results.get("curves")
        if rows:
            figures.append(_figure(f"{key}-{number}", number, step, rows))
    if figures:
        return figures
    if trained:
        return Missing(
            words="The trainings in this file were run before gatecli kept their curves.",
            command="gatecli finetune CHECKPOINT --data DATA --epochs N",
        )
    if not material.network.gated_by:
        return None
    return Missing(
        words="No training is recorded.",
        command=f"gatecli finetune {material.place} --data DATA --epochs N",
    )


def _figure(key: str, number: int, step: Step, rows: Sequence[Row]) -> Figure:
    first, last = float(rows[0]["val_top1"]), float(rows[-1]["val_top1"])
    method = step.settings.get("method", "")
    return draw(
        key,
        _lines(rows),
        title=f"Training of step {number} ({method})",
        description=(
            f"{rows[-1]['epoch']} epochs; val top-1 from {percent(first)} after the first shown to"
            f" {percent(last)} after the last, training loss from {rows[0]['train_loss']:.3g} to"
            f" {rows[-1]['train_loss']:.3g}."
        ),
        size=(8, 3.6),
        foot=f"Kept: {step.results.get('chosen', 'not recorded')}.",
    )


def _lines(rows: Sequence[Row]) -> Picture:
    def picture(axes: Any) -> None:
        for key, label, scale, color, style in LINES:
            known = [(row["epoch"], scale * row[key]) for row in rows if row.get(key) is not None]
            if known:
                epochs, values = zip(*known, strict=True)
                line = {"color": COLORS[color], "linestyle": style, "marker": "."}
                axes.plot(epochs, values, label=label, **line)
        _exit_lines(axes, rows)
        axes.set_xlabel("epoch")
        axes.set_ylabel("percent")
        axes.xaxis.get_major_locator().set_params(integer=True)
        losses = axes.twinx()
        losses.spines["right"].set_visible(True)
        places = [row["epoch"] for row in rows]
        loss = [row["train_loss"] for row in rows]
        losses.plot(places, loss, color=COLORS["second"], linestyle=":", label="training loss")
        losses.set_ylabel("training loss")
        handles = [*axes.get_legend_handles_labels()[0], *losses.get_legend_handles_labels()[0]]
        axes.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize=8
        )

    return picture


def _exit_lines(axes: Any, rows: Sequence[Row]) -> None:
    epochs = [row["epoch"] for row in rows if row.get("exits")]
    names = [] if not epochs else list(rows[-1]["exits"])
    for number, name in enumerate(names):
        values = [row["exits"][name] for row in rows if row.get("exits")]
        line = {"color": COLORS["image"], "marker": MARKS[number % len(MARKS)]}
        axes.plot(epochs, values, label=printable(f"{name}, all images"), **line)


PART = Part(
    key="training",
    title="Training",
    about="Epoch by epoch: accuracy on val, how often the gates let run, and the loss.",
    build=each(_curves),
)
