"""Find the architecture from the names and shapes of a checkpoint's tensors."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gatecli.architectures.arguments import check_args, is_callable_name, split_arch
from gatecli.architectures.rows import CHANNEL_ARGS, CHANNELS, CLASSES, COUNTER, Row, Shape, Statistics, find_row, make_row, table
from gatecli.errors import ArchitectureError

# What other people's ResNets call the same parts: (theirs, torchvision's).
SPELLINGS = (("shortcut", "downsample"), ("linear", "fc"), ("classifier", "fc"))
WAY_OUT = "name it with --arch torchvision:NAME or --arch package.module:callable"
CIFAR_STEM = "taken to have a 3x3 stem with stride 1 and no max-pool (if not: --arch-arg maxpool=true, --arch-arg stem_stride=2)"
STRIDE = "the stride is taken to be on the 3x3 convolution of each bottleneck (if not: --arch-arg stride_on=conv1)"
PAD = "the shortcuts are taken to be padded with zeros on both sides of the channels (if not: --arch-arg pad=end)"
SIZE = "images are taken to be 224x224 with ImageNet's mean and std (if not: --input-size, --mean, --std)"


@dataclass(frozen=True)
class Found:
    """An architecture that fits a checkpoint: `build(arch, args)` has its tensors, once they are renamed by `names`.

    `names` maps parts of canonical tensor names to the checkpoint's spelling: {"fc": "linear"}. `mean` and `std` are None
    where the data set's own are meant. `notes` say what was assumed because no tensor tells it.
    """

    arch: str
    args: dict[str, Any]
    names: dict[str, str]
    input_size: int
    mean: Statistics
    std: Statistics
    notes: tuple[str, ...]


@dataclass
class Comparison:
    """How a checkpoint differs from a row: the number of tensors that do, the first of them, and the counts where it fits."""

    differing: int = 0
    first: tuple[str, Shape | None, Shape | None] | None = None  # canonical name, expected, got
    counts: dict[int, int] = field(default_factory=dict)  # CLASSES and CHANNELS -> number

    def differ(self, name: str, expected: Shape | None, got: Shape | None) -> None:
        self.differing += 1
        self.first = self.first or (name, expected, got)

    def describe(self, names: Mapping[str, str]) -> str:
        """How many tensors differ, and the first of them in the checkpoint's spelling."""
        name, expected, got = self.first or ("", None, None)
        many = "1 tensor differs" if self.differing == 1 else f"{self.differing} tensors differ"
        return f"{many}, first `{spell(name, names)}`: expected {_dimensions(expected)} but got {_dimensions(got)}"


def identify(shapes: Mapping[str, Sequence[int]]) -> Found:
    """The one known architecture with these tensors, whatever its numbers of classes and input channels.

    Raises:
        ArchitectureError: none fits, with the nearest ones, or several do.
    """
    plain = _tuples(shapes)
    renamed, names = _canonical(plain)
    results = [(row, _compare(row.tensors, renamed if row.resnet else plain)) for row in table()]
    fits = [(row, result) for row, result in results if not result.differing]
    if len(fits) == 1:
        row, result = fits[0]
        return _found(row, row.args, result, names if row.resnet else {})
    if fits:
        raise ArchitectureError(f"several architectures fit these tensors: {', '.join(_title(row) for row, _ in fits)}; {WAY_OUT}")
    nearest = sorted(results, key=lambda pair: pair[1].differing)[:3]
    listing = [f"{_title(row)} ({result.describe(names if row.resnet else {})})" for row, result in nearest]
    raise ArchitectureError(f"no known architecture has these tensors, the nearest are {'; '.join(listing)}; {WAY_OUT}")


