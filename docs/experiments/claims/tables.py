"""The tables of the page, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from claims.claim import Claim, Column, Comparison, Figures, Results
from claims.differences import numbers
from claims.results import Line, converged, diverged
from claims.verdicts import Judged, judge

__all__ = ["comparison_line", "judged", "table"]


def table(claim: Claim, results: Results, lines: Sequence[Line], seeds: int) -> str:
    """A row a variant: mean and standard deviation over seeds."""
    heads = ["", "seeds", *(column.head for column in claim.columns)]
    rows = [heads, ["---"] * len(heads)]
    for name in claim.rows:
        runs = results.get(name, {})
        cells = [_cell(column, list(runs.values())) for column in claim.columns]
        mark = "" if converged(runs) else " *"
        rows.append([name + mark, _seeds(len(runs), seeds, diverged(lines, name)), *cells])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if any(not converged(results.get(name, {})) for name in claim.rows):
        text += "\n\n\\* had not converged: val top-1 still rose by half a point or more, or"
        text += " nothing was learnt"
    return text


def _seeds(count: int, wanted: int, failed: int) -> str:
    said = str(count) if count >= wanted else f"{count} of {wanted}"
    return f"{said}, {failed} diverged" if failed else said


def _cell(column: Column, runs: Sequence[Figures]) -> str:
    values = []
    for figures in runs:
        if figures.get(column.figure) is not None:
            values.append(column.scale * statistics.fmean(numbers(figures, column.figure)))
    if not values:
        return "-"
    mean = format(statistics.fmean(values), column.form)
    return f"{mean} ± {statistics.stdev(values):{column.form}}" if len(values) > 1 else mean


def judged(comparison: Comparison, results: Results) -> Judged:
    """The verdict on a comparison."""
    differences = comparison.of.differences(results)
    return judge(differences, comparison.expect, comparison.margin)


def comparison_line(comparison: Comparison, found: Judged, seeds: int) -> str:
    """A difference, its standard error, and what it shows."""
    if not found.seeds:
        return f"- {comparison.says}: {found.word} yet"
    count = f"{found.seeds} of {seeds} seeds"
    # a figure that a run has once has none before a second seed
    error = f"standard error {found.error:.2f}" if found.error else "no standard error yet"
    return (
        f"- {comparison.says}: {found.mean:+.2f} {comparison.unit}, {error}, {count}:"
        f" **{found.word}**"
    )
