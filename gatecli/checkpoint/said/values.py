"""Take single facts out of what a file says, each only where it is what it may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gatecli import limits
from gatecli.traced.recipe import SaidInput, is_a

__all__ = ["INTERPOLATIONS", "Values"]

# As PIL numbers them, and transformers after it.
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
LONGEST = 200  # characters of a name
MOST_CLASSES = 100_000
CLASS_KEYS = ("label_names", "class_names", "classes", "id2label", "idx_to_class", "class_to_idx")


class Values:
    """A mapping out of a file, asked for what it may hold.

    Args:
        values: the mapping; keys that are no text are not looked at.

    Attributes:
        odd: keys whose values make no sense.
    """

    def __init__(self, values: Mapping[Any, Any]) -> None:
        self.values = values
        self.odd: list[str] = []

    def get(self, *keys: str) -> tuple[str, Any]:
        """The first of these keys that says anything, and what; ("", None) where none does."""
        for key in keys:
            value = self.values.get(key)
            if value is not None and value != "":
                return key, value
        return "", None

    def _not(self, key: str) -> None:
        if key and key not in self.odd:
            self.odd.append(key)

    def name(self, *keys: str) -> str:
        """A name; empty where there is none."""
        key, value = self.get(*keys)
        if isinstance(value, str) and len(value) <= LONGEST and value.isprintable():
            return value
        self._not(key)
        return ""

    def count(self, *keys: str) -> int | None:
        """A count above 0."""
        key, value = self.get(*keys)
        if is_a(value, int) and 0 < value <= 10_000_000:
            return int(value)
        if value != 0 or isinstance(value, bool):  # 0 classes are features alone: nothing said
            self._not(key)
        return None

    def share(self, *keys: str) -> float | None:
        """A number above 0, at most 2."""
        key, value = self.get(*keys)
        if is_a(value, float) and 0 < value <= 2:
            return float(value)
        self._not(key)
        return None

    def size(self, *keys: str) -> tuple[int, int] | None:
        """Height and width: of one side, both, or both behind the channels."""
        key, value = self.get(*keys)
        sides = [value, value] if is_a(value, int) else value
        if isinstance(sides, (list, tuple)) and len(sides) in (2, 3):
            height, width = sides[-2:]
            if _is_side(height) and _is_side(width):
                return height, width
        self._not(key)
        return None

    def numbers(self, *keys: str, positive: bool = False) -> tuple[float, ...] | None:
        """One number a channel."""
        key, value = self.get(*keys)
        are_few = isinstance(value, (list, tuple)) and 0 < len(value) <= 64
        if are_few and all(_is_number(each, positive=positive) for each in value):
            return tuple(float(each) for each in value)
        self._not(key)
        return None

    def interpolation(self, *keys: str) -> str | None:
        """The word for how images are resized; `random` says nothing."""
        key, value = self.get(*keys)
        if is_a(value, int) and 0 <= value < len(INTERPOLATIONS):
            return INTERPOLATIONS[value]
        if value in INTERPOLATIONS:
            return str(value)
        if value != "random":
            self._not(key)
        return None

    def classes(self) -> tuple[str, ...] | None:
        """The classes' names in order."""
        key, value = self.get(*CLASS_KEYS)
        if key == "":
            return None
        names = _in_order(key, value)
        if names is None or not all(isinstance(name, str) for name in names):
            self._not(key)
            return None
        return tuple(name[:LONGEST] for name in names)

    def input(self, where: str) -> SaidInput | None:
        """What these values say of images in timm's words; None: nothing."""
        found = SaidInput(
            where=where,
            size=self.size("input_size", "img_size", "image_size"),
            crop=self.share("crop_pct"),
            interpolation=self.interpolation("interpolation"),
            mean=self.numbers("mean"),
            std=self.numbers("std", positive=True),
            channels=self._channels(),
            classes=self.classes(),
        )
        return None if found == SaidInput(where=where) else found

    def _channels(self) -> int | None:
        size = self.values.get("input_size")
        if isinstance(size, (list, tuple)) and len(size) == 3 and is_a(size[0], int):
            return int(size[0])
        return self.count("in_chans", "num_channels")


def _is_side(value: Any) -> bool:
    return is_a(value, int) and 0 < value <= limits.INPUT_SIDE


def _is_number(value: Any, *, positive: bool) -> bool:
    return is_a(value, float) and math.isfinite(value) and (value > 0 or not positive)


def _in_order(key: str, value: Any) -> list[Any] | None:
    """Names by their numbers; None where these are not 0, 1, 2 and so on."""
    if isinstance(value, (list, tuple)):
        return list(value[:MOST_CLASSES])
    if not isinstance(value, Mapping) or len(value) > MOST_CLASSES:
        return None
    pairs = value.items()
    by_number: dict[Any, Any] = {}
    for a, b in pairs:
        number, name = (b, a) if key == "class_to_idx" else (a, b)
        if isinstance(number, str) and number.isdecimal() and len(number) < 8:
            number = int(number)
        by_number[number if is_a(number, int) else str(number)] = name
    if set(by_number) != set(range(len(by_number))):
        return None
    return [by_number[number] for number in range(len(by_number))]
