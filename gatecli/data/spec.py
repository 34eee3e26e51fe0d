"""From what a user writes after --data to a data set with three splits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatecli.data import sources
from gatecli.data.arrays import ArraySplit
from gatecli.data.folders import image_folder
from gatecli.data.splits import Split
from gatecli.errors import DataError

KINDS = (
    "digits",
    "cifar10:DIR",
    "cifar100:DIR",
    "imagefolder:DIR",
    "npz:FILE",
    "package.module:callable",
)
AUGMENT = {
    "cifar10": "crop-flip",
    "cifar100": "crop-flip",
    "imagefolder": "imagenet",
}  # the others: shift, which spoils no digit
Statistics = tuple[tuple[float, ...], tuple[float, ...]]
CIFAR: dict[str, Statistics] = {  # of all 50,000 training images
    "cifar10": ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    "cifar100": ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
}


@dataclass(frozen=True)
class DataSet:
    """Classes and splits: fit on "train", choose on "val", report on "test", if there is one."""

    spec: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    mean: (
        tuple[float, ...] | None
    )  # of the training images' values in [0, 1], one for each channel; None: not measured
    std: tuple[float, ...] | None
    augment: str  # the default augmentation
    val: dict[str, Any] | None  # how val was cut from train; None where the data has its own


def load_data(
    spec: str, *, val_seed: int = 0, val_fraction: float = 0.1, trusted: bool = False
) -> DataSet:
    """Read a data set.

    `val_seed` and `val_fraction` say how to cut val from train where the data has none.

    `trusted` says that the user typed `spec` just now: only then is a named function imported, or
    CIFAR downloaded. A spec that comes from a file must not cause either.

    Raises DataError, one line, for a spec that is unknown and for data that is missing, damaged or
    inconsistent.
    """
    kind, _, rest = spec.partition(":")
    path = Path(os.path.expanduser(rest))
    classes: tuple[str, ...] = ()
    splits: Mapping[str, Split]
    if spec == "digits":
        splits = sources.digits(spec)
    elif kind in CIFAR and rest:
        classes, splits = sources.cifar(spec, kind, path, download=trusted)
    elif kind == "imagefolder" and rest:
        classes, splits = image_folder(spec, path)
    elif kind == "npz" and rest:
        splits = sources.npz(spec, path)
    elif _is_callable(kind, rest):
        if not trusted:
            raise DataError(
                f"the data set is made by the function {spec}, which is not run unless you name it:"
                f" pass --data {spec} again"
            )
        splits = sources.function(spec, kind, rest)
    else:
        raise DataError(f"expected --data to be one of {', '.join(KINDS)}, but got {spec!r}")
    splits, val = _with_val(spec, dict(splits), val_seed, val_fraction)
    train = splits["train"]
    mean, std = CIFAR.get(kind) or (
        train.statistics() if isinstance(train, ArraySplit) else (None, None)
    )
    return DataSet(
        spec, classes or _numbered(spec, splits), splits, mean, std, AUGMENT.get(kind, "shift"), val
    )


def check_classes(data: DataSet, num_classes: int) -> None:
    """Raises DataError where the network has another number of classes than the data."""
    if len(data.classes) != num_classes:
        raise DataError(
            f"{data.spec} has {len(data.classes)} classes, but the network has {num_classes}:"
            " expected the data it was trained on"
        )


def _is_callable(module: str, name: str) -> bool:
    reserved = {kind.partition(":")[0] for kind in KINDS}
    return (
        module not in reserved
        and name.isidentifier()
        and all(part.isidentifier() for part in module.split("."))
    )


def _with_val(
    spec: str, splits: dict[str, Split], seed: int, fraction: float
) -> tuple[dict[str, Split], dict[str, Any] | None]:
    """Cut val from train where it is missing, and say how."""
    if "val" in splits:
        return splits, None
    if not (
        isinstance(seed, int) and isinstance(fraction, float) and 0 < fraction < 1
    ):  # they may come from a file
        raise DataError(
            "expected `val_seed` to be an integer and `val_fraction` to be between 0 and 1, but"
            f" got {seed!r} and {fraction!r}"
        )
    kept, cut = sources.cut(splits["train"].labels, fraction, seed)
    if not len(cut):
        raise DataError(
            f"{spec} has no val split, and no class of train has two images to cut one from: add"
            " images or a val split"
        )
    train = splits["train"]
    return {**splits, "train": train.take(kept), "val": train.take(cut)}, {
        "from": "train",
        "fraction": fraction,
        "seed": seed,
    }


def _numbered(spec: str, splits: Mapping[str, Split]) -> tuple[str, ...]:
    """Class names where the data has none: numbers up to train's highest label.

    Raises DataError where another split goes beyond.
    """
    count = int(splits["train"].labels.max()) + 1
    for name, split in splits.items():
        if (highest := int(split.labels.max())) >= count:
            raise DataError(
                f"{spec}: expected the {name} labels to be from 0 to {count - 1}, as in train, but"
                f" got {highest}: mend them or train's"
            )
    return tuple(map(str, range(count)))
