"""Bring a network and a data set together: classes, normalisation, and which data it was."""

from __future__ import annotations

from dataclasses import replace

from gatecli.architectures.table import IMAGENET
from gatecli.data import DataSet, check_classes, forms, load_data
from gatecli.errors import DataError, SettingError
from gatecli.network import Network

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "fit", "open_data", "split_of"]

IMAGENET_MEAN, IMAGENET_STD = IMAGENET


def open_data(network: Network, spec: str | None, *, trusted: bool = True) -> DataSet:
    """Read a data set and fit it to a network, whose recipe then remembers it.

    Args:
        network: the network.
        spec: what the user names; None: the data set that the recipe remembers.
        trusted: whether the user has typed `spec` just now; a function that it names is called only
            then.

    Raises:
        DataError: neither names one, it cannot be read, or its class count is not the network's.
    """
    remembered = network.recipe.data or {}
    if spec is None and not remembered:
        raise DataError(f"expected a data set but none is named: say --data {forms.listed()}")
    same = spec in (None, remembered.get("spec"))
    cut = (remembered.get("val") or {}) if same else {}
    data = load_data(
        remembered["spec"] if spec is None else spec,
        val_seed=cut.get("seed", 0),
        val_fraction=cut.get("fraction", 0.1),
        trusted=trusted and spec is not None,
    )
    fit(network, data)
    return data


def fit(network: Network, data: DataSet) -> None:
    """Fit a data set to a network: its normalisation is taken where the network has none.

    The recipe then remembers the data set.

    Raises:
        DataError: the class counts differ.
        SettingError: the normalisation is of another number of channels.
    """
    check_classes(data, network.recipe.source.num_classes)
    given = network.input
    mean = given.mean or data.mean or IMAGENET_MEAN
    std = given.std or data.std or IMAGENET_STD
    for name, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, given.channels):
            raise SettingError(
                f"expected {name} to have 1 or {given.channels} numbers, but got {len(values)}"
            )
    network.recipe = replace(
        network.recipe,
        input=replace(given, mean=tuple(mean), std=tuple(std)),
        data={"spec": data.spec, "val": data.val},
    )


def split_of(data: DataSet, name: str) -> str:
    """The split's name, if the data set has it.

    Raises:
        DataError: it does not; the error names those that it has.
    """
    if name not in data.splits:
        raise DataError(
            f"expected --split to be one of {', '.join(data.splits)} for {data.spec}, but got"
            f" `{name}`"
        )
    return name
