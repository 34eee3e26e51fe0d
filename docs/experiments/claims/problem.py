"""The problem that all is measured on: ten letters and digits that look alike, at 16x16."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import gatecli
from gatecli.architectures.build import build
from gatecli.data import DataSet, Split
from gatecli.network import Network
from gatecli.traced.recipe import InputSpec, Recipe, Source

__all__ = ["NEW", "Problem", "read_problem"]

SIGNS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # the data's classes, in its order
CLASSES = "0OQD1I8B5S"  # those that look alike leave a network something to gain
SIZE = 16  # pixels
NEW = "new"  # the data's own test split, 30 % of it in fonts that no training image has


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Images to train on, to choose by, and to report on.

    Attributes:
        data: With splits train and val, the folds, and NEW.
        folds: Names of the splits that are reported on: all test images and those training images
            that nothing is trained on, dealt out at random to parts of the same size. How much they
            differ says how much chance there is in the choice of images.
        size: Height and width of the images in pixels.
        about: What a run depends on, for its line.
    """

    data: DataSet
    folds: tuple[str, ...]
    size: int
    about: Mapping[str, Any]

    def network(self, arch: str, seed: int, given: Mapping[str, Any]) -> Network:
        """A network with random weights, from a seed and its arguments, in training mode."""
        args = {**given, "num_classes": len(self.data.classes)}
        torch.manual_seed(seed)
        model = build(arch, args)
        images = InputSpec((self.size, self.size), 3, self.data.mean, self.data.std)
        source = Source(arch, args, num_classes=len(self.data.classes))
        network = Network(model, Recipe(source, images))
        gatecli.fit(network, self.data)
        return network.train()


def read_problem(path: str, *, train: int = 3000, folds: int = 20, each: int = 10_000) -> Problem:
    """Read the problem from an npz file of `glyphs36`'s form.

    Args:
        path: Of the file.
        train: Images to train on; those left over are reported on.
        folds: How many there are.
        each: Images in a fold at most.

    Raises:
        DataError: The file cannot be read, or is none.
    """
    data = gatecli.load_data(f"npz:{path}")
    own = {name: _classes_of(split) for name, split in data.splits.items()}
    everything = own["train"]
    fitted = everything.take(torch.arange(train))
    left = everything.take(torch.arange(train, len(everything)))
    reported = _dealt(_joined(left, own["test"]), folds, each)
    mean, std = fitted.statistics() or (None, None)
    splits = {"train": fitted, "val": own["val"], NEW: own["test"], **reported}
    about: dict[str, Any] = {
        "classes": CLASSES,
        "size": SIZE,
        "train": train,
        "test": folds * len(reported["fold0"]),
    }
    data = replace(data, classes=tuple(CLASSES), splits=splits, mean=mean, std=std, named=True)
    return Problem(data=data, folds=tuple(reported), size=SIZE, about=about)


def _classes_of(split: Split) -> Any:
    """The samples of CLASSES, with their numbers there."""
    number = torch.full((len(SIGNS),), -1)
    for index, sign in enumerate(CLASSES):
        number[SIGNS.index(sign)] = index
    rows = torch.nonzero(number[split.labels] >= 0).flatten()
    taken = split.take(rows)
    taken.labels = number[taken.labels]
    return taken


def _joined(one: Any, other: Any) -> Any:
    """Two splits in memory as one."""
    images = torch.cat([one.images, other.images])
    return type(one)(images, torch.cat([one.labels, other.labels]))


def _dealt(split: Split, count: int, most: int) -> dict[str, Split]:
    """Parts of the same size, `most` samples each at most; what is left over is left out."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    size = min(most, len(split) // count)
    parts: list[Tensor] = list(order[: count * size].split(size))
    return {f"fold{number}": split.take(rows) for number, rows in enumerate(parts)}
