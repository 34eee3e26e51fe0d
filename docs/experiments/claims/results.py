"""From the file's lines to the figures that a paper's variants have today."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from claims.claim import Figures, Paper, Variant

__all__ = ["Line", "converged", "diverged", "figures_of", "lines_of"]

Line = Mapping[str, Any]
CHANCE = 20.0  # percent of the images trained on: no more were right, and nothing was learnt
LATE_GAIN = 0.5  # points of val in the last tenth of the epochs: more, and it had not converged


def lines_of(paper: Paper, lines: Sequence[Line], epochs: int | None) -> list[Line]:
    """The latest line of each of the paper's runs, of those made with today's settings.

    Args:
        paper: Whose.
        lines: Of the file.
        epochs: Of all runs, where it is a try; None: as each variant says.
    """
    found: dict[tuple[str, int], Line] = {}
    wanted = {each.name: _said(each, epochs) for each in paper.variants}
    for line in lines:
        name = line["variant"]
        said = json.dumps([line["epochs"], line["settings"]], sort_keys=True)
        if line["paper"] == paper.name and wanted.get(name) == said:
            found[name, line["seed"]] = line
    return list(found.values())


def _said(variant: Variant, epochs: int | None) -> str:
    return json.dumps([epochs or variant.epochs, variant.settings], sort_keys=True)


def figures_of(lines: Sequence[Line]) -> dict[str, dict[int, Figures]]:
    """Variant -> seed -> its figures; runs that diverged have none."""
    found: dict[str, dict[int, Figures]] = {}
    for line in lines:
        if "diverged" not in line["figures"]:
            found.setdefault(line["variant"], {})[line["seed"]] = line["figures"]
    return found


def diverged(lines: Sequence[Line], variant: str) -> int:
    """How many of a variant's runs did."""
    return sum(line["variant"] == variant and "diverged" in line["figures"] for line in lines)


def converged(figures: Mapping[int, Figures]) -> bool:
    """Whether each of a variant's runs learnt something, and none still gained when it ended."""
    return all(
        _number(each, "late_gain", 0.0) < LATE_GAIN and _number(each, "train_top1", 100.0) > CHANCE
        for each in figures.values()
    )


def _number(figures: Figures, name: str, missing: float) -> float:
    return float(figures.get(name, missing))  # type: ignore[arg-type]
