"""Names that may stand in generated source: torch.fx writes them there as they are."""

from __future__ import annotations

import keyword
import re

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+")


def is_writable(path: str) -> bool:
    """Whether each part of a dotted path is an ASCII identifier, but no keyword, or digits, as
    torch.nn.Sequential's are.
    """
    return all(WORD.fullmatch(part) and not keyword.iskeyword(part) for part in path.split("."))
