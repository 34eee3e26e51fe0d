"""Names that may stand in generated source: torch.fx writes them there as they are."""

from __future__ import annotations

import keyword
import re

__all__ = ["is_identifier", "is_writable"]

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+")
QUOTED = re.compile(r"[A-Za-z0-9_-]+")


def is_writable(path: str) -> bool:
    """Whether source can have each part of a dotted path as an attribute or inside a string.

    Of ASCII letters, digits, underscores, and hyphens, as torchvision's RegNets have them; no
    keyword, which torch.fx would write as an attribute.
    """
    parts = path.split(".")
    return all(QUOTED.fullmatch(part) and not keyword.iskeyword(part) for part in parts)


def is_identifier(path: str) -> bool:
    """Whether each part of a dotted path is an ASCII identifier, no keyword, or digits."""
    return all(WORD.fullmatch(part) and not keyword.iskeyword(part) for part in path.split("."))
