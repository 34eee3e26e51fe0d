"""What a form of --data is, and the registry of all forms."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gatecli.data.splits import Split

__all__ = [
    "SPLITS",
    "Form",
    "Found",
    "Request",
    "Statistics",
    "find",
    "is_cropped",
    "listed",
    "may_be_code",
    "names_path",
    "register",
    "spellings",
    "with_augment",
]

SPLITS = ("train", "val", "test")
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A data set that somebody asks for.

    Attributes:
        spec: what stands after --data. Errors begin with it.
        trusted: whether the user typed it just now. Only then may a form run code that the spec
            names, or download anything.
    """

    spec: str
    trusted: bool

    @property
    def kind(self) -> str:
        """What stands before the first colon."""
        return self.spec.partition(":")[0]

    @property
    def operand(self) -> str:
        """What stands behind the first colon."""
        return self.spec.partition(":")[2]

    @property
    def path(self) -> Path:
        """The operand as a file or folder, `~` expanded."""
        return Path(os.path.expanduser(self.operand))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What reading a form gives.

    Attributes:
        splits: "train", and "val" and "test" where the data has them.
        classes: the classes' names; empty where the data has numbers alone.
        statistics: mean and standard deviation of the training images' values in [0, 1], one for
            each channel; None where they are to be measured.
        sorted_names: whether the classes stand in the order of their names, for want of another.
        alone: classes that a single split has, though not train, with that split's name.
        notes: for people, on how the data was read.
    """

    splits: Mapping[str, Split]
    classes: tuple[str, ...] = ()
    statistics: Statistics | None = None
    sorted_names: bool = False
    alone: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form that the argument of --data can have: KIND, or KIND:OPERAND.

    Attributes:
        kind: what stands before the colon.
        operand: a word for what stands behind it; empty where the kind stands alone.
        read: reads the data set. Raises DataError, one line, where it is missing or damaged.
        augment: the augmentation of training images where none is asked for.
        is_path: whether the operand is a file or folder.
        is_cropped: whether images are cropped as they are read, as image files of any size are.
        recognises: tells whether a spec of no other form is of this one, for a form whose kind is
            not one fixed word; None for all others.
    """

    kind: str
    operand: str = ""
    read: Callable[[Request], Found]
    augment: str = "shift"
    is_path: bool = False
    is_cropped: bool = False
    recognises: Callable[[str], bool] | None = None

    @property
    def spelling(self) -> str:
        """The form as help and errors show it, "npz:FILE"."""
        return f"{self.kind}:{self.operand}" if self.operand else self.kind


_FORMS: dict[str, Form] = {}


def register(form: Form) -> Form:
    """Offer a form to --data.

    Raises:
        ValueError: there is one of that kind already.
    """
    if form.kind in _FORMS:
        raise ValueError(f"there is a form {form.kind} of --data already")
    _FORMS[form.kind] = form
    return form


def find(spec: str) -> Form | None:
    """The form that a spec has; None where it has none."""
    kind, _, operand = spec.partition(":")
    form = _FORMS.get(kind)
    if form is None:
        return next((each for each in _FORMS.values() if _recognised(each, spec)), None)
    if form.recognises is not None:
        return None  # its kind is a word for any
    fits = bool(operand) if form.operand else spec == kind
    return form if fits else None


def _recognised(form: Form, spec: str) -> bool:
    return form.recognises is not None and form.recognises(spec)


def spellings() -> list[str]:
    """All forms as they are written: those without an operand first, open ones last."""
    return [form.spelling for form in sorted(_FORMS.values(), key=_place)]


def _place(form: Form) -> tuple[bool, bool, str]:
    return form.recognises is not None, bool(form.operand), form.kind


def listed() -> str:
    """All forms in one phrase: "digits, npz:FILE or package.module:callable"."""
    *others, last = spellings()
    return f"{', '.join(others)} or {last}"


def names_path(kind: str) -> bool:
    """Whether what stands behind `kind:` is a file or folder."""
    return kind in _FORMS and _FORMS[kind].is_path


def may_be_code(spec: str) -> bool:
    """Whether a spec is of no form that has a fixed kind and an operand, and so may name code."""
    kind, colon, _ = spec.partition(":")
    form = _FORMS.get(kind)
    is_plain = form is not None and form.recognises is None and form.operand != ""
    return bool(colon) and not is_plain


def is_cropped(spec: str) -> bool:
    """Whether the images of a data set are cropped as they are read."""
    kind, colon, _ = spec.partition(":")
    return bool(colon) and kind in _FORMS and _FORMS[kind].is_cropped


def with_augment(augment: str) -> list[str]:
    """The kinds whose usual augmentation is `augment`."""
    return sorted(form.kind for form in _FORMS.values() if form.augment == augment)
