"""Find the architecture from the names and shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gatecli.architectures.arguments import check_args, is_callable_name, split_arch
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

# What other people's networks of a family, or old files, call the same parts: (theirs,
# torchvision's). A dot is a module more.
SPELLINGS = {
    "resnet": (("shortcut", "downsample"), ("linear", "fc"), ("classifier", "fc")),
    "densenet": (
        ("norm.1", "norm1"),
        ("conv.1", "conv1"),
        ("norm.2", "norm2"),
        ("conv.2", "conv2"),
    ),
    "": (),
}
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
SIZE = (
    "images are taken to be 224x224 with ImageNet's mean and std (if not: --input-size, --mean,"
    " --std)"
)


@dataclass(frozen=True)
class Found:
    """An architecture that fits a checkpoint.

    `build(arch, args)` has its tensors, once they are renamed by `names`.

    `names` maps parts of canonical tensor names to the checkpoint's spelling: {"fc": "linear",
    "norm1": "norm.1"}. `mean` and `std` are None where the data set's own are meant. `notes` say
    what was assumed because no tensor tells it.
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


@dataclass
class Comparison:
    """How a checkpoint differs from a row.

    The number of tensors that do, the first of them, and the counts where it fits.
    """

    differing: int = 0
    first: tuple[str, Shape | None, Shape | None] | None = None  # canonical name, expected, got
    counts: dict[int, int] = field(
        default_factory=dict
    )  # CLASSES, CHANNELS and POSITIONS -> number

    def differ(self, name: str, expected: Shape | None, got: Shape | None) -> None:
        self.differing += 1
        self.first = self.first or (name, expected, got)

    def describe(self, names: Mapping[str, str]) -> str:
        """How many tensors differ, and the first of them in the checkpoint's spelling."""
        name, expected, got = self.first or ("", None, None)
        many = "1 tensor differs" if self.differing == 1 else f"{self.differing} tensors differ"
        return (
            f"{many}, first `{spell(name, names)}`: expected {_dimensions(expected)} but got"
            f" {_dimensions(got)}"
        )


def identify(shapes: Mapping[str, Sequence[int]]) -> Found:
    """The one known architecture with these tensors, whatever its numbers of classes and input
    channels.

    Raises:
        ArchitectureError: none fits, with the nearest ones, or several do.
    """
    plain = _tuples(shapes)
    spelt = {family: _canonical(plain, family) for family in SPELLINGS}
    same_names = [
        row for row in table() if row.tensors.keys() == spelt[row.family][0].keys()
    ]  # cheap, and nearly always enough
    compared = [(row, _compare(row.tensors, spelt[row.family][0])) for row in same_names]
    fits = [(row, result) for row, result in compared if not result.differing]
    if len(fits) == 1:
        row, result = fits[0]
        return _found(row, row.args, result, spelt[row.family][1])
    if fits:
        raise ArchitectureError(
            f"several architectures fit these tensors: {', '.join(_title(row) for row, _ in fits)};"
            f" {WAY_OUT}"
        )
    results = [(row, _compare(row.tensors, spelt[row.family][0])) for row in table()]
    nearest = sorted(results, key=lambda pair: pair[1].differing)[:3]
    listing = [
        f"{_title(row)} ({result.describe(spelt[row.family][1])})" for row, result in nearest
    ]
    raise ArchitectureError(
        f"no known architecture has these tensors, the nearest are {'; '.join(listing)}; {WAY_OUT}"
    )


