"""Tables for people, with rich; on stdout, or on stderr where stdout is for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gatecli.cli.session import Session
from gatecli.words import gmacs, megabytes, millions, percent, printable

if TYPE_CHECKING:
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
WIDTH = 160  # columns where no terminal says


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
    if not console.is_terminal:
        console.width = WIDTH
    with console.capture() as captured:
        if title.startswith("\n"):
            console.print()
        if title.removeprefix("\n"):
            console.print(printable(title.removeprefix("\n")), style="bold")
        console.print(_grid(columns, rows))
        if foot:
            console.print(printable(foot), style="italic")
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), file=console.file)


def _grid(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """The table itself, as rich draws it."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        justify: Any = "left" if column.startswith("<") else "right"
        grid.add_column(printable(column.removeprefix("<")), justify=justify, overflow="fold")
    for row in rows:
        grid.add_row(*(printable(cell) for cell in row))
    return grid


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
