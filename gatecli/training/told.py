"""Words of what a training says of its epochs."""

from __future__ import annotations

from gatecli.training.goals import Row

__all__ = ["asked", "in_ms"]


def in_ms(row: Row) -> str:
    """An epoch's milliseconds, where these are looked at."""
    return f", {row['ms_expected']:.4g} ms" if "ms_expected" in row else ""


def asked(rate: float | None) -> str:
    """What stands behind a rate achieved: the rate asked for, if any."""
    return "" if rate is None else f" (asked {rate:.2f})"
