"""How figures and text from files are spelled, in a terminal and on a page."""

from __future__ import annotations

__all__ = ["gmacs", "megabytes", "millions", "percent", "printable"]


def printable(text: object) -> str:
    """Return `text` with all that is no visible character escaped.

    These are control characters, line ends, what turns the direction of writing, and bytes of a
    name that is not UTF-8.
    """
    return "".join(_visible(each) for each in str(text))


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def gmacs(macs: float) -> str:
    """Spell MACs in GMACs: 4.089, and small numbers with four digits."""
    return f"{macs / 1e9:.4g}" if macs < 1e9 else f"{macs / 1e9:.3f}"


def millions(count: int) -> str:
    """Spell a count of parameters in millions."""
    return f"{count / 1e6:.3f} M"


def megabytes(count: int) -> str:
    """Spell bytes in megabytes, of a million each; nothing for none, where there is no file."""
    return f"{count / 1e6:.2f} MB" if count else ""


def percent(value: float | None) -> str:
    """Spell a percentage with two decimals; nothing for None."""
    return "" if value is None else f"{value:.2f}"
