"""Parts of a graph as functions (root, values) of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.graph.flow import constants
from gatecli.graph.ops import is_decision, module_of
from gatecli.graph.trace import compile_graph, remove_dead
from gatecli.lowering.gather import take

__all__ = [
    "Function",
    "Skippable",
    "branch_of",
    "convolved",
    "function_of",
    "needed",
    "piece",
    "skippable",
    "tail_part",
    "trunk_of",
]

Function = Callable[..., Tensor]
SLICED = (nn.Conv2d, nn.BatchNorm2d)  # layers of which a part of the output can be computed


@dataclass(frozen=True, kw_only=True)
class Skippable:
    """What can be skipped where a mask says so.

    Attributes:
        value: The masked value.
        decision: What masks it.
        entry: The one value that the branch starts from.
        region: The branch's nodes.
        others: Other gates' decisions that these read.
    """

    value: fx.Node
    decision: fx.Node
    entry: fx.Node
    region: set[fx.Node]
    others: list[fx.Node]

    @property
    def branch(self) -> Function:
        """The branch as a function (root, entry's value, the others' values)."""
        return branch_of(self.region, self.entry, self.value, self.others)


def skippable(root: nn.Module, masked: fx.Node, start: fx.Node | None = None) -> Skippable | None:
    """What the mask decides about; None where it does not start from one value alone.

    Args:
        root: What the graph's modules belong to.
        masked: The mask.
        start: Where what is skipped starts at the earliest, as a value that several are gathered
            in may be read by nothing else; none: wherever nothing else reads it.
    """
    value, decision = masked.args
    assert isinstance(value, fx.Node) and isinstance(decision, fx.Node)
    region = {node for node in _region(value, masked, start) if not is_decision(root, node)}
    sources = _sources(masked.graph, region)
    others = [source for source in sources if is_decision(root, source)]
    entries = [source for source in sources if source not in others]
    if len(entries) != 1:
        return None
    return Skippable(value=value, decision=decision, entry=entries[0], region=region, others=others)


def _region(value: fx.Node, masked: fx.Node, start: fx.Node | None) -> set[fx.Node]:
    """What only the masked value needs: nodes whose every reader is itself such a node.

    Nothing from `start` on backwards.
    """
    region = {value}
    for node in reversed(list(masked.graph.nodes)):
        inside = node.users and all(user in region for user in node.users)
        if inside and node is not start and node.op not in ("placeholder", "output"):
            region.add(node)
    return region


def _sources(graph: fx.Graph, region: set[fx.Node]) -> list[fx.Node]:
    """What the nodes of a region read from outside, constants left out; in order."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node in region:
            found.update(dict.fromkeys(node.all_input_nodes))
    fixed = constants(graph)
    return [source for source in found if source not in fixed and source not in region]


