"""What docs/claims.md says of one paper's claims, for the card of its method."""

from __future__ import annotations

import re
from pathlib import Path

from tables import table

__all__ = ["claims"]

PAGE = Path(__file__).parent.parent / "claims.md"
ROW = re.compile(r"^\| ([\w-]+) \| (.+) \| (.+) \|$", re.M)


def claims(paper: str) -> str:
    """The paper's claims with their verdicts, as the page's table has them now.

    Raises:
        KeyError: The table has no row of that paper.
    """
    rows = [row[1:] for row in ROW.findall(PAGE.read_text(encoding="utf-8")) if row[0] == paper]
    if not rows:
        raise KeyError(f"{PAGE.name} has no claims of {paper}")
    return table(("the paper's claim", "verdict here"), rows)
