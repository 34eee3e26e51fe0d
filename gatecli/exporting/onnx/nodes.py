"""Nodes of ONNX graphs: copies, names, constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, ValueInfoProto

__all__ = ["P", "branches", "constant", "copied", "names_read", "refill", "renamed"]

P = TypeVar("P", bound="NodeProto | TensorProto | ValueInfoProto")


def copied(part: P) -> P:
    """A copy of a part of a model: parts of a graph belong to it."""
    copy: P = type(part).FromString(part.SerializeToString())
    return copy


def constant(name: str, value: Tensor) -> NodeProto:
    """A node that gives a constant under this name."""
    from onnx import helper, numpy_helper

    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value.numpy()))


def names_read(node: NodeProto) -> list[str]:
    """The names that a node reads, with those that its branches take from outside."""
    names = [name for name in node.input if name]
    for graph in branches(node):
        own = {each.name for each in graph.initializer}
        for inner in graph.node:
            own.update(inner.output)
        for inner in graph.node:
            names += [name for name in names_read(inner) if name not in own]
    return names


def renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """A copy that reads and writes other names, in its branches too."""
    copy = copied(node)
    _rename(copy, names)
    return copy


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    for part in (node.input, node.output):
        for index, name in enumerate(part):
            part[index] = names.get(name, name)
    for graph in branches(node):
        for inner in graph.node:
            _rename(inner, names)


def branches(node: NodeProto) -> list[Any]:
    """The graphs inside a node."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def refill(part: Any, values: Sequence[P]) -> None:
    """Put other values in the place of those of a repeated field."""
    copies = [copied(each) for each in values]  # as some of them belong to the field
    del part[:]
    part.extend(copies)