def found_for(arch: str, args: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Found:
    """The same for an architecture that the user names.

    What `args` leaves out is taken from the tensors where they show it.

    Raises:
        ArchitectureError: there is no such network, it does not take `args`, or it has other
            tensors.
    """
    check_args(arch, args)
    plain = _tuples(shapes)
    rows = [_with_counts(row, args) for row in find_rows(arch, args)]
    if not rows:
        rows = [
            _callable_row(arch, args, plain) if is_callable_name(arch) else make_row(arch, args)
        ]
    shapes_there, names = _canonical(plain, rows[0].family)
    results = [_compare(row.tensors, shapes_there) for row in rows]
    row, result = next(
        ((row, result) for row, result in zip(rows, results, strict=True) if not result.differing),
        (rows[0], results[0]),
    )
    if result.differing:
        raise ArchitectureError(
            f"the tensors are not those of {arch}: {result.describe(names)}; without --arch it is"
            " looked up"
        )
    return _found(row, {**row.args, **args}, result, names)


def spell(name: str, names: Mapping[str, str]) -> str:
    """A canonical dotted name in the checkpoint's spelling: "fc.weight" -> "linear.weight"."""
    return ".".join(names.get(part, part) for part in name.split("."))


def _tuples(shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    return {name: tuple(shape) for name, shape in shapes.items() if not name.endswith(COUNTER)}


def _canonical(shapes: dict[str, Shape], family: str) -> tuple[dict[str, Shape], dict[str, str]]:
    """Tensors under the names that torchvision gives them in this family, and the spelling that was
    replaced for each changed part.
    """
    dotted = {f".{name}.": shape for name, shape in shapes.items()}
    names: dict[str, str] = {}
    for theirs, canonical in SPELLINGS[family]:
        if (
            canonical not in names
            and _has_part(dotted, theirs)
            and not _has_part(dotted, canonical)
        ):
            names[canonical] = theirs
            dotted = {
                name.replace(f".{theirs}.", f".{canonical}."): shape
                for name, shape in dotted.items()
            }
    return ({name[1:-1]: shape for name, shape in dotted.items()}, names) if names else (shapes, {})


def _has_part(dotted: Iterable[str], part: str) -> bool:
    return any(f".{part}." in name for name in dotted)


def _compare(expected: Mapping[str, Shape], got: Mapping[str, Shape]) -> Comparison:
    result = Comparison()
    for name, shape in expected.items():
        mine = got.get(name)
        if mine != shape and (mine is None or not _fits(shape, mine, result.counts)):
            result.differ(name, shape, mine)
    for name, shape in got.items():
        if name not in expected:
            result.differ(name, None, shape)
    return result


def _fits(shape: Shape, mine: Shape, counts: dict[int, int]) -> bool:
    """Whether only the open counts differ, and as in the tensors before."""
    if len(shape) != len(mine):
        return False
    return all(
        a == b or (a < 0 < b and counts.setdefault(a, b) == b)
        for a, b in zip(shape, mine, strict=True)
    )


def _with_counts(row: Row, args: Mapping[str, Any]) -> Row:
    """The row with the counts that are given put into its shapes."""
    given = {
        CLASSES: args.get("num_classes", CLASSES),
        CHANNELS: args.get(CHANNEL_ARGS[split_arch(row.arch)[0]], CHANNELS),
    }
    if "image_size" in args:
        given[POSITIONS] = positions(row.tensors, args["image_size"])
    return replace(
        row,
        tensors={
            name: tuple(given.get(size, size) for size in shape)
            for name, shape in row.tensors.items()
        },
    )


def _callable_row(arch: str, args: Mapping[str, Any], plain: dict[str, Shape]) -> Row:
    """A callable is given a class count only if it needs one.

    It may have a default, and mean something else by the word.
    """
    try:
        row = make_row(arch, args, leave_open=False)
    except ArchitectureError:
        return make_row(arch, args)
    return make_row(arch, args) if _compare(row.tensors, plain).differing else row


def _found(row: Row, args: Mapping[str, Any], result: Comparison, names: dict[str, str]) -> Found:
    full = (
        {**args, "num_classes": result.counts[CLASSES]} if CLASSES in result.counts else dict(args)
    )
    if result.counts.get(CHANNELS, 3) != 3:
        full[CHANNEL_ARGS[split_arch(row.arch)[0]]] = result.counts[CHANNELS]
    size = full.get("image_size", row.input_size)
    if (
        POSITIONS in result.counts
        and (size := image_size(row.tensors, result.counts[POSITIONS])) != USUAL_SIZE
    ):
        full["image_size"] = size
    usual_channels = all(full.get(name, 3) == 3 for name in CHANNEL_ARGS.values())
    mean, std = (
        (row.mean, row.std) if usual_channels else (None, None)
    )  # ImageNet's are for three channels
    return Found(row.arch, full, names, size, mean, std, _notes(row, args))


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
        (SIZE, is_callable_name(row.arch)),
    )
    return tuple(note for note, applies in told if applies)


def _title(row: Row) -> str:
    return row.arch + "".join(f" {key}={value}" for key, value in row.args.items())


def _dimensions(shape: Shape | None) -> str:
    """(64, 3, 7, 7), or (N, 2048) where N is any class count."""
    if shape is None:
        return "no such tensor"
    words = {CLASSES: "N", CHANNELS: "C", POSITIONS: "L"}
    sizes = ", ".join(words.get(size, str(size)) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"
