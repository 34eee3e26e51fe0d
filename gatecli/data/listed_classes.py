"""Names of classes that lie beside a data set's files, by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gatecli import limits
from gatecli.errors import DataError, reason

__all__ = ["listed_classes"]

LISTS = ("classes.txt", "classes.json")


def listed_classes(where: str, folder: Path, count: int) -> tuple[str, ...]:
    """The names in classes.txt, one a line, or in classes.json, a list or {name: number}.

    Args:
        where: what errors begin with.
        folder: where the files lie.
        count: how many classes the labels tell of, at least.

    Returns:
        A name for each class; nothing where there is no such file.

    Raises:
        DataError: the file cannot be read, or has fewer names.
    """
    for name in LISTS:
        file = folder / name
        if not file.is_file():
            continue
        names = _names(where, file)
        if len(names) < count or len(set(names)) < len(names):
            raise DataError(
                f"{where}: expected {file} to have a name of its own for each of {count} classes or"
                f" more, but got {len(set(names))} names: mend it"
            )
        return names
    return ()


def _names(where: str, file: Path) -> tuple[str, ...]:
    try:
        if file.stat().st_size > limits.CONFIG_BYTES:
            raise ValueError(f"it has more than {limits.CONFIG_BYTES:,} bytes")
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".txt":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        return _in_order(json.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: expected {file} to list the classes' names, but reading it failed"
            f" ({reason(error)}): mend it"
        ) from error


def _in_order(said: Any) -> tuple[str, ...]:
    """The names in a JSON value, by number."""
    if isinstance(said, dict):
        numbers = list(said.values())
        if not all(type(number) is int for number in numbers):
            raise ValueError("a name's value is no whole number")
        if sorted(numbers) != list(range(len(numbers))):
            raise ValueError("its numbers do not count from 0")
        said = sorted(said, key=said.__getitem__)
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        raise ValueError("it is neither a list of names nor {name: number}")
    return tuple(said)
