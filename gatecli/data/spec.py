"""From what a user writes after --data to a data set with three splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatecli.data import forms
from gatecli.data.splits import Split, cut
from gatecli.errors import DataError

__all__ = ["DataSet", "load_data"]


@dataclass(frozen=True)
class DataSet:
    """Classes and splits: fit on "train", choose on "val", report on "test", if there is one.

    Attributes:
        spec: what stands after --data.
        classes: their names.
        splits: by name.
        mean: of the training images' values in [0, 1], one for each channel; None: not measured.
        std: the standard deviations of the same.
        augment: the augmentation where none is asked for.
        val: how val was cut from train; None where the data has its own.
        named: whether `classes` are names, not numbers.
        sorted_names: whether the classes stand in the order of their names, for want of another.
        alone: classes that a single split has, though not train, with that split's name.
        notes: for people, on how the data was read.
    """

    spec: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    augment: str
    val: dict[str, Any] | None
    named: bool = False
    sorted_names: bool = False
    alone: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def load_data(
    spec: str, *, val_seed: int = 0, val_fraction: float = 0.1, trusted: bool = False
) -> DataSet:
    """Read a data set.

    Args:
        spec: its form, see `gatecli.data.forms`.
        val_seed: of cutting val from train where the data has none.
        val_fraction: of each class of train, goes to val then.
        trusted: whether the user typed `spec` just now. Only then is a named function imported, or
            CIFAR downloaded; a spec that comes from a file must not cause either.

    Raises:
        DataError: the spec is unknown, or the data is missing, damaged or inconsistent.
    """
    form = forms.find(spec)
    if form is None:
        listing = ", ".join(forms.spellings())
        raise DataError(f"expected --data to be one of {listing}, but got {spec!r}")
    found = form.read(forms.Request(spec=spec, trusted=trusted))
    splits = dict(found.splits)
    val = None
    if "val" not in splits:
        val = _cut_val(spec, splits, val_seed, val_fraction)
    mean, std = found.statistics or splits["train"].statistics() or (None, None)
    return DataSet(
        spec=spec,
        classes=found.classes or _numbered(splits),
        splits=splits,
        mean=mean,
        std=std,
        augment=form.augment,
        val=val,
        named=bool(found.classes),
        sorted_names=found.sorted_names,
        alone=found.alone,
        notes=found.notes,
    )


def _cut_val(spec: str, splits: dict[str, Split], seed: int, fraction: float) -> dict[str, Any]:
    """Cut val from train in `splits`, and say how. Raises DataError where that cannot be."""
    is_seed = isinstance(seed, int)  # both may come from a file
    if not is_seed or not isinstance(fraction, float) or not 0 < fraction < 1:
        raise DataError(
            "expected `val_seed` to be an integer and `val_fraction` to be between 0 and 1, but"
            f" got {seed!r} and {fraction!r}"
        )
    train = splits["train"]
    kept, held = cut(train.labels, fraction, seed)
    if not len(held):
        raise DataError(
            f"{spec} has no val split, and no class of train has two images to cut one from: add"
            " images or a val split"
        )
    splits["train"] = train.take(kept)
    splits["val"] = train.take(held)
    return {"from": "train", "fraction": fraction, "seed": seed}


def _numbered(splits: Mapping[str, Split]) -> tuple[str, ...]:
    """Class names where the data has none: numbers up to the highest label of any split."""
    count = max(int(split.labels.max()) for split in splits.values()) + 1
    return tuple(map(str, range(count)))
