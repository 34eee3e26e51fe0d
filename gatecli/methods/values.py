"""What a setting can be: how each type is said on the command line, checked, and recorded.

A value comes as itself, as JSON has it, or as the command line's words; what older files say is
one of these too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

from gatecli.traced.recipe import parsed

__all__ = ["FrozenDict", "ValueType", "frozen", "plain", "told", "type_of"]

V_co = TypeVar("V_co", covariant=True)
WORDS = {True: ("yes", "true", "on", "1"), False: ("no", "false", "off", "0")}
SCALARS = (bool, int, float, str, NoneType)


class FrozenDict(Mapping[str, V_co], Generic[V_co]):
    """A mapping that no longer changes, in the order in which it was given."""

    def __init__(self, items: Mapping[str, V_co] | None = None) -> None:
        self._items = dict(items or {})

    def __getitem__(self, name: str) -> V_co:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


@dataclass(frozen=True, kw_only=True)
class ValueType:
    """A type that settings can have.

    Attributes:
        expected: What it is, for errors: `expected setting X to be ...`.
        read: From a value in any of its spellings to the value that is kept, which can be hashed.
            It raises ValueError or TypeError where it is none, or a SettingError that says more.
        words: How the command line says it, as `name,name,...`.
        choices: Where that is one of a few words, these.
    """

    expected: str
    read: Callable[[Any], Any]
    words: str = ""
    choices: tuple[str, ...] = ()


def frozen(value: Any) -> Any:
    """What JSON can hold, as values that can be hashed.

    Raises:
        ValueError: It is something else, or holds a number that is not finite.
    """
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("names that are no text")
        return FrozenDict({name: frozen(each) for name, each in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(frozen(each) for each in value)
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, SCALARS) or not is_finite:
        raise ValueError(f"{value!r} is nothing that JSON holds")
    return value


def plain(value: Any) -> Any:
    """A setting's value as JSON has it."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def told(value: Any) -> str:
    """A setting's value as the command line says it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return WORDS[value][0]
    if isinstance(value, Mapping):
        return json.dumps(plain(value), default=str)
    if isinstance(value, (list, tuple)):
        return ",".join(told(each) for each in value)
    return str(value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (str, int)):
        raise TypeError(type(value).__name__)
    word = str(value).lower()
    for result, words in WORDS.items():
        if word in words:
            return result
    raise ValueError(word)


def _int(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise TypeError(type(value).__name__)
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("bool")
    is_fraction = isinstance(value, str) and "/" in value
    result = float(Fraction(value)) if is_fraction else float(value)
    if not math.isfinite(result):
        raise ValueError(value)
    return result


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _names(value: Any) -> tuple[str, ...]:
    """Names, or one text with commas between them."""
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        raise TypeError(type(value).__name__)
    names = tuple(_str(name).strip() for name in given)
    if not names or "" in names:
        raise ValueError("no name")
    return names


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, or the text of a JSON object.

    Raises:
        TypeError: It is none.
        ValueError: It is none, or holds what JSON does not.
    """
    found = parsed(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise TypeError(type(found).__name__)
    result: Mapping[str, Any] = frozen(found)
    return result


TYPES: dict[Any, ValueType] = {
    bool: ValueType(expected="yes or no", choices=("yes", "no"), read=_bool),
    int: ValueType(expected="a whole number", words="whole number", read=_int),
    float: ValueType(expected="a number", words="number", read=_float),
    str: ValueType(expected="a word", words="word", read=_str),
    tuple[str, ...]: ValueType(
        expected="names with commas between", words="name,name,...", read=_names
    ),
    Mapping[str, Any]: ValueType(expected="a JSON object", words="JSON object", read=mapping),
}


def type_of(hint: Any, given: ValueType | None = None) -> tuple[ValueType, bool]:
    """How values of an annotated type are said, and whether there may be none.

    Args:
        hint: The annotation, evaluated.
        given: The type that the setting itself says; None: what TYPES has for the annotation.

    Raises:
        TypeError: It has none: a mistake of who wrote the settings.
    """
    is_union = isinstance(hint, UnionType) or get_origin(hint) is Union
    kinds = list(get_args(hint)) if is_union else [hint]
    optional = NoneType in kinds
    wanted = [each for each in kinds if each is not NoneType]
    found = given or (TYPES.get(wanted[0]) if len(wanted) == 1 else None)
    if found is None:
        raise TypeError(
            f"no setting can have the type {hint} by itself: say setting(..., value=ValueType(...))"
        )
    return found, optional
