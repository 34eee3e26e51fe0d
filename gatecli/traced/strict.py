"""Strict JSON out of files: numbers are finite, and every value has the type that it should."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["checked", "finite", "finite_number", "is_a", "number", "parsed"]

R = TypeVar("R")


def parsed(text: str) -> Any:
    """What strict JSON with numbers of 64 bits holds.

    Raises:
        ValueError: it is something else.
        RecursionError: it is nested without end.
    """
    return json.loads(
        text, parse_int=_whole, parse_float=finite_number, parse_constant=finite_number
    )


def checked(record: R) -> R:
    """The dataclass instance itself, if each of its fields has the type that its annotation says.

    Raises:
        TypeError: one has another.
    """
    for name, hint in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not is_a(value, hint):
            raise TypeError(f"{name} is {value!r}")
    return record


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is what a type says; true and false are no numbers."""
    kinds = get_args(hint)
    if isinstance(hint, UnionType):
        return any(is_a(value, kind) for kind in kinds)
    origin = get_origin(hint)
    if origin is dict:
        return isinstance(value, dict) and _all_are(value.values(), kinds[1])
    if origin is list:
        return isinstance(value, list) and _all_are(value, kinds[0])
    if hint is float and type(value) is int:
        return True
    return hint is Any or type(value) is (origin or hint)


def _all_are(values: Iterable[Any], hint: Any) -> bool:
    return all(is_a(value, hint) for value in values)


def _whole(text: str) -> int | str:
    """A whole number of at most 64 bits.

    A longer one stays text, which nothing takes for a number.
    """
    if len(text) > len(str(-(2**63))):
        return text
    value = int(text)
    return value if -(2**63) <= value < 2**63 else text


def number(value: Any) -> float:
    """The number that a value out of JSON is; ValueError where it is none."""
    if not is_a(value, float):
        raise ValueError(f"number {value!r}")
    return float(value)


def finite_number(text: str) -> float:
    """The number that a file's text says; ValueError where it is not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text}")
    return value


def finite(value: float) -> float | None:
    """Strict JSON has no infinity: an unreachable threshold, say, becomes null."""
    return value if math.isfinite(value) else None
