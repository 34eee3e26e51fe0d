"""Names of classes: their orders, their numbers, and lists of them in files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatecli import limits
from gatecli.data.spec import DataSet
from gatecli.errors import DataError

__all__ = [
    "CLASS_LIST",
    "class_list",
    "few",
    "natural_key",
    "own_numbers",
    "places",
    "places_sorted",
]

CLASS_LIST = "classes.txt"  # in an image folder, one name a line, for --class-order file
SHOWN = 6  # names in a note
DIGITS = 8  # of a number that may be a class's


def natural_key(name: str) -> list[Any]:
    """What timm sorts class folders by: numbers in names by their value, in lower case."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if part.isdecimal() else part for part in parts]


def places_sorted(names: Sequence[str], order: str) -> list[int]:
    """The place of each name in an order."""
    key = natural_key if order == "natural" else _as_it_is
    ranked = sorted(names, key=key)
    place = {name: number for number, name in enumerate(ranked)}
    return [place[name] for name in names]


def _as_it_is(name: str) -> list[Any]:
    return [name]


def own_numbers(names: Sequence[str]) -> list[int] | None:
    """The numbers that names are; None where one is none, or two are the same."""
    if not all(name.isascii() and name.isdecimal() and len(name) < DIGITS for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def places(names: Sequence[str], known: Sequence[str]) -> list[int] | None:
    """The place of each name among those known; None where one is not, or not once."""
    place: dict[str, int] = {}
    twice = set()
    for number, name in enumerate(known):
        if name in place:
            twice.add(name)
        place[name] = number
    if not all(name in place and name not in twice for name in names):
        return None
    return [place[name] for name in names]


def class_list(data: DataSet, num_classes: int) -> tuple[tuple[str, ...], str]:
    """The names in DIR/classes.txt, and the file's own.

    Raises:
        DataError: there is none, it cannot be read, or has another number of names.
    """
    file = Path(data.spec.partition(":")[2]).expanduser() / CLASS_LIST
    if not data.sorted_names or not file.is_file():
        raise DataError(
            f"--class-order file: the checkpoint records no class names, and there is no {file}"
            " with one name a line: say --class-order names or natural, or write that file"
        )
    try:
        if file.stat().st_size > limits.HEADER_BYTES:
            raise ValueError(f"it has more than {limits.HEADER_BYTES:,} bytes")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text ({error}): mend it") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != num_classes:
        raise DataError(
            f"expected {file} to name the network's {num_classes} classes, one a line, but it names"
            f" {len(names)}: mend it"
        )
    return names, str(file)


def few(names: Sequence[str], most: int = SHOWN) -> str:
    """The first names, and how many there are."""
    rest = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
