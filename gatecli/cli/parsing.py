"""What options say, from text to values; and ranges that several commands check."""

from __future__ import annotations

import math
from pathlib import Path

from gatecli.data import forms
from gatecli.errors import SettingError

__all__ = [
    "check_between",
    "is_function",
    "parse_numbers",
    "parse_pairs",
    "parse_resize",
    "parse_size",
    "parse_thresholds",
    "remembered",
]

LARGEST_SIDE = 65536  # pixels


def check_between(option: str, value: int, low: int, high: int) -> None:
    """Check that an option's value lies between two limits, both allowed.

    Raises:
        SettingError: It does not.
    """
    if not low <= value <= high:
        raise SettingError(f"expected --{option} to be between {low} and {high}, but got {value}")


def parse_pairs(pairs: list[str] | None) -> dict[str, str]:
    """Read `--set` options: `["a=1"]` becomes `{"a": "1"}`.

    Raises:
        SettingError: There is no `=`, or nothing before it.
    """
    result = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise SettingError(f"expected --set name=value, but got `{pair}`")
        result[name.strip()] = value.strip()
    return result


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read `--input-size`, as 224 or 192x256, into (height, width) in pixels.

    Raises:
        SettingError: It is neither.
    """
    if text is None:
        return None
    sides = _sides("--input-size", text)
    return sides[0], sides[-1]


def parse_resize(text: str | None) -> tuple[int, ...] | None:
    """Read `--resize`, as 256 (the shorter side) or 256x320 (exactly so), into pixels.

    Raises:
        SettingError: It is neither.
    """
    return None if text is None else _sides("--resize", text)


def _sides(option: str, text: str) -> tuple[int, ...]:
    """One side or two, in pixels. Raises SettingError where it is something else."""
    sides = text.lower().replace(",", "x").split("x")
    if len(sides) > 2 or not all(_is_side(side) for side in sides):
        raise SettingError(f"expected {option} to be pixels, as 224 or 192x256, but got `{text}`")
    return tuple(map(int, sides))


def _is_side(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) <= LARGEST_SIDE


def parse_numbers(option: str, text: str | None, *, positive: bool) -> tuple[float, ...] | None:
    """Read finite numbers with commas between, as 0.485,0.456,0.406.

    Args:
        option: Its name, for the error.
        text: What the user gave; None stays None.
        positive: Whether only numbers above 0 are allowed.

    Raises:
        SettingError: These are no such numbers.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f"expected {option} to be numbers with commas between, but got `{text}`"
        ) from None
    finite = all(math.isfinite(value) for value in values)
    if not finite or (positive and min(values) <= 0):
        above = " above 0" if positive else ""
        raise SettingError(f"expected {option} to be finite numbers{above}, but got `{text}`")
    return values


def parse_thresholds(text: str | None) -> dict[str, float] | None:
    """Read `--thresholds`, as exit1=0,exit2=inf, into thresholds by exit.

    Raises:
        SettingError: It is something else, or an exit is named twice.
    """
    if text is None:
        return None
    thresholds: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = map(str.strip, part.partition("="))
        if not equals or not name or name in thresholds:
            raise SettingError(
                "expected --thresholds to be exits, each once, with a number each, as"
                f" exit1=0,exit2=1.5, but got `{text}`"
            )
        try:
            thresholds[name] = float(value)
        except ValueError:
            raise SettingError(
                f"expected the threshold of {name} to be a number, inf for nobody leaves, but got"
                f" `{value}`"
            ) from None
    return thresholds


def remembered(spec: str | None) -> str | None:
    """Return a data set's name as the checkpoint shall remember it.

    The path in it, where it exists, is made absolute, so that other folders find it.
    """
    kind, _, path = (spec or "").partition(":")
    if not forms.names_path(kind) or not path or not Path(path).exists():
        return spec
    return f"{kind}:{Path(path).resolve()}"


def is_function(spec: str) -> bool:
    """Whether a data set's name is that of a function, package.module:callable."""
    return forms.may_be_code(spec)
