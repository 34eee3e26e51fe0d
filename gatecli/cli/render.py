"""Tables for people, with rich; on stdout, or on stderr where stdout is for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gatecli.cli.session import Session
from gatecli.cli.text import printable

MACS_FOOT = "GMACs: convolutions and linear layers of one image; FLOPs = 2 x MACs"


def table(
    session: Session,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    foot: str = "",
) -> None:
    """Print a table; columns that begin with `<` are text, the others are set to the right.

    Before a title that begins with a line end comes an empty line.
    """
    if session.quiet and session.json_:
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        result.add_column(
            printable(column.removeprefix("<")),
            justify="left" if column.startswith("<") else "right",
            overflow="fold",
        )
    for row in rows:
        result.add_row(*(printable(cell) for cell in row))
    console = Console(stderr=session.json_, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 160
    with console.capture() as captured:
        if title.startswith("\n"):
            console.print()
        for part, style in (
            (printable(title.removeprefix("\n")), "bold"),
            (result, None),
            (printable(foot), "italic"),
        ):
            if part:
                console.print(part, style=style)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()), file=console.file)


def gmacs(macs: float) -> str:
    return f"{macs / 1e9:.4g}" if macs < 1e9 else f"{macs / 1e9:.3f}"


def millions(count: int) -> str:
    return f"{count / 1e6:.3f} M"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
