"""How evaluation computes what branches read (see the executor), and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from gatecli.gates.decider import Decider
from gatecli.graph.ops import is_relu, module_of
from gatecli.graph.patterns import is_plain
from gatecli.kinds.branch.modules import FanOut, SharedNorm, distinct
from gatecli.kinds.branch.ops import connect, fold_streams, unfold_streams
from gatecli.traced.traced import NodeCost

__all__ = ["is_direct", "is_lean", "is_pointwise", "recounted", "way_of"]


def is_direct(streams: int, fan_in: int, branches: int, width: int) -> bool:
    """Whether products for each stream are fewer than those for each branch.

    A stream's are over the branches that it reads; to a branch's come the sums of these.
    """
    return streams * fan_in * width <= branches * width + streams * branches


def is_lean(root: nn.Module, node: fx.Node) -> bool:
    """Whether an executor takes the place of a `connect` and the ReLU behind it.

    Its values are those of a 1x1 convolution and a BatchNorm.
    """
    norm, relu = node.all_input_nodes[0], next(iter(node.users))
    conv: Any = module_of(root, norm.all_input_nodes[0])
    plain = isinstance(conv, FanOut) or (is_plain(conv, nn.Conv2d) and is_pointwise(conv))
    normed = isinstance(module_of(root, norm), SharedNorm) or is_plain(
        module_of(root, norm), nn.BatchNorm2d
    )
    return (
        plain
        and set(conv.stride) == {1}
        and normed
        and len(node.users) == 1
        and is_relu(root, relu)
    )


def is_pointwise(conv: Any) -> bool:
    """Whether the convolution is 1x1, of stride 1 and without padding."""
    return (
        set(conv.kernel_size) == {1}
        and set(conv.stride) == {1}
        and conv.padding in ("same", "valid", (0, 0))
    )


def way_of(fold: fx.Node) -> list[fx.Node]:
    """The nodes after `fold`, up to the one that undoes it.

    `fold` makes streams samples, that one makes them streams again.
    """
    way = [next(iter(fold.users))]
    while way[-1].target is not unfold_streams:
        way.append(next(iter(way[-1].users)))
    return way


def recounted(
    root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]
) -> dict[str, NodeCost]:
    """The costs with those of what branches read as evaluation computes it.

    Fixed connections whose values are not known yet count as all different.
    """
    result = dict(costs)
    for node in graph.nodes:
        if node.target is connect and is_lean(root, node):
            for name, macs in _lean_macs(root, costs, node).items():
                result[name] = replace(costs[name], macs=macs)
    return result


def has_fixed(root: nn.Module, graph: fx.Graph) -> bool:
    """Whether costs depend on fixed connections: branches that read the same share a stream."""
    for node in graph.nodes:
        if node.target is connect and is_lean(root, node):
            read = node.all_input_nodes[2]
            if not isinstance(module_of(root, read), Decider):
                return True
    return False


def _lean_macs(root: nn.Module, costs: Mapping[str, NodeCost], node: fx.Node) -> dict[str, int]:
    """MACs of a `connect`, of the convolution before it, and of a shortcut's way behind it."""
    norm, _, read = node.all_input_nodes
    (relu,), (conv,) = node.users, norm.all_input_nodes
    gate: Any = module_of(root, read)
    is_gate = isinstance(gate, Decider)
    connections: Tensor = gate.real if is_gate else gate.connections
    readers, branches = connections.shape
    known = not is_gate and not connections.is_meta
    streams = len(distinct(connections)[0]) if known else readers
    _, wide, height, width = _shape(costs, node)
    each = wide // readers * height * width
    inside = _shape(costs, conv.all_input_nodes[0])[1] // branches
    fan_in = int(gate.fan_in)
    direct = gate.is_binary and is_direct(streams, fan_in, branches, inside)
    result = {
        conv.name: (streams * fan_in if direct else branches) * inside * each,
        node.name: 0 if direct else streams * branches * each,
    }
    for fold in relu.users:
        for step in way_of(fold) if fold.target is fold_streams else []:
            result[step.name] = costs[step.name].macs * streams // readers
    return result


def _shape(costs: Mapping[str, NodeCost], node: fx.Node) -> tuple[int, ...]:
    shape = costs[node.name].shape
    assert shape is not None
    return shape
