"""Let an ONNX graph skip: what a decision need not have computed moves into an `If`.

That is what only a closed branch needs, or only an image that has not left by an exit.

Weights move with their nodes. Left in the outer graph, they are inputs to the branch rather than
its constants, and ONNX Runtime cannot lay them out for its fast convolutions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gatecli.exporting.onnx.nodes import constant, copied, names_read, refill, renamed

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

__all__ = ["Otherwise", "Surgeon"]

COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not")


@dataclass(frozen=True, kw_only=True)
class Otherwise:
    """What stands for results that are not computed.

    Attributes:
        nodes: compute it.
        outputs: which of their values stand for the results, in order.
    """

    nodes: Sequence[NodeProto]
    outputs: Sequence[str]


class Surgeon:
    """Edits one graph in place; `done` comes at the end.

    Attributes:
        graph: the graph, out of date until `done`.
        nodes: its nodes in the order of execution.
        constants: its weights and other constants by name.
        types: what is known of values, by name.
        outputs: names of the values that are needed in the end.
        count: how many `If`s there are.
    """

    def __init__(self, graph: GraphProto) -> None:
        values = (*graph.value_info, *graph.output, *graph.input)
        self.graph = graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.constants: dict[str, TensorProto] = {each.name: each for each in graph.initializer}
        self.types: dict[str, ValueInfoProto] = {each.name: each for each in values}
        self.outputs = {each.name for each in graph.output}
        self.count = 0

    def compute_only_if(
        self,
        decision: str,
        results: Sequence[str],
        otherwise: Otherwise,
        *,
        keep: Collection[str] = (),
        negate: bool = False,
    ) -> None:
        """Compute values only where a decision is not 0.

        Weights that both branches need, and nobody else, are in both.

        Args:
            decision: name of the value that decides.
            results: names of the values.
            otherwise: what stands for them else.
            keep: values that are needed in any case.
            negate: compute only where the decision is 0.
        """
        from onnx import helper

        region = self.needed_only_by(results, {decision, *keep})
        inside = [node for node in self.nodes if id(node) in region]
        outside = set(self.outputs)
        for node in self.nodes:
            if id(node) not in region:
                outside.update(names_read(node))
        skip = self._skip(results, otherwise, outside)
        run = self._run(results, inside, outside)
        for weight in run.initializer:
            del self.constants[weight.name]
        first, second = (skip, run) if negate else (run, skip)
        branch = helper.make_node(
            "If",
            [self._condition(decision)],
            list(results),
            name=f"if{self.count}",
            then_branch=first,
            else_branch=second,
        )
        last = max(index for index, node in enumerate(self.nodes) if id(node) in region)
        self.nodes[last] = branch
        self.nodes = [node for node in self.nodes if id(node) not in region]
        self.count += 1

    def _skip(
        self, results: Sequence[str], otherwise: Otherwise, outside: Collection[str]
    ) -> GraphProto:
        """The branch that computes what stands for the results."""
        from onnx import helper

        pairs = zip(results, otherwise.outputs, strict=True)
        ends = [self._typed(name, other) for name, other in pairs]
        weights = self._weights(otherwise.nodes, outside)
        return helper.make_graph(list(otherwise.nodes), f"skip{self.count}", [], ends, weights)

    def _run(
        self, results: Sequence[str], nodes: Sequence[NodeProto], outside: Collection[str]
    ) -> GraphProto:
        """The branch that computes the results, under names of its own."""
        from onnx import helper

        inner = {name: f"{name}/run{self.count}" for name in results}
        ends = [self._typed(name, other) for name, other in inner.items()]
        moved = [renamed(node, inner) for node in nodes]
        weights = self._weights(nodes, outside)
        return helper.make_graph(moved, f"run{self.count}", [], ends, weights)

    def behind(self, names: Sequence[str], result: str, decided: Collection[str]) -> list[str]:
        """Those of the values that need what, once `decided` are known, `result` alone needs."""
        region = self._ancestors([result]) - self._ancestors(decided)
        return [name for name in names if self._ancestors([name]) & region]

    def add_constant(self, name: str, value: Tensor) -> None:
        """Add a constant for nodes to read."""
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(value.numpy(), name)

    def add_output(self, name: str, value: Tensor) -> None:
        """A value that is this constant, unless an `If` says otherwise."""
        from onnx import TensorProto, helper

        kind = TensorProto.INT64 if value.dtype == torch.int64 else TensorProto.FLOAT
        self.nodes.append(constant(name, value))
        self.types[name] = helper.make_tensor_value_info(name, kind, list(value.shape))

    def alias(self, name: str, other: str) -> None:
        """A second name for a value, right after it."""
        from onnx import helper

        self.nodes.insert(self._behind(name), helper.make_node("Identity", [name], [other]))
        self.types[other] = self._typed(name, other)

    def maker(self, name: str) -> NodeProto | None:
        """The node that gives a value; None: it is an input or a constant."""
        return next((node for node in self.nodes if name in node.output), None)

    def insert_before(self, node: NodeProto, other: NodeProto) -> None:
        """Put another node before a node."""
        self.nodes.insert(self._place(node), other)

    def move_behind(self, name: str, node: NodeProto, others: Sequence[NodeProto]) -> None:
        """Take a node out, and put others right behind the value of that name."""
        del self.nodes[self._place(node)]
        place = self._behind(name)
        self.nodes[place:place] = others

    def _place(self, node: NodeProto) -> int:
        return next(index for index, each in enumerate(self.nodes) if each is node)

    def _behind(self, name: str) -> int:
        """The place right behind the node that gives a value, the first where none does."""
        maker = self.maker(name)
        return 0 if maker is None else self._place(maker) + 1

    def integers(self, name: str) -> list[int] | None:
        """The values of a constant of whole numbers; None where it is no constant."""
        from onnx import numpy_helper

        if name not in self.constants:
            return None
        values: list[int] = numpy_helper.to_array(self.constants[name]).reshape(-1).tolist()
        return values

    def shape_of(self, name: str) -> list[int]:
        """The shape of a value all of whose dimensions are known."""
        return [dimension.dim_value for dimension in self.types[name].type.tensor_type.shape.dim]

    def done(self, outputs: Sequence[str]) -> None:
        """Keep only these outputs, in this order, and what they need."""
        needed = self._ancestors(outputs)
        self.nodes = [node for node in self.nodes if id(node) in needed]
        used = set(outputs)
        for node in self.nodes:
            used.update(names_read(node))
        refill(self.graph.node, self.nodes)
        refill(self.graph.initializer, [self.constants[n] for n in self.constants if n in used])
        refill(self.graph.output, [self.types[name] for name in outputs])
        refill(self.graph.value_info, [])

    def _weights(self, nodes: Sequence[NodeProto], outside: Collection[str]) -> list[TensorProto]:
        """The constants that these nodes read, and nobody outside."""
        wanted: dict[str, None] = {}
        for node in nodes:
            wanted.update(dict.fromkeys(names_read(node)))
        inner = [name for name in wanted if name not in outside]
        return [self.constants[name] for name in inner if name in self.constants]

    def _condition(self, decision: str) -> str:
        """A boolean scalar for the decision: ONNX Runtime takes any one element, OpenVINO does not.

        It is what the decision, which is 0 or 1, was cast from, where that is a boolean.
        """
        from onnx import helper

        flag = self._flag(decision)
        name = f"{flag}/scalar"
        if self.maker(name) is None:
            squeezed = helper.make_node("Squeeze", [flag], [name])
            self.nodes.insert(self._behind(flag), squeezed)
        return name

    def _flag(self, decision: str) -> str:
        """A boolean of one element for the decision."""
        from onnx import TensorProto, helper

        maker = self.maker(decision)
        if maker is not None and maker.op_type == "Cast" and self._is_boolean(maker.input[0]):
            return str(maker.input[0])
        name = f"{decision}/bool"
        if self.maker(name) is None:
            cast = helper.make_node("Cast", [decision], [name], to=TensorProto.BOOL)
            self.nodes.insert(self._behind(decision), cast)
        return name

    def _is_boolean(self, name: str) -> bool:
        maker = self.maker(name)
        return maker is not None and maker.op_type in COMPARISONS

    def _typed(self, name: str, other: str) -> ValueInfoProto:
        typed = copied(self.types[name])
        typed.name = other
        return typed

    def _ancestors(self, ends: Iterable[str], stop: Collection[str] = ()) -> set[int]:
        """The nodes (by id) that these values need, without going through the values `stop`."""
        makers: dict[str, NodeProto] = {}
        for node in self.nodes:
            makers.update(dict.fromkeys(node.output, node))
        found = set[int]()
        todo = [name for name in ends if name not in stop]
        while todo:
            maker = makers.get(todo.pop())
            if maker is not None and id(maker) not in found:
                found.add(id(maker))
                todo.extend(name for name in names_read(maker) if name not in stop)
        return found

    def needed_only_by(self, results: Sequence[str], keep: Collection[str]) -> set[int]:
        """The nodes (by id) that nothing but these results needs.

        No output needs them, and none of the values to keep.
        """
        others = {*self.outputs, *keep} - set(results)
        return self._ancestors(results) - self._ancestors(others, stop=set(results))
