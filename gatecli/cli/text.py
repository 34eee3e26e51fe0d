"""Text for people.

It may come out of a file, and a terminal must not obey a file: whatever is printed goes through
here.
"""

from __future__ import annotations

import sys

from gatecli.words import printable

__all__ = ["LONGEST", "one_line", "printable", "show", "tell"]

LONGEST = 600  # characters of an error's line
GAP = " ... "


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return `text` in one printable line of at most `longest` characters.

    Where it is too long its middle is left out, as the way out stands at the end.
    """
    line = printable(" ".join(text.split()))
    if len(line) <= longest:
        return line
    kept = longest - len(GAP)
    return line[: kept - kept // 2] + GAP + line[-(kept // 2) :]


def show(line: str) -> None:
    """Print a line of a command's result, on stdout."""
    print(printable(line))


def tell(line: str) -> None:
    """Print a line about the work, on stderr."""
    print(printable(line), file=sys.stderr, flush=True)
