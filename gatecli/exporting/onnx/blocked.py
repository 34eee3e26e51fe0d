"""ONNX files laid out for one kind of processor: values pass the edges of `If`s in blocks.

ONNX Runtime's convolutions compute in a blocked layout, as wide as the processor's registers. Its
optimiser converts values to it and back within one graph, so at each edge of an `If`. Here its
optimised graph is rewritten: a value that was made from a blocked one has that as its *twin*; who
converts it again takes the twin, and an `If` both of whose branches know a twin of their result
returns that. Whoever wants the plain value still gets it, converted behind the `If`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gatecli.exporting.onnx.nodes import branches, names_read, refill, renamed
from gatecli.exporting.onnx.packages import onnx_package, runtime_package

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["optimised", "pass_blocked"]

DOMAIN = "com.microsoft.nchwc"


@dataclass(frozen=True, kw_only=True)
class _Twin:
    """The blocked value behind a plain one, and the plain one's channels."""

    name: str
    channels: int


Twins = dict[str, _Twin]  # by the names of plain values


def optimised(source: Path, out: Path) -> ModelProto:
    """The graph that ONNX Runtime runs for a file on this machine; written to `out` on the way."""
    onnxruntime = runtime_package()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    model: ModelProto = onnx_package().load(out)
    return model


def pass_blocked(model: ModelProto) -> int:
    """Let blocked values pass the edges of `If`s.

    Args:
        model: as ONNX Runtime optimised it; changed in place.

    Returns:
        How many conversions to blocks, and of results of `If`s from them, are gone.
    """
    _name_apart(model.graph)
    rewriter = _Rewriter()
    rewriter.rewrite(model.graph, {}, {})
    _drop_unused(model.graph)
    return rewriter.count


class _Rewriter:
    """Walks through graphs in the order of execution.

    Attributes:
        count: how many conversions are gone.
    """

    def __init__(self) -> None:
        self.count = 0

    def rewrite(self, graph: GraphProto, twins: Twins, same: Mapping[str, str]) -> Twins:
        """Rewrite a graph.

        Args:
            graph: changed in place.
            twins: those known outside.
            same: blocked values that stand for others, by the others' names.

        Returns:
            The twins known at its end.
        """
        twins, same = dict(twins), dict(same)
        nodes: list[NodeProto] = []
        for node in graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = same.get(name, name)
            found = _same_value(node, twins)
            if found:
                same[node.output[0]] = found
                self.count += _is(node, "ReorderInput")
                continue
            nodes.append(node)
            if _is(node, "ReorderOutput") and not _attribute(node, "channels_last"):
                channels = _attribute(node, "channels")
                twins[node.output[0]] = _Twin(name=node.input[0], channels=channels)
            elif node.op_type == "If":
                nodes += self._branches(node, twins, same)
        refill(graph.node, nodes)
        del graph.value_info[:]
        return twins

    def _branches(self, node: NodeProto, twins: Twins, same: Mapping[str, str]) -> list[NodeProto]:
        """Rewrite both branches of an `If`; returns what is to follow it."""
        graphs = branches(node)
        inside = [self.rewrite(graph, twins, same) for graph in graphs]
        further = []
        for place, name in enumerate(node.output):
            ends = []
            for graph, known in zip(graphs, inside, strict=True):
                ends.append(_end(graph, graph.output[place].name, known))
            if any(end is None for end in ends):
                continue
            for graph, end in zip(graphs, ends, strict=True):
                assert end is not None
                _return(graph, place, end)
                channels = end.twin.channels
            node.output[place] = f"{name}/blocked"
            twins[name] = _Twin(name=f"{name}/blocked", channels=channels)
            further.append(_plain(name, twins[name]))
            self.count += 1
        return further


def _name_apart(graph: GraphProto) -> None:
    """Give what is inside branches names of its own: ONNX Runtime's repeat from graph to graph."""
    for node in graph.node:
        for inner in branches(node):
            _name_apart(inner)
            own = [name for each in inner.node for name in each.output if name]
            own += [each.name for each in inner.initializer]
            names = {name: f"{inner.name}//{name}" for name in own}
            refill(inner.node, [renamed(each, names) for each in inner.node])
            for part in (*inner.initializer, *inner.output):
                part.name = names.get(part.name, part.name)


def _is(node: NodeProto, operation: str) -> bool:
    return node.domain == DOMAIN and node.op_type == operation


def _attribute(node: NodeProto, name: str) -> int:
    """A whole number among a node's attributes; 0: it has none of that name."""
    return next((each.i for each in node.attribute if each.name == name), 0)


def _same_value(node: NodeProto, twins: Twins) -> str:
    """The blocked value that is what a node gives; empty: there is none."""
    if _is(node, "ReorderInput") and not _attribute(node, "channels_last"):
        twin = twins.get(node.input[0])
        return "" if twin is None else twin.name
    if _is(node, "MaxPool") and _does_nothing(node):
        return str(node.input[0])
    return ""


def _does_nothing(pooling: NodeProto) -> bool:
    """Whether a pooling looks at single values, one by one."""
    sizes = {each.name: list(each.ints) for each in pooling.attribute}
    steps = [*sizes.get("kernel_shape", [0]), *sizes.get("strides", [])]
    return set(steps) == {1} and not any(sizes.get("pads", []))


@dataclass(frozen=True, kw_only=True)
class _End:
    """What a branch can return in blocks: its twin, or that through a ReLU."""

    operation: str
    twin: _Twin


def _end(graph: GraphProto, name: str, twins: Twins) -> _End | None:
    """How a branch can return a value of that name in blocks; None: it cannot."""
    if name in twins:
        return _End(operation="Identity", twin=twins[name])
    maker = next((node for node in graph.node if name in node.output), None)
    if maker is None or maker.op_type not in ("Identity", "Relu") or maker.input[0] not in twins:
        return None
    return _End(operation=maker.op_type, twin=twins[maker.input[0]])


def _return(graph: GraphProto, place: int, end: _End) -> None:
    """Let a branch return a blocked value."""
    from onnx import helper

    result = graph.output[place]
    inside = any(end.twin.name in node.output for node in graph.node)
    if inside and end.operation == "Identity":
        result.name = end.twin.name
    else:
        before = result.name
        result.name = f"{before}/blocked"
        node = helper.make_node(end.operation, [end.twin.name], [result.name])
        graph.node.append(node)
    result.type.tensor_type.ClearField("shape")  # channels are filled up to whole blocks


def _plain(name: str, twin: _Twin) -> NodeProto:
    """The node that gives a plain value of a blocked one."""
    from onnx import helper

    node = helper.make_node("ReorderOutput", [twin.name], [name], domain=DOMAIN)
    node.attribute.append(helper.make_attribute("channels", twin.channels))
    return node


def _drop_unused(graph: GraphProto) -> None:
    """Take out what nobody reads, in branches too."""
    needed = {each.name for each in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if not needed.intersection(node.output):
            continue
        for inner in branches(node):
            _drop_unused(inner)
        needed.update(names_read(node))
        kept.append(node)
    refill(graph.node, kept[::-1])
    refill(graph.initializer, [each for each in graph.initializer if each.name in needed])
