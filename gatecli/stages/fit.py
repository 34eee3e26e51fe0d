"""Bring a network and a data set together: classes, normalisation, and which data it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gatecli.architectures.table import IMAGENET
from gatecli.data import DataSet, forms, load_data
from gatecli.data.classes import Matched, matched
from gatecli.data.description import numbers
from gatecli.errors import DataError, SettingError
from gatecli.network import Network
from gatecli.traced.images import InputSpec

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "fit", "open_data", "split_of"]

IMAGENET_MEAN, IMAGENET_STD = IMAGENET
NEAR = 0.05  # means or deviations that differ less are as good as the same


def open_data(network: Network, spec: str | None, *, trusted: bool = True) -> DataSet:
    """Read a data set and fit it to a network, whose recipe then remembers it.

    Args:
        network: the network.
        spec: what the user names; None: the data set that the recipe remembers.
        trusted: whether the user has typed `spec` just now; a function that it names is called only
            then.

    Returns:
        The data set, with the network's class numbers; its notes say what was assumed.

    Raises:
        DataError: neither names one, it cannot be read, or it has more classes than the network.
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
    return fit(network, data)


def fit(network: Network, data: DataSet) -> DataSet:
    """Fit a data set to a network: its normalisation is taken where the network has none.

    The recipe then remembers the data set, and the order of its classes.

    Returns:
        The data set, with the network's class numbers as labels and a name for each of its classes.

    Raises:
        DataError: the data has more classes, its classes cannot be ordered as was asked, or the
            normalisation of a network of one channel is not known.
        SettingError: the normalisation is of another number of channels.
    """
    given = network.input
    result = matched(data, given, network.recipe.source.num_classes)
    spec, notes = with_usual(given, data)
    is_new = (network.recipe.data or {}).get("spec") != data.spec
    if is_new:
        notes += _own_statistics(spec, data)
    network.recipe = replace(
        network.recipe,
        input=_with_classes(spec, result),
        data={"spec": data.spec, "val": data.val},
    )
    return replace(result.data, notes=(*data.notes, *result.notes, *notes))


def with_usual(given: InputSpec, data: DataSet | None = None) -> tuple[InputSpec, list[str]]:
    """The record with mean and deviation: those known, the data set's, or ImageNet's.

    Args:
        given: the record.
        data: the data set, if there is one.

    Returns:
        The record, and a note where ImageNet's numbers were assumed.

    Raises:
        DataError: nothing is known of the normalisation, and the images have not three channels.
        SettingError: it is of another number of channels.
    """
    spec = given
    assumed = []
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    measured = (None, None) if data is None else (data.mean, data.std)
    for name, own in zip(usual, measured, strict=True):
        values = getattr(given, name)
        origin = given.whence(name)
        if values is None and own is not None:
            values = own
            origin = "data"
        elif values is None:
            values = _usual(given, name, usual[name])
            origin = "assumed"
            assumed.append(name)
        _check_length(name, values, given.channels)
        origins = {**spec.origin, name: origin}
        changed = {name: tuple(values)}
        spec = replace(spec, **changed, origin=origins)  # type: ignore[arg-type]
    return spec, [_assumption(assumed)] if assumed else []


def _assumption(names: Sequence[str]) -> str:
    what = " and ".join(names)
    options = ", ".join(f"--{name}" for name in names)
    return (
        f"what the images were normalised with is not known: ImageNet's {what} {_verb(names)} taken"
        f" (if not: {options})"
    )


def _verb(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _usual(given: InputSpec, name: str, values: tuple[float, ...]) -> tuple[float, ...]:
    """ImageNet's numbers, which are of three channels. Raises DataError for other counts."""
    if given.channels != 3:
        colour = ": image files are turned to grey for it" if given.channels == 1 else ""
        raise DataError(
            f"the network takes images of {given.channels} channel"
            f"{'s' * (given.channels > 1)}{colour}; what they were normalised with is not known:"
            f" say it with --mean and --std, one number each (--{name} is missing)"
        )
    return values


def _check_length(name: str, values: Sequence[float], channels: int) -> None:
    if len(values) not in (1, channels):
        wish = "1 number" if channels == 1 else f"1 or {channels} numbers"
        raise SettingError(
            f"expected --{name} to have {wish}, as the network's images have {channels}"
            f" channel{'s' * (channels > 1)}, but got {len(values)}"
        )


def _own_statistics(spec: InputSpec, data: DataSet) -> list[str]:
    """A note where the library's or ImageNet's numbers are far from the data set's own."""
    if data.mean is None or data.std is None or spec.mean is None or spec.std is None:
        return []
    if spec.whence("mean") not in ("library", "assumed"):
        return []
    if _near(spec.mean, data.mean) and _near(spec.std, data.std):
        return []
    whose = "the library's" if spec.whence("mean") == "library" else "ImageNet's"
    return [
        f"images are normalised with {whose} numbers; {data.spec} has a mean of"
        f" {numbers(data.mean)} and a std of {numbers(data.std)} of its own (if the network was"
        f" trained with these: --mean {numbers(data.mean)} --std {numbers(data.std)})"
    ]


def _near(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    count = max(len(ours), len(theirs))
    pairs = zip(_widened(ours, count), _widened(theirs, count), strict=True)
    return all(abs(a - b) < NEAR for a, b in pairs)


def _widened(values: Sequence[float], count: int) -> list[float]:
    return [values[0]] * count if len(values) == 1 else list(values)


def _with_classes(spec: InputSpec, result: Matched) -> InputSpec:
    """The record with the classes' order, and their names where all are known."""
    origin = dict(spec.origin)
    if result.order is not None:
        origin["class_order"] = result.origin
        spec = replace(spec, class_order=result.order)
    if result.known and spec.whence("classes") != "file":
        origin["classes"] = "data"
        spec = replace(spec, classes=result.data.classes)
    return replace(spec, origin=origin)


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
