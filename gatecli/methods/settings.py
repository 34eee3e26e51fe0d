"""Settings of methods: a frozen dataclass a method, whose fields say what values they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from gatecli.errors import SettingError
from gatecli.methods.values import ValueType, told, type_of

__all__ = ["Known", "Length", "S", "Settings", "known", "setting"]


def setting(  # noqa: PLR0913  all by keyword but what every setting says
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    structural: bool = False,
    value: ValueType | None = None,
    before: Callable[[Mapping[str, Any]], Any] | None = None,
) -> Any:
    """A field of a settings dataclass.

    Its annotation says its type: bool, int, float, str, `tuple[str, ...]` or `Mapping[str, Any]`,
    each with `| None` where there may be none.

    Args:
        default: its value where none is given.
        help: what it says, as `gatecli methods` shows it.
        low: the least number allowed; none: any.
        high: the greatest number allowed; none: any.
        choices: the words allowed; none: any.
        structural: it shapes the gates, so it is fixed once attached.
        value: how values of another type are said.
        before: for a setting that came later, what files without it meant, given what they record.
    """
    about = {
        "help": help,
        "low": low,
        "high": high,
        "choices": choices,
        "structural": structural,
        "value": value,
        "before": before,
    }
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a training is, and how fast.

    Attributes:
        epochs: Passes over the training split.
        steps: Batches in all of them.
        lr: The weights' learning rate at the start.
        weight_decay: The weights'.
        alike: How many parts the mean in the gates' loss has, each with so much less of its
            gradient: units, or gates.
        is_adaptive: Whether the optimizer's steps are as long as the learning rate, however small
            the gradient is.
    """

    epochs: int
    steps: int
    lr: float
    weight_decay: float
    alike: float = 1.0
    is_adaptive: bool = False


@dataclass(frozen=True)
class Settings:
    """Settings that every method has; methods subclass it and add their own."""

    gate_lr: float | None = setting(
        None, "learning rate of the gates; none: that of the weights", low=0, high=1e30
    )
    gate_weight_decay: float | None = setting(
        None, "weight decay of the gates; none: that of the weights", low=0, high=1e30
    )
    gate_momentum: float | None = setting(
        None,
        "momentum of the gates (AdamW: beta1); none: that of the weights",
        low=0,
        high=1,
    )

    def check(self, epochs: int) -> None:
        """Check that they go with a training of so many epochs. Raises SettingError."""

    def suited(self, length: Length) -> dict[str, float]:
        """Values that suit a training of this length, of settings that nobody has set.

        None, unless a method says otherwise.
        """
        return {}


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, kw_only=True)
class Known:
    """One setting of a method, as its dataclass describes it.

    Attributes:
        name: What it is called.
        default: Its value where none is given.
        hint: Its annotation as it is written.
        value: How its values are said.
        optional: Whether there may be none.
        about: What `setting` was told.
    """

    name: str
    default: Any
    hint: str
    value: ValueType
    optional: bool
    about: Mapping[str, Any]

    @property
    def choices(self) -> list[str]:
        """The words among which the command line chooses; none: any others."""
        return list(self.about["choices"] or self.value.choices)

    @property
    def words(self) -> str:
        """How the command line says its values, as `yes|no`."""
        words = "|".join(self.choices) or self.value.words
        return f"{words}|none" if self.optional else words

    def read(self, given: Any) -> Any:
        """A value in the setting's type, from any of its spellings.

        Raises:
            SettingError: It has another type, or is out of range; the message names the setting.
        """
        if self.optional and (given is None or given == "none"):
            return None
        try:
            result = self.value.read(given)
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            raise self._unexpected(self.value.expected, given) from None
        choices = self.about["choices"]
        if choices and result not in choices:
            raise self._unexpected(f"one of {', '.join(choices)}", given)
        self._check_range(result, given)
        return result

    def _check_range(self, result: Any, given: Any) -> None:
        low, high = self.about["low"], self.about["high"]
        is_high_enough = low is None or result >= low
        is_low_enough = high is None or result <= high
        if not (is_high_enough and is_low_enough):
            span = f"at least {low}" if high is None else f"between {low} and {high}"
            raise self._unexpected(span, given)

    def _unexpected(self, wanted: str, given: Any) -> SettingError:
        came = given if isinstance(given, (str, int, float)) else told(given)
        return SettingError(f"expected setting `{self.name}` to be {wanted}, but got `{came}`")


def known(settings: type[Settings]) -> dict[str, Known]:
    """The settings of a dataclass, by name."""
    hints = get_type_hints(settings)
    found = {}
    for each in fields(settings):
        value, optional = type_of(hints[each.name], each.metadata["value"])
        found[each.name] = Known(
            name=each.name,
            default=each.default,
            hint=str(each.type),
            value=value,
            optional=optional,
            about=each.metadata,
        )
    return found
