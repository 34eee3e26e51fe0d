"""Find the architecture from the names and shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gatecli.architectures.arguments import check_args, is_callable_name, split_arch
from gatecli.architectures.comparison import (
    SPELLINGS,
    Comparison,
    Spelt,
    Unfit,
    canonical,
    compare,
)
from gatecli.architectures.table import (
    CHANNEL_ARGS,
    CHANNELS,
    CLASSES,
    COUNTER,
    POSITIONS,
    USUAL_SIZE,
    Row,
    Shape,
    Statistics,
    find_rows,
    image_size,
    make_row,
    positions,
    table,
)
from gatecli.errors import ArchitectureError

__all__ = ["Found", "found_for", "identify"]

WAY_OUT = "name it with --arch torchvision:NAME or --arch package.module:callable"
CIFAR_STEM = (
    "taken to have a 3x3 stem with stride 1 and no max-pool (if not: --arch-arg maxpool=true,"
    " --arch-arg stem_stride=2)"
)
STRIDE = (
    "the stride is taken to be on the 3x3 convolution of each bottleneck (if not: --arch-arg"
    " stride_on=conv1)"
)
PAD = (
    "the shortcuts are taken to be padded with zeros on both sides of the channels (if not:"
    " --arch-arg pad=end)"
)
PROJECT = (
    "the projections are taken to read a block's input, not its first activation (if they do:"
    " --arch-arg project=activation)"
)
TRANSFORM = (
    "taken to read images as they are normalised (if it transforms its input, as torchvision's own"
    " pretrained one does: --arch-arg transform_input=true)"
)


@dataclass(frozen=True)
class Found:
    """An architecture that fits a checkpoint.

    Attributes:
        arch: its name.
        args: its arguments: `build(arch, args)` has the tensors, once they are renamed.
        names: parts of canonical tensor names -> the checkpoint's spelling, {"fc": "linear"}.
        input_size: side of its images in pixels.
        mean: of its images' values in [0, 1]; None where the data set's own is meant.
        std: the standard deviation of the same.
        notes: what was assumed because no tensor tells it.
    """

    arch: str
    args: dict[str, Any]
    names: dict[str, str]
    input_size: int
    mean: Statistics
    std: Statistics
    notes: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Channels of the images; 3 where no argument says otherwise."""
        return next((self.args[name] for name in CHANNEL_ARGS.values() if name in self.args), 3)


def identify(shapes: Mapping[str, Sequence[int]], *, nearest: bool = True) -> Found:
    """The one known architecture with these tensors.

    Its numbers of classes and input channels are whatever the tensors have.

    Args:
        shapes: the tensors' shapes by name.
        nearest: whether an error names the nearest ones, which takes its time.

    Raises:
        Unfit: none fits.
        ArchitectureError: several do.
    """
    plain = _tuples(shapes)
    rows = [row for row in table() if len(row.tensors) == len(plain)]
    families = SPELLINGS if nearest else {row.family for row in rows}
    spelt = {family: canonical(plain, family) for family in families}
    fits = _fits(rows, spelt)
    if len(fits) == 1:
        row, result = fits[0]
        return _found(row, row.args, result, spelt[row.family][1])
    if fits:
        titles = ", ".join(_title(row) for row, _ in fits)
        raise ArchitectureError(f"several architectures fit these tensors: {titles}; {WAY_OUT}")
    listing = "; ".join(_nearest(spelt)) if nearest else "not asked for"
    raise Unfit(f"no known architecture has these tensors, the nearest are {listing}; {WAY_OUT}")


def _fits(rows: Sequence[Row], spelt: Mapping[str, Spelt]) -> list[tuple[Row, Comparison]]:
    """The rows that differ in nothing."""
    fits = []
    for row in rows:
        own = spelt[row.family][0]
        if row.tensors.keys() != own.keys():
            continue  # nearly always, and cheaper than to compare shapes
        result = compare(row.tensors, own)
        if not result.differing:
            fits.append((row, result))
    return fits


def _nearest(spelt: Mapping[str, Spelt]) -> list[str]:
    """The three architectures that differ least, and how."""
    results = [(row, compare(row.tensors, spelt[row.family][0])) for row in table()]
    results.sort(key=lambda pair: pair[1].differing)
    listing = []
    for row, result in results[:3]:
        listing.append(f"{_title(row)} ({result.describe(spelt[row.family][1])})")
    return listing


