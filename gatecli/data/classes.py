"""Which of a network's classes each class of a data set is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from gatecli.data.class_names import (
    CLASS_LIST,
    class_list,
    few,
    own_numbers,
    places,
    places_sorted,
)
from gatecli.data.spec import DataSet
from gatecli.data.splits import Split
from gatecli.errors import DataError
from gatecli.traced.images import InputSpec

__all__ = ["Matched", "check_order", "matched"]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A data set in the order of a network's classes.

    Attributes:
        data: its labels are the network's; it has a name for each of the network's classes.
        order: one of the orders of --class-order; None: its classes have numbers of their own.
        origin: where the order comes from.
        known: whether all class names are the data's or the file's own, not numbers.
        notes: what was assumed, and which classes have no images.
    """

    data: DataSet
    order: str | None
    origin: str
    known: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Order:
    """The network's class of each class of the data set.

    Attributes:
        numbers: by the data set's own order.
        name: of the order, None: the data's own numbers.
        origin: where it comes from.
        names: of all the network's classes; None: not known.
        notes: what was assumed.
    """

    numbers: Sequence[int]
    name: str | None
    origin: str
    names: Sequence[str] | None = None
    notes: tuple[str, ...] = ()


def check_order(data: DataSet, order: str) -> None:
    """Compare what --class-order says with what a data set has.

    Raises:
        DataError: its classes have numbers, or an order, of their own.
    """
    if data.sorted_names or (order == "file" and data.named):
        return
    what = "names in an order of their own" if data.named else "numbers, and no names"
    raise DataError(
        f"--class-order {order} is for folders of images, but the classes of {data.spec} have"
        f" {what}: leave it out"
    )


def matched(data: DataSet, input: InputSpec, num_classes: int) -> Matched:
    """Bring a data set's classes into a network's order.

    Args:
        data: as it was read.
        input: what is told and recorded of the network's classes.
        num_classes: how many logits there are.

    Raises:
        DataError: the data has more classes, or --class-order asks for names that nobody knows.
    """
    order = _order(data, input, num_classes)
    names = list(order.names or map(str, range(num_classes)))
    for number, name in zip(order.numbers, data.classes, strict=True):
        names[number] = name
    by_number = list(order.numbers)
    if by_number != list(range(len(by_number))):
        data = replace(data, splits=_relabelled(data.splits, by_number))
    data = replace(data, classes=tuple(names))
    missing = _missing(data, by_number if data.named else None)
    return Matched(
        data=data,
        order=order.name,
        origin=order.origin,
        known=data.named and (order.names is not None or len(by_number) == num_classes),
        notes=(*order.notes, *missing),
    )


def _fits(names: Sequence[str] | None, count: int) -> bool:
    return names is not None and len(names) == count


def _order(data: DataSet, input: InputSpec, num_classes: int) -> _Order:
    count = len(data.classes)
    told = input.class_order if input.whence("class_order") == "told" else None
    if told == "file" and data.named:
        return _by_list(data, input, num_classes)
    is_recorded = input.whence("classes") == "data"
    if _fits(input.classes, num_classes) and data.named and (told is None or is_recorded):
        assert input.classes is not None
        numbers = places(data.classes, input.classes)
        if numbers is not None:
            return _by_names(data, input, numbers)
    _check_count(data, num_classes)
    if not data.sorted_names:
        return _Order(numbers=range(count), name=None, origin="data")
    if told is not None:
        return _Order(numbers=places_sorted(data.classes, told), name=told, origin="told")
    return _assumed(data, input, num_classes)


def _by_names(data: DataSet, input: InputSpec, numbers: list[int]) -> _Order:
    """Names that are recorded in the file, and the data set's are all among them."""
    if input.whence("classes") == "data":
        origin = input.whence("class_order")
        return _Order(numbers=numbers, name=input.class_order, origin=origin, names=input.classes)
    notes: tuple[str, ...] = ()
    if numbers != sorted(numbers):
        notes = ("the file records the classes' names in another order: matched by name",)
    return _Order(numbers=numbers, name="file", origin="file", names=input.classes, notes=notes)


