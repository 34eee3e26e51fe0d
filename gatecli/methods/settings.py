"""Settings of methods: a frozen dataclass a method, whose fields say what values they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field
from fractions import Fraction
from typing import Any

from gatecli.errors import SettingError

__all__ = ["Settings", "checked", "setting"]


def setting(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    structural: bool = False,
    before: Callable[[Mapping[str, Any]], Any] | None = None,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its value where none is given.
        help: what it says, as `gatecli methods` shows it.
        low: the least value allowed; none: any.
        high: the greatest value allowed; none: any.
        choices: the words allowed; none: any.
        structural: it shapes the gates, so it is fixed once attached.
        before: for a setting that came later, what files without it meant, given what they record.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "structural": structural}
    return field(default=default, metadata={**about, "before": before})


@dataclass(frozen=True)
class Settings:
    """Settings that every method has; methods subclass it and add their own."""

    gate_lr: float | None = setting(
        None, "learning rate of the gates; none: that of the weights", low=0, high=1e30
    )
    gate_weight_decay: float | None = setting(
        None, "weight decay of the gates; none: that of the weights", low=0, high=1e30
    )


def checked(known: Field[Any], value: Any) -> Any:
    """A setting's value, which may be the command line's word, in its type.

    Raises:
        SettingError: It has another type, or is out of range; the message names the setting.
    """
    kind, optional = _kind(known)
    if optional and value in (None, "none"):
        return None
    result = _converted(known.name, kind, value)
    choices = known.metadata["choices"]
    if choices and result not in choices:
        raise SettingError(
            f"expected setting `{known.name}` to be one of {', '.join(choices)}, but got `{value}`"
        )
    if kind is not str:
        _check_range(known, result, value)
    return result


def _converted(name: str, kind: type, value: Any) -> Any:
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        is_fraction = kind is float and isinstance(value, str) and "/" in value
        result = float(Fraction(value)) if is_fraction else kind(value)
        if kind is float and not math.isfinite(result):
            raise ValueError
    except (TypeError, ValueError, ArithmeticError):
        raise SettingError(
            f"expected setting `{name}` to be {_ARTICLE[kind]}, but got `{value}`"
        ) from None
    return result


def _check_range(known: Field[Any], result: float, value: Any) -> None:
    low, high = known.metadata["low"], known.metadata["high"]
    is_high_enough = low is None or result >= low
    is_low_enough = high is None or result <= high
    if not (is_high_enough and is_low_enough):
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise SettingError(f"expected setting `{known.name}` to be {span}, but got `{value}`")


_ARTICLE = {int: "a whole number", float: "a number", str: "a word"}


def _kind(known: Field[Any]) -> tuple[type, bool]:
    """A setting's type, from its postponed annotation, and whether it may be none."""
    first, _, rest = str(known.type).partition("|")
    return {"int": int, "float": float, "str": str}[first.strip()], rest.strip() == "None"
