"""Before and after: the sources and what was made of them, a row each."""

from __future__ import annotations

from collections.abc import Sequence

from gatecli.report.blocks import Panel, Table
from gatecli.report.material import Material
from gatecli.report.sections.base import Part
from gatecli.stages.subject import Subject
from gatecli.traced.recipe import Recipe
from gatecli.words import gmacs, megabytes, millions, percent

__all__ = ["PART"]

STRUCTURAL = ("attach", "prune")
FOOT = (
    "GMACs: convolutions and linear layers of one image, at the rates that are known; all on: every"
    " unit running, nobody leaving early. Top-1: percent of val, as the latest step recorded it."
)
TIMED = " Milliseconds: one image, median, measured for this report."


def _build(materials: Sequence[Material]) -> list[Panel]:
    columns = ["<network", "top-1", "GMACs", "GMACs, all on", "parameters", "file"]
    looked = next((material.seen for material in materials if material.seen is not None), None)
    runtimes = _runtimes(materials)
    if looked is not None:
        columns.insert(2, f"top-1 of {looked.images} images of {looked.split}, now")
    columns += [f"ms, {runtime}" for runtime in runtimes]
    rows = []
    told: set[str] = set()
    for material in materials:
        source = material.network.recipe.source
        known = source.sha256 or source.file
        if known not in told or not known:
            rows.append(_row(material, material.source, runtimes, looked=looked is not None))
        told.add(known)
        rows.append(_row(material, material.subject, runtimes, looked=looked is not None))
    table = Table(
        caption="What was made of the source",
        columns=columns,
        rows=rows,
        foot=FOOT + TIMED * bool(runtimes),
    )
    return [Panel(blocks=(table,))]


def _row(
    material: Material, subject: Subject, runtimes: Sequence[str], *, looked: bool
) -> list[str]:
    recipe = material.network.recipe
    is_source = subject is material.source
    seen = None if is_source else material.seen
    now = [percent(seen.top1) if seen is not None else ""] if looked else []
    baseline = (recipe.baseline or {}).get("top1")
    return [
        f"source: {subject.name}" if is_source else subject.name,
        percent(baseline if is_source else _recorded(recipe)),
        *now,
        gmacs(subject.macs_expected),
        gmacs(subject.macs_dense),
        millions(subject.params),
        megabytes(subject.file_bytes),
        *(_median(material, runtime, is_source=is_source) for runtime in runtimes),
    ]


def _recorded(recipe: Recipe) -> float | None:
    """The top-1 that was measured last, if nothing was attached or removed since."""
    for step in reversed(recipe.steps):
        if "top1" in step.results:
            return float(step.results["top1"])
        if step.op in STRUCTURAL:
            return None
    return None


def _runtimes(materials: Sequence[Material]) -> list[str]:
    found: dict[str, None] = {}
    for material in materials:
        if material.times is not None:
            found.update(dict.fromkeys(row.runtime for row in material.times.rows))
    return list(found)


def _median(material: Material, runtime: str, *, is_source: bool) -> str:
    """The median of the source's row, or of the checkpoint's behind it."""
    if material.times is None:
        return ""
    rows = [row for row in material.times.rows if row.runtime == runtime]
    return f"{rows[0 if is_source else 1].latency_ms['1'].median:.2f}"


PART = Part(
    key="summary",
    title="Before and after",
    about="Each network's accuracy and what it costs, the source first.",
    build=_build,
)
