"""What is known of an architecture without building it: its tensors' names and shapes, its input.

The shipped table holds a row for every architecture that `identify` knows; names and shapes are
numbered once for all rows, because the networks of a family share nearly all of them.
"""

from __future__ import annotations

import functools
import gzip
import importlib.resources
import inspect
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from gatecli.architectures.arguments import accepted_args, is_callable_name, split_arch
from gatecli.architectures.build import build_skeleton, find_callable
from gatecli.architectures.cifar import CifarPreResNet, CifarResNet
from gatecli.errors import ArchitectureError

# Stand in a shape for the number of classes, of input channels, and of a ViT's positions.
CLASSES = -1
CHANNELS = -2
POSITIONS = -3
CHANNEL_ARGS = {"torchvision": "in_channels", "cifar": "channels", "timm": "in_chans"}
COUNTER = "num_batches_tracked"  # BatchNorm's: files before torch 0.4.1 lack it
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# A shape tells classes and channels from the rest by building twice: with the first numbers, then
# with the second.
CLASS_PROBES = (11, 13)
CHANNEL_PROBES = (3, 5)
SIZE_PROBES = (224, 448)
USUAL_SIZE = 224  # of images, where nothing else is said
# Arguments that no tensor shows; of those in UNTOLD a checkpoint's reader is told.
UNTOLD = ("maxpool", "stem_stride", "stride_on", "pad", "project", "transform_input")
NO_TENSORS = {*UNTOLD, "zero_init_residual"}
DEFAULTS = {"stem": "imagenet", "shortcut": "projection", "aux_logits": True, "narrow": False}
Shape = tuple[int, ...]
Statistics = tuple[float, ...] | None


@dataclass(frozen=True)
class Row:
    """An architecture.

    Attributes:
        arch: its name.
        args: its arguments.
        tensors: shapes by name, with CLASSES and so on in them.
        input_size: side of its images in pixels.
        mean: of its images' values in [0, 1]; None where the data set's own is meant.
        std: the standard deviation of the same.
        family: whose other spellings are read: "resnet", "densenet" or none.
        untold: the arguments in UNTOLD that it takes.
    """

    arch: str
    args: dict[str, Any]
    tensors: dict[str, Shape]
    input_size: int
    mean: Statistics
    std: Statistics
    family: str
    untold: tuple[str, ...]


def make_row(arch: str, args: Mapping[str, Any], leave_open: bool = True) -> Row:
    """Build the network, without memory where possible, and describe it.

    Args:
        arch: its name.
        args: its arguments; counts among them are taken as given.
        leave_open: whether other counts are left open; else they keep their defaults.

    Raises:
        ArchitectureError: it cannot be built.
    """
    open_counts = _open_counts(arch, args) if leave_open else {}
    try:
        model, tensors = _with_open_counts(arch, args, open_counts)
    except ArchitectureError:
        channels = CHANNEL_ARGS.get(split_arch(arch)[0], "")
        if channels not in open_counts:
            raise
        # patches put into channels: a shape holds a multiple of their number, which is left as is
        del open_counts[channels]
        model, tensors = _with_open_counts(arch, args, open_counts)
    accepted = accepted_args(arch) or {}
    input_size, mean, std = _input(arch, args, model)
    return Row(
        arch=arch,
        args=dict(args),
        tensors=tensors,
        input_size=input_size,
        mean=mean,
        std=std,
        family=_family(arch, model),
        untold=tuple(name for name in UNTOLD if name in accepted),
    )


def _with_open_counts(
    arch: str, args: Mapping[str, Any], open_counts: Mapping[str, tuple[int, int]]
) -> tuple[nn.Module, dict[str, Shape]]:
    """The network, built with the first probes, and its shapes with marks for the open counts."""
    first = {name: probes[0] for name, probes in open_counts.items()}
    model = build_skeleton(arch, {**args, **first})
    tensors = shapes_of(model)
    if open_counts:
        second = {name: probes[1] for name, probes in open_counts.items()}
        other = shapes_of(build_skeleton(arch, {**args, **second}))
        for name, shape in tensors.items():
            tensors[name] = _open_shape(arch, name, shape, other.get(name, ()))
    return model, tensors


def _family(arch: str, model: nn.Module) -> str:
    if isinstance(model, (CifarResNet, CifarPreResNet)):
        return "resnet"
    name = type(model).__name__.lower()
    return name if arch.startswith("torchvision:") and name in ("resnet", "densenet") else ""


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """Names and shapes of a network's tensors, without BatchNorm's counters."""
    found = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(COUNTER):
            found[name] = tuple(tensor.shape)
    return found


def find_rows(arch: str, args: Mapping[str, Any]) -> list[Row]:
    """The table's rows for an architecture with these arguments, the plainest first.

    Counts, and what no tensor shows, may differ.
    """
    aside = {"num_classes", "image_size", *CHANNEL_ARGS.values(), *NO_TENSORS}
    shown = {name: value for name, value in args.items() if name not in aside}
    return [row for row in table() if row.arch == arch and _has(row, shown)]


