"""Which columns of a table are the images and their classes, and what the classes are called.

Hugging Face's datasets write what each column is into the table's schema; else its type and its
name say it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatecli.data.arrays import MAX_CLASSES
from gatecli.errors import DataError

__all__ = ["Columns", "Labelled", "columns_of", "labelled"]

IMAGES = ("image", "img", "jpg", "png")  # likeliest first
LABELS = ("label", "labels", "class", "cls", "target", "fine_label")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that are read.

    Attributes:
        image: the encoded images: bytes, or {bytes, path}.
        label: their classes: numbers, or names.
        names: the classes' names by number; empty: the table tells none.
    """

    image: str
    label: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The classes of all splits as numbers.

    Attributes:
        labels: int64 (N,), by split; splits without labels are left out.
        classes: the names; empty: there are numbers alone.
        sorted_names: whether the names stand in alphabetical order, for want of another.
        notes: for people: splits that are left out.
    """

    labels: dict[str, Tensor]
    classes: tuple[str, ...]
    sorted_names: bool
    notes: tuple[str, ...] = ()


def columns_of(where: str, schema: Any) -> Columns:
    """Find the columns.

    Args:
        where: what errors begin with.
        schema: pyarrow's, of the table.

    Raises:
        DataError: no column is of that type, or several are and no name tells which.
    """
    features = _features(schema)
    images = _typed(features, "Image") or _fitting(schema, _holds_bytes)
    labels = _typed(features, "ClassLabel") or _fitting(schema, _holds_classes)
    image = _one_of(where, "images", images, IMAGES, schema.names)
    label = _one_of(where, "classes", labels, LABELS, schema.names)
    names = features.get(label, {}).get("names") or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{where}: expected the names of column {label} to be text: mend its schema"
        )
    return Columns(image=image, label=label, names=tuple(names))


def _typed(features: Mapping[str, Any], kind: str) -> list[str]:
    """The columns that are said to be of a type."""
    return [name for name, each in features.items() if each.get("_type") == kind]


def _fitting(schema: Any, fits: Callable[[Any], bool]) -> list[str]:
    """The columns whose type in memory fits."""
    return [each.name for each in schema if fits(each.type)]


def _features(schema: Any) -> Mapping[str, Any]:
    """What Hugging Face's datasets say of the columns."""
    said = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(said)["info"]["features"]
        told = {name: each for name, each in features.items() if isinstance(each, dict)}
        return {name: each for name, each in told.items() if name in schema.names}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_classes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_classes(kind.value_type)
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _one_of(
    where: str, what: str, found: list[str], usual: tuple[str, ...], there: list[str]
) -> str:
    """The only column found, or the one with the likeliest name."""
    if len(found) == 1:
        return found[0]
    likely = [name for name in usual if name in found]
    if likely:
        return likely[0]
    which = f"{len(found)} could be: {', '.join(found)}" if found else "none could be"
    raise DataError(
        f"{where}: expected one of the columns {', '.join(there)} to hold the {what}, but"
        f" {which}: call it {usual[0]}"
    )


def labelled(where: str, columns: Mapping[str, Any], names: tuple[str, ...]) -> Labelled:
    """Number the classes of all splits alike.

    Args:
        where: what errors begin with.
        columns: the labels, pyarrow's arrays, by split.
        names: the classes' names by number, where the table tells them.

    Raises:
        DataError: labels of train, or some of another split's, are missing or out of range.
    """
    values = {name: _values(column) for name, column in columns.items()}
    classes = names
    is_text = any(each.dtype.kind == "O" for each in values.values())
    if is_text:
        classes = _all_names(values)
        values = {name: _numbers(each, classes) for name, each in values.items()}
    done = {}
    notes = []
    for name, each in values.items():
        if name != "train" and len(each) and (each < 0).all():
            notes.append(f"the images of {name} have no labels: they are left out")
            continue
        _check(where, name, each, len(names) or MAX_CLASSES)
        done[name] = torch.from_numpy(each)
    return Labelled(labels=done, classes=classes, sorted_names=is_text, notes=tuple(notes))


def _all_names(values: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """The names that any split has, in alphabetical order."""
    everything: set[str] = set()
    for each in values.values():
        everything.update(value for value in each.tolist() if value is not None)
    return tuple(sorted(everything))


def _values(column: Any) -> NDArray[Any]:
    """int64, -1 for what is missing; of names an array of objects."""
    from pyarrow import compute, types

    kind = column.type
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if types.is_integer(column.type):
        numbers: NDArray[np.int64] = compute.fill_null(column.cast("int64"), -1).to_numpy()
        return numbers.astype(np.int64)  # pyarrow's own may not be written to
    values: NDArray[Any] = np.asarray(column.to_pylist() or [None], dtype=object)[: len(column)]
    return values


def _numbers(values: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.int64]:
    place: dict[Any, int] = {name: number for number, name in enumerate(classes)}
    return np.array([place.get(value, -1) for value in values.tolist()], np.int64)


def _check(where: str, split: str, labels: NDArray[np.int64], most: int) -> None:
    if not len(labels):
        raise DataError(f"{where}: the {split} split has no samples: fill it or take it away")
    lowest = int(labels.min())
    highest = int(labels.max())
    if lowest < 0 or highest >= most:
        got = "some are missing" if lowest == -1 else f"got {lowest} to {highest}"
        raise DataError(
            f"{where}: expected the {split} labels to count from 0 to at most {most - 1}, but"
            f" {got}: renumber"
        )
