"""What gatecli slim says at its end: the source beside what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gatecli.cli.render import MACS_FOOT, gmacs, megabytes, millions, percent, table
from gatecli.cli.session import Session
from gatecli.cli.slim_steps import REPEATS, Asked, Slimmed, Slimming
from gatecli.cli.typed import spelled
from gatecli.errors import DataError

__all__ = ["goal_facts", "print_rows", "rows_of"]


def rows_of(work: Slimming, slimmed: Slimmed) -> list[dict[str, Any]]:
    """Measure the source and the result.

    Returns:
        A row of profile for each, with `val_top1` and `test_top1`, None where the data has no test
        split.
    """
    asked = work.asked
    data = ("--data", asked.data)
    timing: list[object] = ["--no-sites", "--repeats", REPEATS, *asked.where]
    if slimmed.dynamic:  # else it costs the same for all images
        timing += data
    profiled = _of_result(work, work.asked.out, "profile", *timing)
    val = _of_result(work, work.asked.out, "eval", *data, "--split", "val")
    on_val = (slimmed.tuned["baseline_top1"], val["top1"])
    on_test = _on_test(work, work.asked.out)
    rows = []
    for row, val_top1, test_top1 in zip(profiled["rows"], on_val, on_test, strict=True):
        rows.append({**row, "val_top1": val_top1, "test_top1": test_top1})
    return rows


def _on_test(work: Slimming, out: Path) -> tuple[float | None, float | None]:
    """Top-1 on test of the source and of the result."""
    test = ("--data", work.asked.data, "--split", "test")
    try:
        after = _of_result(work, out, "eval", *test)
    except DataError as error:  # training has read the data: the split is not there
        work.session.say(f"note: no accuracy on test: {error}")
        return None, None
    return work.of_source("eval", *test)["top1"], after["top1"]


def _of_result(work: Slimming, out: Path, command: str, *words: object) -> dict[str, Any]:
    line = spelled(command, out, *words, *work.asked.code)
    return work.road.take(line, reads=[out])


def goal_facts(asked: Asked, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The goal as JSON has it: what was asked for, and how far the result is."""
    before, after = rows
    if asked.goal == "max_drop":
        reached = before["val_top1"] - after["val_top1"]
    elif asked.goal == "max_gmacs":
        reached = after["macs_expected"] / 1e9
    else:
        reached = after["latency_ms"]["1"]["median"]
    return {
        "name": asked.goal,
        "asked": asked.limit,
        "reached": reached,
        "met": reached <= asked.limit,
    }


def print_rows(session: Session, asked: Asked, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the source and the result in a table."""
    columns = (
        "<",
        "val top-1",
        "test top-1",
        "GMACs",
        "parameters",
        "file",
        f"ms, {asked.how.runtime}",
        "speed-up",
        "ideal",
    )
    foot = (
        f"{MACS_FOOT}. ms of single images, measured in {asked.how.precision} (medians of"
        " interleaved calls); ideal: by MACs. What was chosen was chosen on val."
    )
    names = ("before", "after")
    cells = [_cells(name, row) for name, row in zip(names, rows, strict=True)]
    table(session, "\nbefore and after", columns, cells, foot)


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    return [
        name,
        percent(row["val_top1"]),
        percent(row["test_top1"]),
        gmacs(row["macs_expected"]),
        millions(row["params"]),
        megabytes(row["file_bytes"]),
        f"{row['latency_ms']['1']['median']:.3g}",
        f"{row['speedup']:.2f}x",
        f"{row['ideal_speedup']:.2f}x",
    ]
