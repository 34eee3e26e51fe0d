"""Tables for people, with rich; on stdout, or on stderr where stdout is for JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gatecli.cli.grid import columns_of, grids
from gatecli.cli.session import Session
from gatecli.words import gmacs, megabytes, millions, percent, printable

if TYPE_CHECKING:
    from rich.console import Console

    from gatecli.stages.predict import ExitScore

__all__ = [
    "MACS_FOOT",
    "exit_facts",
    "gmacs",
    "megabytes",
    "millions",
    "percent",
    "spread",
    "table",
]

MACS_FOOT = "GMACs: convolutions and linear layers of one image; FLOPs = 2 x MACs"
WIDTH = 160  # columns where neither a terminal nor COLUMNS says


def table(
    session: Session,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    foot: str = "",
) -> None:
    """Print a table.

    Args:
        session: The command's: its JSON moves tables to stderr, and with --quiet leaves them out.
        title: Above the table; an empty line comes before one that begins with a line end.
        columns: Their names; those that begin with `<` are text, the others are set to the right.
        rows: A cell a column.
        foot: Below the table.
    """
    if session.quiet and session.json_:
        return
    from rich.console import Console

    console = Console(stderr=session.json_, markup=False, emoji=False, highlight=False)
    _say_width(console)
    with console.capture() as captured:
        if title.startswith("\n"):
            console.print()
        if title.removeprefix("\n"):
            console.print(printable(title.removeprefix("\n")), style="bold")
        for grid in grids(columns_of(columns, list(rows)), console.width):
            console.print(grid)
            if not grid.show_edge:  # else the edge is an empty line
                console.print()
        if foot:
            console.print(printable(foot), style="italic")
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), file=console.file)


def _say_width(console: Console) -> None:
    """Let tables be as wide as COLUMNS or the terminal says; files take wide ones."""
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console.width = WIDTH


def spread(macs: Mapping[str, float]) -> str:
    """Spell how single images' MACs lie, see gatecli.network.costs.spread_of."""
    lie = {name: gmacs(value) for name, value in macs.items()}
    times = f", {macs['max'] / macs['min']:.2f} times as much" if macs["min"] > 0 else ""
    return (
        f"single images cost {lie['min']} to {lie['max']} GMACs{times}; median {lie['median']},"
        f" half of them {lie['p25']} to {lie['p75']}; standard deviation {lie['std']}"
    )


def exit_facts(exits: Mapping[str, ExitScore]) -> dict[str, Any]:
    """Return the key `exits` of a command's JSON; no key where there are no exits."""
    if not exits:
        return {}
    return {"exits": {site: asdict(each) for site, each in exits.items()}}
