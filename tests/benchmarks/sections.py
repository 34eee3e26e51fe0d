"""What a benchmark has measured, written into the documentation.

A section that is filled this way has two marks, each on a line of its own; what stands between them
is replaced.

    <!-- NAME: measured -->
    <!-- NAME: end -->
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from pathlib import Path


def with_old(path: Path, name: str, text: str, cases: Collection[str]) -> str:
    """A table whose rows of some cases are those that the section has, where it has them.

    A case may come several times: each time it has rows that follow one another.
    """
    _, _, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name}: measured -->")
    section, _, _ = rest.partition(f"<!-- {name}: end -->")
    old: dict[str, list[list[str]]] = {}
    for case, rows in groupby(section.splitlines(), _case):
        old.setdefault(case, []).append(list(rows))
    lines = []
    for line in text.splitlines():
        case = _case(line)
        lines += old[case].pop(0) if case in cases and old.get(case) else [line]
    return "\n".join(lines)


def _case(line: str) -> str:
    """The first cell of a table's row; empty: it is none."""
    return line.split(" | ")[0].removeprefix("| ") if line.startswith("| ") else ""


def fill(path: Path, name: str, text: str) -> None:
    """Put `text` between the marks of a benchmark; ends with a line where there are none."""
    begin, end = f"<!-- {name}: measured -->", f"<!-- {name}: end -->"
    whole = path.read_text(encoding="utf-8") if path.exists() else ""
    head, found, rest = whole.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SystemExit(
            f"expected {path} to have the lines `{begin}` and `{end}`: nothing written"
        )
    path.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}", encoding="utf-8")