def needed(value: fx.Node) -> set[fx.Node]:
    """A value and all that it is computed from, constants left out."""
    fixed = constants(value.graph)
    found, todo = set[fx.Node](), [value]
    while todo:
        node = todo.pop()
        if node not in found and node not in fixed:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def piece(
    nodes: set[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> Callable[..., tuple[Tensor, ...]]:
    """The part `nodes` of a graph, but for its inputs, as a function.

    Returns:
        A function (root, the inputs' values) -> the outputs' values.
    """
    graph, copies = _part(nodes, inputs)
    graph.output(tuple(copies[node] for node in outputs))
    remove_dead(graph)
    return compile_graph(graph)


def _part(
    nodes: set[fx.Node], inputs: Sequence[fx.Node]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A new graph of the part `nodes` of one, and constants; and which node is whose copy.

    Its inputs are placeholders.
    """
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"x{index}") for index, node in enumerate(inputs)}
    wanted = nodes | constants(inputs[0].graph)
    for node in inputs[0].graph.nodes:
        if node not in copies and node in wanted and node.op != "output":
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    return graph, copies


def branch_of(
    region: set[fx.Node], entry: fx.Node, value: fx.Node, others: Sequence[fx.Node] = ()
) -> Function:
    """The nodes of `region`, from `entry` to `value`, as a function.

    Returns:
        A function (root, entry's value, the values of `others`) -> the value.
    """
    graph, copies = _part(region, [entry, *others])
    result = copies[value]
    if value.op == "call_method" and str(value.target).startswith("expand"):
        # what is added to it in place needs memory of its own
        result = graph.call_method("contiguous", (result,))
    graph.output(result)
    remove_dead(graph)
    return compile_graph(graph)


def function_of(node: fx.Node) -> Function:
    """One node as a function (root, its inputs' values)."""
    inputs = node.all_input_nodes
    fixed = constants(node.graph)
    graph, copies = _part({node}, [each for each in inputs if each not in fixed])
    graph.output(copies[node])
    remove_dead(graph)
    return compile_graph(graph)


def trunk_of(region: set[fx.Node], entry: fx.Node, tail: Sequence[fx.Node]) -> Function:
    """What comes before the tail, as a function (root, entry's value)."""
    (last,) = tail[0].all_input_nodes
    if last is entry:
        return lambda root, x: x
    return branch_of(region - set(tail), entry, last)


def tail_part(root: nn.Module, tail: Sequence[fx.Node]) -> Function:
    """The tail's nodes as a function that gives some of its channels.

    Returns:
        A function (root, the trunk's value, channels) -> these channels alone; all, for None. Where
        it is also given input channels, (k,), the trunk's value has these alone.
    """
    first, *rest = (_step(root, node) for node in tail)

    def run(
        root: nn.Module, x: Tensor, part: slice | Tensor | None, inputs: Tensor | None = None
    ) -> Tensor:
        x = first(root, x, part, inputs)
        for step in rest:
            x = step(root, x, part)
        return x

    return run


def _step(root: nn.Module, node: fx.Node) -> Function:
    """One node of a tail as a function (root, x, channels, input channels)."""
    if not isinstance(module_of(root, node), SLICED):
        apply = branch_of({node}, node.all_input_nodes[0], node)
        return lambda root, x, part, inputs=None: apply(root, x)
    path = str(node.target)

    def layer(
        root: nn.Module, x: Tensor, part: slice | Tensor | None, inputs: Tensor | None = None
    ) -> Tensor:
        module = root.get_submodule(path)
        if inputs is not None:
            return convolved(module, x, part, inputs)
        result: Tensor = module(x) if part is None else _channels(module, x, part)
        return result

    return layer


def convolved(conv: Any, x: Tensor, part: slice | Tensor | None, inputs: Tensor) -> Tensor:
    """Some output channels of a convolution, all for None, from some of its input channels.

    Args:
        conv: The convolution.
        x: These input channels alone, (N, k, H, W).
        part: The output channels.
        inputs: Which input channels these are, (k,); the others are zero.
    """
    weight, bias = conv.weight, conv.bias
    if part is not None:
        weight, bias = _entries(weight, part), _entries(bias, part)
    if len(inputs):
        result: Tensor = conv._conv_forward(x, weight.index_select(1, inputs), bias)
        return result
    none = x.new_zeros(0, weight.shape[1], *x.shape[2:])  # no image: nothing is multiplied
    none = conv._conv_forward(none, weight, bias)
    zeros: Tensor = none.new_zeros(len(x), *none.shape[1:])
    return zeros if bias is None else zeros + bias[:, None, None]


def _channels(module: Any, x: Tensor, part: slice | Tensor) -> Tensor:
    """Some output channels of a convolution, or of a BatchNorm whose input has only these."""
    if isinstance(module, nn.Conv2d):
        weight, bias = _entries(module.weight, part), _entries(module.bias, part)
        result: Tensor = module._conv_forward(x, weight, bias)  # type: ignore[arg-type]
        return result
    return F.batch_norm(
        x,
        _entries(module.running_mean, part),
        _entries(module.running_var, part),
        _entries(module.weight, part),
        _entries(module.bias, part),
        eps=module.eps,
    )


def _entries(tensor: Tensor | None, part: slice | Tensor) -> Tensor | None:
    if tensor is None:
        return None
    return tensor[part] if isinstance(part, slice) else take(tensor, part)