def _has(row: Row, args: Mapping[str, Any]) -> bool:
    """Whether a row's arguments, or else their defaults, are these."""
    return all(row.args.get(name, DEFAULTS.get(name)) == value for name, value in args.items())


def positions(tensors: Mapping[str, Shape], image_size: int) -> int:
    """How many positions a ViT has for square images: one a patch, and the class token's.

    Args:
        tensors: the network's shapes.
        image_size: the images' side in pixels.
    """
    return int((image_size // tensors["conv_proj.weight"][-1]) ** 2) + 1


def image_size(tensors: Mapping[str, Shape], count: int) -> int:
    """The inverse of `positions`."""
    return math.isqrt(count - 1) * tensors["conv_proj.weight"][-1]


@functools.cache
def table() -> tuple[Row, ...]:
    """All rows of the shipped table."""
    folder = importlib.resources.files("gatecli.architectures")
    return unpack(folder.joinpath("table.json.gz").read_bytes())


def pack(rows: Iterable[Row]) -> bytes:
    """Rows as gzipped JSON; the same rows give the same bytes."""
    names: dict[str, int] = {}
    shapes: dict[Shape, int] = {}
    packed = []
    for row in rows:
        name_numbers = [names.setdefault(name, len(names)) for name in row.tensors]
        shape_numbers = [shapes.setdefault(shape, len(shapes)) for shape in row.tensors.values()]
        packed.append({**vars(row), "tensors": [name_numbers, shape_numbers]})
    everything = {"names": list(names), "shapes": list(shapes), "rows": packed}
    text = json.dumps(everything, separators=(",", ":"))
    out = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0) as file:
        file.write(text.encode())
    return out.getvalue()


def unpack(data: bytes) -> tuple[Row, ...]:
    """The inverse of `pack`."""
    raw = json.loads(gzip.decompress(data))
    names = raw["names"]
    shapes = [tuple(shape) for shape in raw["shapes"]]
    rows = []
    for row in raw["rows"]:
        pairs = zip(*row["tensors"], strict=True)
        row["tensors"] = {names[name]: shapes[shape] for name, shape in pairs}
        row["mean"] = _statistics(row["mean"])
        row["std"] = _statistics(row["std"])
        row["untold"] = tuple(row["untold"])
        rows.append(Row(**row))
    return tuple(rows)


def _statistics(values: list[float] | None) -> Statistics:
    return None if values is None else tuple(values)


def _open_counts(arch: str, args: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Two values to try for each count that the architecture has and `args` does not give."""
    counts = {}
    if not is_callable_name(arch):
        counts["num_classes"] = CLASS_PROBES
        counts[CHANNEL_ARGS[split_arch(arch)[0]]] = CHANNEL_PROBES
        if "image_size" in (accepted_args(arch) or {}):
            counts["image_size"] = SIZE_PROBES
    elif _takes_classes(arch):
        counts["num_classes"] = CLASS_PROBES
    return {name: probes for name, probes in counts.items() if name not in args}


def _takes_classes(arch: str) -> bool:
    """Whether a callable has a parameter for the number of classes."""
    try:
        return "num_classes" in inspect.signature(find_callable(arch)).parameters
    except ValueError:  # written in C: no signature
        return False


def _open_shape(arch: str, name: str, first: Shape, second: Shape) -> Shape:
    """A shape with marks where two networks, built with the first and second probes, differ."""
    marks = {CLASS_PROBES: CLASSES, CHANNEL_PROBES: CHANNELS}
    shape = []
    try:
        for a, b in zip(first, second, strict=True):
            if a == b:
                shape.append(a)
            elif name.endswith("pos_embedding"):
                shape.append(POSITIONS)
            else:
                shape.append(marks[a, b])
        return tuple(shape)
    except (KeyError, ValueError) as error:
        raise ArchitectureError(
            f"the class count of {arch} cannot be told from its tensors (`{name}` has shape {first}"
            f" or {second}): add --arch-arg num_classes=N"
        ) from error


def _input(
    arch: str, args: Mapping[str, Any], model: nn.Module
) -> tuple[int, Statistics, Statistics]:
    """Input size, mean and std that the library states.

    They are 32 and the data set's own for CIFAR networks; else 224 and ImageNet's.
    """
    library, name = split_arch(arch)
    if library == "cifar" or args.get("stem") == "cifar":
        return 32, None, None
    if library == "torchvision":
        from torchvision import models

        official = models.get_model_weights(name).DEFAULT.transforms()
        return int(official.crop_size[0]), tuple(official.mean), tuple(official.std)
    config = getattr(model, "default_cfg", None)
    if library == "timm" and isinstance(config, dict):
        return int(config["input_size"][-1]), tuple(config["mean"]), tuple(config["std"])
    return USUAL_SIZE, *IMAGENET
