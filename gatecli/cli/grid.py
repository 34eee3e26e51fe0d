"""Tables that fit the terminal.

One that is too wide gets narrow gaps and headings of several lines; then its text is wrapped, never
its numbers; and where that is not enough it comes in pieces, each with the first column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gatecli.cli.text import printable

__all__ = ["Column", "columns_of", "grids"]

GAP = 2  # between columns where a table is narrow
WIDE_GAP = 3
NARROWEST = 14  # columns that a text is not wrapped below


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Its name.
        is_text: Text stands at the left and may be wrapped; numbers at the right, and never are.
        cells: A text a row.
    """

    heading: str
    is_text: bool
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        """What it takes with nothing wrapped."""
        return max(map(_longest_line, (self.heading, *self.cells)))

    @property
    def narrowest(self) -> int:
        """What it takes at least."""
        cells = max(map(_longest_line, self.cells), default=0)
        if self.is_text:
            cells = min(cells, NARROWEST)
        return max(cells, *map(_cell_len, self.heading.split() or [""]))


def columns_of(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Column]:
    """Return a table's columns; headings that begin with `<` are of text."""
    found = []
    for place, heading in enumerate(headings):
        cells = [printable(row[place]) for row in rows]
        column = Column(
            heading=printable(heading.removeprefix("<")),
            is_text=heading.startswith("<"),
            cells=tuple(cells),
        )
        found.append(column)
    return found


def grids(columns: Sequence[Column], width: int) -> Iterator[Any]:
    """The table as rich draws it in so many columns of the terminal: one, or several pieces."""
    if sum(each.width + WIDE_GAP for each in columns) + 1 <= width:
        yield _drawn(columns, narrow=False)
        return
    for piece in _pieces(columns, width):
        yield _drawn(piece, narrow=True)


def _pieces(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    """Columns that fit together, the first one in each piece."""
    first, *others = columns
    piece, taken = [first], first.narrowest
    for column in others:
        if taken + GAP + column.narrowest > width and len(piece) > 1:
            yield piece
            piece, taken = [first], first.narrowest
        piece.append(column)
        taken += GAP + column.narrowest
    yield piece


def _drawn(columns: Sequence[Column], *, narrow: bool) -> Any:
    from rich import box
    from rich.table import Table

    has_head = any(each.heading for each in columns)
    grid = Table(box=box.SIMPLE_HEAD if has_head else box.SIMPLE, show_header=has_head)
    if narrow:
        grid.show_edge, grid.pad_edge, grid.padding = False, False, (0, 1, 0, 0)
    for column in columns:
        is_broken = narrow and not column.is_text
        heading = "\n".join(column.heading.split()) if is_broken else column.heading
        justify: Any = "left" if column.is_text else "right"
        grid.add_column(heading, justify=justify, overflow="fold", no_wrap=not column.is_text)
    for cells in zip(*(each.cells for each in columns), strict=True):
        grid.add_row(*cells)
    return grid


def _longest_line(text: str) -> int:
    return max(map(_cell_len, text.split("\n")))


def _cell_len(text: str) -> int:
    """How many columns of a terminal a text takes."""
    from rich.cells import cell_len

    return cell_len(text)
