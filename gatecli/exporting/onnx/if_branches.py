"""Let an ONNX graph skip.

Move the nodes that only a closed branch, or nobody who has left, needs into the branches of an
`If`.

Weights move with them. Left in the outer graph, they are inputs to the branch rather than its
constants, and ONNX Runtime cannot lay them out for its fast convolutions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto


P = TypeVar("P", bound="NodeProto | TensorProto | ValueInfoProto")


@dataclass(frozen=True)
class Otherwise:
    """What stands for results that are not computed.

    Nodes, and which of their `outputs` stand for which, in order.
    """

    nodes: Sequence[NodeProto]
    outputs: Sequence[str]


class Surgeon:
    """Edits one graph in place; `done` at the end."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.constants: dict[str, TensorProto] = {each.name: each for each in graph.initializer}
        self.types: dict[str, ValueInfoProto] = {
            each.name: each for each in (*graph.value_info, *graph.output, *graph.input)
        }
        self.outputs = {each.name for each in graph.output}
        self.count = 0

    def compute_only_if(
        self,
        decision: str,
        results: Sequence[str],
        otherwise: Otherwise,
        keep: Collection[str] = (),
        negate: bool = False,
    ) -> None:
        """Compute `results` only where `decision` is not 0; else what is said `otherwise`.

        Weights that both need, and nobody else, are in both.

        keep: values that are needed in any case. negate: only where it is 0.
        """
        from onnx import helper

        region = self.needed_only_by(results, {decision, *keep})
        inside = [node for node in self.nodes if id(node) in region]
        inner = {name: f"{name}/run{self.count}" for name in results}
        ends = [
            self._typed(name, other) for name, other in zip(results, otherwise.outputs, strict=True)
        ]
        outside = {
            each for node in self.nodes if id(node) not in region for each in _reads(node)
        } | self.outputs
        skip = helper.make_graph(
            list(otherwise.nodes),
            f"skip{self.count}",
            [],
            ends,
            self._weights(otherwise.nodes, outside),
        )
        own = self._weights(inside, outside)
        run = helper.make_graph(
            [_renamed(node, inner) for node in inside],
            f"run{self.count}",
            [],
            [self._typed(each, inner[each]) for each in results],
            own,
        )
        for weight in own:
            del self.constants[weight.name]
        first, second = (skip, run) if negate else (run, skip)
        branch = helper.make_node(
            "If",
            [self._condition(decision, inside)],
            list(results),
            name=f"if{self.count}",
            then_branch=first,
            else_branch=second,
        )
        last = max(index for index, node in enumerate(self.nodes) if id(node) in region)
        self.nodes[last] = branch
        self.nodes = [node for node in self.nodes if node is branch or id(node) not in region]
        self.count += 1

    def behind(self, names: Sequence[str], result: str, decided: Collection[str]) -> list[str]:
        """Those of the values that need something which, once `decided` are known, `result` alone
        needs.
        """
        region = self._ancestors([result]) - self._ancestors(decided)
        return [name for name in names if self._ancestors([name]) & region]

    def add_constant(self, name: str, value: Tensor) -> None:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(value.numpy(), name)

    def add_output(self, name: str, value: Tensor) -> None:
        """A value that is this constant, unless an `If` says otherwise."""
        from onnx import TensorProto, helper, numpy_helper

        self.nodes.append(
            helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value.numpy()))
        )
        self.types[name] = helper.make_tensor_value_info(
            name,
            TensorProto.INT64 if value.dtype == torch.int64 else TensorProto.FLOAT,
            list(value.shape),
        )

    def alias(self, name: str, other: str) -> None:
        """A second name for a value, right after it."""
        from onnx import helper

        place = next((index + 1 for index, node in enumerate(self.nodes) if name in node.output), 0)
        self.nodes.insert(place, helper.make_node("Identity", [name], [other]))
        self.types[other] = self._typed(name, other)

    def maker(self, name: str) -> NodeProto | None:
        return next((node for node in self.nodes if name in node.output), None)

    def insert_before(self, node: NodeProto, other: NodeProto) -> None:
        self.nodes.insert(self._place(node), other)

    def move_behind(self, name: str, node: NodeProto, others: Sequence[NodeProto]) -> None:
        """Right behind the value, put others in the place of a node."""
        del self.nodes[self._place(node)]
        maker = self.maker(name)
        place = 0 if maker is None else self._place(maker) + 1
        self.nodes[place:place] = others

    def _place(self, node: NodeProto) -> int:
        return next(index for index, each in enumerate(self.nodes) if each is node)

    def integers(self, name: str) -> list[int] | None:
        """The values of a constant of whole numbers; None where it is no constant."""
        from onnx import numpy_helper

        return (
            numpy_helper.to_array(self.constants[name]).reshape(-1).tolist()
            if name in self.constants
            else None
        )

    def shape_of(self, name: str) -> list[int]:
        """The shape of a value all of whose dimensions are known."""
        return [dimension.dim_value for dimension in self.types[name].type.tensor_type.shape.dim]

    def done(self, outputs: Sequence[str]) -> None:
        """Keep only these outputs, in this order, and what they need."""
        needed = self._ancestors(outputs)
        self.nodes = [node for node in self.nodes if id(node) in needed]
        used = {name for node in self.nodes for name in _reads(node)}
        kept = [self.constants[name] for name in self.constants if name in used or name in outputs]
        typed = [self.types[name] for name in outputs]
        for part, values in (
            (self.graph.node, self.nodes),
            (self.graph.initializer, kept),
            (self.graph.output, typed),
            (self.graph.value_info, []),
        ):
            copies = [copied(each) for each in values]
            del part[:]
            part.extend(copies)

    def _weights(self, nodes: Sequence[NodeProto], outside: Collection[str]) -> list[TensorProto]:
        """The constants that these nodes read, and nobody outside."""
        wanted = {each: None for node in nodes for each in _reads(node)}
        return [
            self.constants[each]
            for each in wanted
            if each in self.constants and each not in outside
        ]

    def _condition(self, decision: str, inside: Sequence[NodeProto]) -> str:
        """A boolean for the decision, which is 0 or 1: what it was cast from, where that is so."""
        from onnx import TensorProto, helper

        maker = self.maker(decision)
        if maker is not None and maker.op_type == "Cast" and self._is_boolean(maker.input[0]):
            return str(maker.input[0])
        name = f"{decision}/bool"
        if not any(name in node.output for node in self.nodes):
            place = next(
                (index + 1 for index, node in enumerate(self.nodes) if decision in node.output), 0
            )
            self.nodes.insert(
                place, helper.make_node("Cast", [decision], [name], to=TensorProto.BOOL)
            )
        return name

    def _is_boolean(self, name: str) -> bool:
        return any(
            name in node.output
            and node.op_type
            in (
                "Greater",
                "GreaterOrEqual",
                "Less",
                "LessOrEqual",
                "And",
                "Or",
                "Not",
            )
            for node in self.nodes
        )

    def _typed(self, name: str, other: str) -> ValueInfoProto:
        typed = copied(self.types[name])
        typed.name = other
        return typed

    def _ancestors(self, ends: Iterable[str], stop: Collection[str] = ()) -> set[int]:
        """The nodes (by id) that these values need, without going through the values `stop`."""
        makers = {name: node for node in self.nodes for name in node.output}
        found, todo = set[int](), [name for name in ends if name not in stop]
        while todo:
            node = makers.get(todo.pop())
            if node is not None and id(node) not in found:
                found.add(id(node))
                todo.extend(name for name in _reads(node) if name not in stop)
        return found

    def needed_only_by(self, results: Sequence[str], keep: Collection[str]) -> set[int]:
        """The nodes (by id) that nothing but these results needs.

        No output, and none of the values to keep.
        """
        return self._ancestors(results) - self._ancestors(
            {*self.outputs, *keep} - set(results), stop=set(results)
        )


def copied(part: P) -> P:
    """A copy of a part of a model: parts of a graph belong to it."""
    copy: P = type(part).FromString(part.SerializeToString())
    return copy


def _reads(node: NodeProto) -> list[str]:
    """The names that a node reads, those that its branches take from outside included."""
    names = [name for name in node.input if name]
    for graph in _branches(node):
        own = {name for inner in graph.node for name in inner.output} | {
            each.name for each in graph.initializer
        }
        names += [name for inner in graph.node for name in _reads(inner) if name not in own]
    return names


def _branches(node: NodeProto) -> list[Any]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    """A copy that reads and writes other names, in its branches too."""
    copy = copied(node)
    _rename(copy, names)
    return copy


def _rename(node: NodeProto, names: dict[str, str]) -> None:
    for part in (node.input, node.output):
        for index, name in enumerate(part):
            part[index] = names.get(name, name)
    for graph in _branches(node):
        for inner in graph.node:
            _rename(inner, names)
