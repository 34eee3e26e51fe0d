"""What a benchmark has measured, written into the documentation.

A section that is filled this way has two marks, each on a line of its own; what stands between them
is replaced.

    <!-- NAME: measured -->
    <!-- NAME: end -->
"""

from __future__ import annotations

from pathlib import Path


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