def found_for(arch: str, args: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Found:
    """The same for an architecture that the user names.

    Args:
        arch: its name.
        args: its arguments; what they leave out is taken from the tensors where these show it.
        shapes: the tensors' shapes by name.

    Raises:
        Unfit: it has other tensors.
        ArchitectureError: there is no such network, or it does not take `args`.
    """
    plain = _tuples(shapes)
    rows = rows_for(arch, args, plain)
    own, names = canonical(plain, rows[0].family)
    results = [compare(row.tensors, own) for row in rows]
    place = next((n for n, result in enumerate(results) if not result.differing), 0)
    row = rows[place]
    result = results[place]
    if result.differing:
        raise Unfit(
            f"the tensors are not those of {arch}: {result.describe(names)}; without --arch it is"
            " looked up"
        )
    return _found(row, {**row.args, **args}, result, names)


def rows_for(arch: str, args: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> list[Row]:
    """The rows that an architecture may have with these arguments. As `found_for`."""
    check_args(arch, args)
    rows = [_with_counts(row, args) for row in find_rows(arch, args)]
    if not rows and is_callable_name(arch):
        return [_callable_row(arch, args, _tuples(shapes))]
    return rows or [make_row(arch, args)]


def _tuples(shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    return {name: tuple(shape) for name, shape in shapes.items() if not name.endswith(COUNTER)}


def _with_counts(row: Row, args: Mapping[str, Any]) -> Row:
    """The row with the counts that are given put into its shapes."""
    given = {
        CLASSES: args.get("num_classes", CLASSES),
        CHANNELS: args.get(CHANNEL_ARGS[split_arch(row.arch)[0]], CHANNELS),
    }
    if "image_size" in args:
        given[POSITIONS] = positions(row.tensors, args["image_size"])
    tensors = {}
    for name, shape in row.tensors.items():
        tensors[name] = tuple(given.get(size, size) for size in shape)
    return replace(row, tensors=tensors)


def _callable_row(arch: str, args: Mapping[str, Any], plain: dict[str, Shape]) -> Row:
    """The row of a callable, which is given a class count only if it needs one.

    It may have a default, and mean something else by the word.
    """
    try:
        row = make_row(arch, args, leave_open=False)
    except ArchitectureError:
        return make_row(arch, args)
    return make_row(arch, args) if compare(row.tensors, plain).differing else row


def _found(row: Row, args: Mapping[str, Any], result: Comparison, names: dict[str, str]) -> Found:
    full = dict(args)
    counts = result.counts
    if CLASSES in counts:
        full["num_classes"] = counts[CLASSES]
    if counts.get(CHANNELS, 3) != 3:
        full[CHANNEL_ARGS[split_arch(row.arch)[0]]] = counts[CHANNELS]
    size = full.get("image_size", row.input_size)
    if POSITIONS in counts:
        size = image_size(row.tensors, counts[POSITIONS])
        if size != USUAL_SIZE:
            full["image_size"] = size
    is_usual = all(full.get(name, 3) == 3 for name in CHANNEL_ARGS.values())
    return Found(
        arch=row.arch,
        args=full,
        names=names,
        input_size=size,
        mean=row.mean if is_usual else None,  # ImageNet's are for three channels
        std=row.std if is_usual else None,
        notes=_notes(row, args),
    )


def _notes(row: Row, args: Mapping[str, Any]) -> tuple[str, ...]:
    """What no tensor shows and no argument says."""
    untold = set(row.untold) - args.keys()
    cifar_stem = args.get("stem") == "cifar" and not {"maxpool", "stem_stride"} <= args.keys()
    bottlenecks = "layer1.0.conv3.weight" in row.tensors and "stride_on" in untold
    padded = args.get("shortcut") == "pad" and "pad" in untold
    told = (
        (CIFAR_STEM, cifar_stem),
        (STRIDE, bottlenecks),
        (PAD, padded),
        (PROJECT, "project" in untold),
        (TRANSFORM, "transform_input" in untold),
    )
    return tuple(note for note, applies in told if applies)


def _title(row: Row) -> str:
    return row.arch + "".join(f" {key}={value}" for key, value in row.args.items())
