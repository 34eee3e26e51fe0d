"""Names and shapes of a network's tensors, with marks where a count of the user's stands.

Which numbers of a shape are counts is found by building the network again with another count.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from gatecli.architectures.arguments import accepted_args, is_callable_name, split_arch
from gatecli.architectures.build import build_skeleton, find_callable
from gatecli.errors import ArchitectureError

__all__ = [
    "CHANNELS",
    "CHANNEL_ARGS",
    "CLASSES",
    "COUNTER",
    "POSITIONS",
    "Shape",
    "closed_shapes",
    "open_shapes",
    "shapes_of",
]

# Stand in a shape for the number of classes, of input channels, and of a ViT's positions.
CLASSES = -1
CHANNELS = -2
POSITIONS = -3
CHANNEL_ARGS = {
    "torchvision": "in_channels",
    "cifar": "channels",
    "timm": "in_chans",
    "transformers": "num_channels",
}
COUNTER = "num_batches_tracked"  # BatchNorm's: files before torch 0.4.1 lack it
# What a count is tried with.
CLASS_PROBES = (11, 13)
CHANNEL_PROBES = (3, 5)
SIZE_PROBES = (224, 448)
Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def shapes_of(model: nn.Module) -> Shapes:
    """Names and shapes of a network's tensors, without BatchNorm's counters."""
    found = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(COUNTER):
            found[name] = tuple(tensor.shape)
    return found


def closed_shapes(arch: str, args: Mapping[str, Any]) -> tuple[nn.Module, Shapes]:
    """The network, without memory where possible, and its shapes with the counts that it has.

    Raises:
        ArchitectureError: it cannot be built.
    """
    model = build_skeleton(arch, args)
    return model, shapes_of(model)


def open_shapes(arch: str, args: Mapping[str, Any]) -> tuple[nn.Module, Shapes]:
    """The same with marks for the counts that `args` leaves open.

    Input channels of which the network makes other numbers than their count keep its default.

    Raises:
        ArchitectureError: it cannot be built, or its class count cannot be told from its tensors.
    """
    counts = _open_counts(arch, args)
    first = {name: probes[0] for name, probes in counts.items()}
    model, tensors = closed_shapes(arch, {**args, **first})
    marked = dict(tensors)
    for name, probes in counts.items():
        if name == "num_classes":
            other = closed_shapes(arch, {**args, **first, name: probes[1]})[1]
            marked.update(_class_marks(arch, tensors, other))
            continue
        try:
            other = closed_shapes(arch, {**args, **first, name: probes[1]})[1]
        except ArchitectureError:  # it has a count of its own
            continue
        mark = POSITIONS if name == "image_size" else CHANNELS
        marked.update(_marks(tensors, other, mark) or {})
    return model, marked


def _open_counts(arch: str, args: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Two values to try for each count that the architecture has and `args` does not give."""
    counts: dict[str, tuple[int, int]] = {}
    if split_arch(arch)[0] == "transformers":
        return counts  # its config has them all
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


def _class_marks(arch: str, tensors: Shapes, other: Shapes) -> Shapes:
    marks = _marks(tensors, other, CLASSES)
    if marks is not None:
        return marks
    name = next(
        each for each in tensors if _marked(tensors[each], other.get(each), CLASSES) is None
    )
    raise ArchitectureError(
        f"the class count of {arch} cannot be told from its tensors (`{name}` has shape"
        f" {tensors[name]} for {CLASS_PROBES[0]} classes and {other.get(name)} for"
        f" {CLASS_PROBES[1]}): add --arch-arg num_classes=N"
    )


def _marks(tensors: Shapes, other: Shapes, mark: int) -> Shapes | None:
    """The shapes in which networks built with the first and second probe differ, marked.

    None where one differs in more than the count itself.
    """
    found = {}
    for name, shape in tensors.items():
        marked = _marked(shape, other.get(name), mark)
        if marked is None:
            return None
        if marked != shape:
            found[name] = marked
    return found


def _marked(first: Shape, second: Shape | None, mark: int) -> Shape | None:
    """A shape with marks where it differs from the second; None where it does so otherwise."""
    if second is None or len(first) != len(second):
        return None
    probes = {CLASSES: CLASS_PROBES, CHANNELS: CHANNEL_PROBES}.get(mark)
    shape = []
    for a, b in zip(first, second, strict=True):
        if a != b and probes not in (None, (a, b)):
            return None
        shape.append(a if a == b else mark)
    return tuple(shape)