def found_for(arch: str, args: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Found:
    """The same for an architecture that the user names. Counts that `args` leaves out are taken from the tensors.

    Raises:
        ArchitectureError: there is no such network, it does not take `args`, or it has other tensors.
    """
    check_args(arch, args)
    plain = _tuples(shapes)
    if known := find_row(arch, args):
        row = _with_counts(known, args)
    else:
        row = _callable_row(arch, args, plain) if is_callable_name(arch) else make_row(arch, args)
    renamed, names = _canonical(plain) if row.resnet else (plain, {})
    result = _compare(row.tensors, renamed)
    if result.differing:
        raise ArchitectureError(f"the tensors are not those of {arch}: {result.describe(names)}; without --arch it is looked up")
    return _found(row, args, result, names)


def spell(name: str, names: Mapping[str, str]) -> str:
    """A canonical dotted name in the checkpoint's spelling: "fc.weight" -> "linear.weight"."""
    return ".".join(names.get(part, part) for part in name.split("."))


def _tuples(shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
    return {name: tuple(shape) for name, shape in shapes.items() if not name.endswith(COUNTER)}


def _canonical(shapes: dict[str, Shape]) -> tuple[dict[str, Shape], dict[str, str]]:
    """Tensors under torchvision's ResNet names, and the spelling that was replaced for each changed part."""
    parts = {part for name in shapes for part in name.split(".")}
    names: dict[str, str] = {}
    for theirs, canonical in SPELLINGS:
        if theirs in parts and canonical not in parts:
            names.setdefault(canonical, theirs)
    back = {theirs: canonical for canonical, theirs in names.items()}
    return {spell(name, back): shape for name, shape in shapes.items()}, names


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
    return all(a == b or (a < 0 < b and counts.setdefault(a, b) == b) for a, b in zip(shape, mine, strict=True))


def _with_counts(row: Row, args: Mapping[str, Any]) -> Row:
    """The row with the counts that are given put into its shapes."""
    given = {CLASSES: args.get("num_classes", CLASSES), CHANNELS: args.get(CHANNEL_ARGS[split_arch(row.arch)[0]], CHANNELS)}
    return replace(row, tensors={name: tuple(given.get(size, size) for size in shape) for name, shape in row.tensors.items()})


def _callable_row(arch: str, args: Mapping[str, Any], plain: dict[str, Shape]) -> Row:
    """A callable is given a class count only if it needs one: it may have a default, and mean something else by the word."""
    try:
        row = make_row(arch, args, leave_open=False)
    except ArchitectureError:
        return make_row(arch, args)
    return make_row(arch, args) if _compare(row.tensors, plain).differing else row


def _found(row: Row, args: Mapping[str, Any], result: Comparison, names: dict[str, str]) -> Found:
    full = {**args, "num_classes": result.counts[CLASSES]} if CLASSES in result.counts else dict(args)
    if result.counts.get(CHANNELS, 3) != 3:
        full[CHANNEL_ARGS[split_arch(row.arch)[0]]] = result.counts[CHANNELS]
    usual_channels = all(full.get(name, 3) == 3 for name in CHANNEL_ARGS.values())
    mean, std = (row.mean, row.std) if usual_channels else (None, None)  # ImageNet's are for three channels
    return Found(row.arch, full, names, row.input_size, mean, std, _notes(row, args))


def _notes(row: Row, args: Mapping[str, Any]) -> tuple[str, ...]:
    """What no tensor shows and no argument says."""
    cifar_stem = args.get("stem") == "cifar" and not {"maxpool", "stem_stride"} <= args.keys()
    bottlenecks = row.resnet and "layer1.0.conv3.weight" in row.tensors and "stride_on" not in args
    padded = args.get("shortcut") == "pad" and "pad" not in args
    told = ((CIFAR_STEM, cifar_stem), (STRIDE, bottlenecks), (PAD, padded), (SIZE, is_callable_name(row.arch)))
    return tuple(note for note, applies in told if applies)


def _title(row: Row) -> str:
    return row.arch + "".join(f" {key}={value}" for key, value in row.args.items())


def _dimensions(shape: Shape | None) -> str:
    """(64, 3, 7, 7), or (N, 2048) where N is any class count."""
    if shape is None:
        return "no such tensor"
    words = {CLASSES: "N", CHANNELS: "C"}
    return f"({', '.join(words.get(size, str(size)) for size in shape)}{',' if len(shape) == 1 else ''})"
