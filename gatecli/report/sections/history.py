"""What was done: the steps of the recipe."""

from __future__ import annotations

from gatecli.report.blocks import Table, Text
from gatecli.report.material import Material
from gatecli.report.sections.base import Found, Part, each
from gatecli.stages.told_steps import settings_in_words
from gatecli.traced.recipe import Step
from gatecli.words import gmacs, percent

__all__ = ["PART"]


def _steps(material: Material, key: str) -> Found:
    recipe = material.network.recipe
    if not recipe.steps:
        words = (
            "No step is recorded in this file: it is a network as it was found, and this report"
            " says what there is. The next step: gatecli attach CHECKPOINT --method NAME"
        )
        return (Text(words=words),)
    rows = [_row(number, step) for number, step in enumerate(recipe.steps, 1)]
    table = Table(
        caption="Steps, in order",
        columns=("step", "<what", "when (UTC)", "val top-1", "GMACs", "<<settings"),
        rows=rows,
    )
    return (table,)


def _row(number: int, step: Step) -> list[str]:
    macs = step.results.get("macs_expected")
    return [
        str(number),
        step.op,
        step.at.replace("T", " ").replace("+00:00", ""),
        percent(step.results.get("top1")),
        "" if macs is None else gmacs(macs),
        settings_in_words(step),
    ]


PART = Part(
    key="history",
    title="What was done",
    about="Every step that the file records, with what was measured right after it.",
    build=each(_steps),
)
