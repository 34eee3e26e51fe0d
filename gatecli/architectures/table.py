"""What is known of an architecture without building it.

Its tensors' names and shapes, with the class count left open, and its input.

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

CLASSES, CHANNELS, POSITIONS = (
    -1,
    -2,
    -3,
)  # stand in a shape for the number of classes, of input channels, and of a ViT's positions
CHANNEL_ARGS = {"torchvision": "in_channels", "cifar": "channels", "timm": "in_chans"}
COUNTER = "num_batches_tracked"  # BatchNorm's: files before torch 0.4.1 lack it
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# A shape tells classes and channels from the rest by building twice: with the first numbers, then
# with the second.
CLASS_PROBES, CHANNEL_PROBES, SIZE_PROBES = (11, 13), (3, 5), (224, 448)
USUAL_SIZE = 224  # of images, where nothing else is said
# Arguments that no tensor shows; of those in UNTOLD a checkpoint's reader is told.
UNTOLD = ("maxpool", "stem_stride", "stride_on", "pad", "project", "transform_input")
NO_TENSORS = {*UNTOLD, "zero_init_residual"}
DEFAULTS = {"stem": "imagenet", "shortcut": "projection", "aux_logits": True, "narrow": False}
Shape = tuple[int, ...]
Statistics = tuple[float, ...] | None


@dataclass(frozen=True)
class Row:
    """An architecture: its tensors (CLASSES and so on in their shapes), input size in pixels, and
    normalisation of values in [0, 1].

    `mean` and `std` are None where the data set's own are meant; `family` is whose other spellings
    are read: "resnet", "densenet" or none; `untold` are the arguments in UNTOLD that it takes.
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

    Counts in `args` are taken as given; the others are left open, or with `leave_open` false keep
    their defaults.

    Raises:
        ArchitectureError: it cannot be built.
    """
    open_counts = _open_counts(arch, args) if leave_open else {}
    model = build_skeleton(
        arch, {**args, **{name: probes[0] for name, probes in open_counts.items()}}
    )
    tensors = shapes_of(model)
    if open_counts:
        other = shapes_of(
            build_skeleton(
                arch, {**args, **{name: probes[1] for name, probes in open_counts.items()}}
            )
        )
        tensors = {
            name: _open_shape(arch, name, shape, other.get(name, ()))
            for name, shape in tensors.items()
        }
    accepted = accepted_args(arch) or {}
    return Row(
        arch,
        dict(args),
        tensors,
        *_input(arch, args, model),
        _family(arch, model),
        tuple(name for name in UNTOLD if name in accepted),
    )


def _family(arch: str, model: nn.Module) -> str:
    if isinstance(model, (CifarResNet, CifarPreResNet)):
        return "resnet"
    name = type(model).__name__.lower()
    return name if arch.startswith("torchvision:") and name in ("resnet", "densenet") else ""


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """Names and shapes of a network's tensors, without BatchNorm's counters."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.endswith(COUNTER)
    }


def find_rows(arch: str, args: Mapping[str, Any]) -> list[Row]:
    """The table's rows for an architecture with these arguments, counts and what no tensor shows
    aside; the plainest first.
    """
    open_names = {"num_classes", "image_size", *CHANNEL_ARGS.values()}
    shown = {name: value for name, value in args.items() if name not in open_names | NO_TENSORS}
    return [
        row
        for row in table()
        if row.arch == arch
        and all(row.args.get(name, DEFAULTS.get(name)) == value for name, value in shown.items())
    ]


def positions(tensors: Mapping[str, Shape], image_size: int) -> int:
    """How many positions a ViT has for square images of this size.

    One a patch, and the class token's.
    """
    return int((image_size // tensors["conv_proj.weight"][-1]) ** 2) + 1


def image_size(tensors: Mapping[str, Shape], count: int) -> int:
    """The inverse of `positions`."""
    return math.isqrt(count - 1) * tensors["conv_proj.weight"][-1]


@functools.cache
def table() -> tuple[Row, ...]:
    """All rows of the shipped table."""
    return unpack(
        importlib.resources.files("gatecli.architectures").joinpath("table.json.gz").read_bytes()
    )


def pack(rows: Iterable[Row]) -> bytes:
    """Rows as gzipped JSON; the same rows give the same bytes."""
    names: dict[str, int] = {}
    shapes: dict[Shape, int] = {}
    packed = []
    for row in rows:
        ids = [names.setdefault(name, len(names)) for name in row.tensors]
        packed.append(
            {
                **vars(row),
                "tensors": [
                    ids,
                    [shapes.setdefault(shape, len(shapes)) for shape in row.tensors.values()],
                ],
            }
        )
    text = json.dumps(
        {"names": list(names), "shapes": list(shapes), "rows": packed}, separators=(",", ":")
    )
    out = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0) as file:
        file.write(text.encode())
    return out.getvalue()


def unpack(data: bytes) -> tuple[Row, ...]:
    """The inverse of `pack`."""
    raw = json.loads(gzip.decompress(data))
    names, shapes = raw["names"], [tuple(shape) for shape in raw["shapes"]]
    rows = []
    for row in raw["rows"]:
        tensors = {names[name]: shapes[shape] for name, shape in zip(*row["tensors"], strict=True)}
        mean, std = (None if row[key] is None else tuple(row[key]) for key in ("mean", "std"))
        rows.append(
            Row(
                **{
                    **row,
                    "tensors": tensors,
                    "mean": mean,
                    "std": std,
                    "untold": tuple(row["untold"]),
                }
            )
        )
    return tuple(rows)


def _open_counts(arch: str, args: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The count arguments that the architecture has and `args` does not give, with two values to
    try.
    """
    if is_callable_name(arch):
        try:
            counts = (
                {"num_classes": CLASS_PROBES}
                if "num_classes" in inspect.signature(find_callable(arch)).parameters
                else {}
            )
        except ValueError:  # written in C: no signature
            counts = {}
    else:
        counts = {"num_classes": CLASS_PROBES, CHANNEL_ARGS[split_arch(arch)[0]]: CHANNEL_PROBES}
        if "image_size" in (accepted_args(arch) or {}):
            counts["image_size"] = SIZE_PROBES
    return {name: probes for name, probes in counts.items() if name not in args}


def _open_shape(arch: str, name: str, first: Shape, second: Shape) -> Shape:
    marks = {CLASS_PROBES: CLASSES, CHANNEL_PROBES: CHANNELS}
    try:
        return tuple(
            a if a == b else POSITIONS if name.endswith("pos_embedding") else marks[a, b]
            for a, b in zip(first, second, strict=True)
        )
    except (KeyError, ValueError) as error:
        raise ArchitectureError(
            f"the class count of {arch} cannot be told from its tensors (`{name}` has shape {first}"
            f" or {second}): add --arch-arg num_classes=N"
        ) from error


def _input(
    arch: str, args: Mapping[str, Any], model: nn.Module
) -> tuple[int, Statistics, Statistics]:
    """Input size, mean and std that the library states.

    32 and the data set's own for CIFAR networks; else 224 and ImageNet's.
    """
    library, name = split_arch(arch)
    if library == "cifar" or args.get("stem") == "cifar":
        return 32, None, None
    if library == "torchvision":
        from torchvision import models

        official = models.get_model_weights(name).DEFAULT.transforms()
        return int(official.crop_size[0]), tuple(official.mean), tuple(official.std)
    if library == "timm" and isinstance(config := getattr(model, "default_cfg", None), dict):
        return int(config["input_size"][-1]), tuple(config["mean"]), tuple(config["std"])
    return USUAL_SIZE, *IMAGENET
