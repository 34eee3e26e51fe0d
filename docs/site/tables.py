"""Tables and texts in Markdown."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["plain", "table"]

MARKS = "\\*_[]<|"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, with an empty line behind it."""
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join([*(_row(each) for each in lines), ""])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"  # those with a bar in them are code, where it is none


def plain(text: str | None) -> str:
    """A help text in one line, nothing in it being taken for markup."""
    line = " ".join((text or "").split())
    return "".join(f"&#{ord(each)};" if each in MARKS else each for each in line)