def _assumed(data: DataSet, input: InputSpec, num_classes: int) -> _Order:
    """The order of names, or of numbers that name the classes themselves."""
    notes = []
    if input.classes is not None:
        notes.append(_other_names(data.classes, input.classes))
    count = len(data.classes)
    own = own_numbers(data.classes)
    if count < num_classes and own is not None and max(own) < num_classes:
        notes.append(
            f"{data.spec} has {count} of the network's {num_classes} classes: the folders' numbers"
            " are taken for the classes' (if not: --class-order names)"
        )
        return _Order(numbers=own, name="natural", origin="assumed", notes=tuple(notes))
    natural = places_sorted(data.classes, "natural")
    if natural != list(range(count)):
        place = next(number for number, at in enumerate(natural) if at != number)
        by_value = data.classes[natural.index(place)]
        notes.append(
            "class folders are taken in order of names, as torchvision does: class"
            f" {place} is {data.classes[place]}; in natural order, timm's, it is {by_value} (if"
            " so: --class-order natural)"
        )
    if count < num_classes:
        notes.append(
            f"{data.spec} has {count} classes, the network {num_classes}, and nothing says which"
            f" these are: they are taken for the first {count} (if not: list all classes in"
            f" {CLASS_LIST} in that folder, one a line, and say --class-order file)"
        )
    return _Order(numbers=range(count), name="names", origin="assumed", notes=tuple(notes))


def _by_list(data: DataSet, input: InputSpec, num_classes: int) -> _Order:
    """The order of the names that the checkpoint records, or else those of DIR/classes.txt."""
    known = input.classes if _fits(input.classes, num_classes) else None
    where = "the checkpoint"
    if known is None:
        known, where = class_list(data, num_classes)
    numbers = places(data.classes, known)
    if numbers is None:
        strange = [name for name in data.classes if known.count(name) != 1]
        raise DataError(
            f"--class-order file: class {strange[0]} of {data.spec} is not among the {len(known)}"
            f" names of {where} ({few(known)}), or not once: rename the folder, or say"
            " --class-order names or natural"
        )
    origin = input.whence("class_order")
    return _Order(numbers=numbers, name="file", origin=origin, names=known)


def _check_count(data: DataSet, num_classes: int) -> None:
    """Raise DataError where the data has more classes than the network."""
    count = len(data.classes)
    if count <= num_classes:
        return
    present = _labels(data.splits)
    if not data.named and 0 not in present and count == num_classes + 1:
        raise DataError(
            f"{data.spec} has labels from 1 to {num_classes} and no label 0, but the network's"
            f" {num_classes} classes count from 0: subtract 1 from the labels"
        )
    alone = [f"{name} is in {split} alone" for name, split in data.alone[:3]]
    hint = f" (class {'; class '.join(alone)})" if alone else ""
    raise DataError(
        f"{data.spec} has {count} classes{hint}, but the network has {num_classes}: expected the"
        " data it was trained on"
    )


def _labels(splits: Mapping[str, Split]) -> set[int]:
    found: set[int] = set()
    for split in splits.values():
        found.update(np.unique(split.labels.numpy()).tolist())
    return found


def _relabelled(splits: Mapping[str, Split], numbers: Sequence[int]) -> dict[str, Split]:
    """The same samples, each label replaced by its number."""
    table = torch.tensor(list(numbers), dtype=torch.int64)
    done = {}
    for name, split in splits.items():
        other = copy.copy(split)
        other.labels = table[split.labels]
        done[name] = other
    return done


def _missing(data: DataSet, numbers: Sequence[int] | None) -> list[str]:
    """Notes on classes without images: in the whole data set, and in single splits."""
    everywhere = _labels(data.splits)
    absent = [number for number in range(len(data.classes)) if number not in everywhere]
    notes = []
    if absent:
        named = few([data.classes[number] for number in absent])
        notes.append(f"{data.spec} has no images of class {named}")
    for name in data.splits:
        own = _labels({name: data.splits[name]})
        lacking = [data.classes[number] for number in sorted(everywhere - own)]
        if lacking:
            notes.append(f"{name} has no images of class {few(lacking)}")
    return notes


def _other_names(names: Sequence[str], known: Sequence[str]) -> str:
    strange = [name for name in names if name not in known]
    return (
        f"the file records other class names ({few(known, 2)}) than the folders'"
        f" ({few(strange or names, 2)}): they are not compared"
    )
