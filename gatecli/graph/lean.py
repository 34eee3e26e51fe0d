"""How evaluation computes what branches read (gatecli.executors.branches), and what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from gatecli.gates import Gate
from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import connect, fold_streams, is_relu, module_of, unfold_streams
from gatecli.graph.slices import is_plain
from gatecli.graph.streams import FanOut, SharedNorm, distinct


def is_direct(streams: int, fan_in: int, branches: int, width: int) -> bool:
    """Whether products for each stream, over the branches that it reads, are fewer than those for
    each branch and the sums of these.
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
    return (
        set(conv.kernel_size) == {1}
        and set(conv.stride) == {1}
        and conv.padding in ("same", "valid", (0, 0))
    )


def way_of(fold: fx.Node) -> list[fx.Node]:
    """The nodes after `fold`, which makes streams samples, up to the one that makes them streams
    again.
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
        if node.target is not connect or not is_lean(root, node):
            continue
        norm, _, read = node.all_input_nodes
        (relu,), (conv,), gate = node.users, norm.all_input_nodes, module_of(root, read)
        held: Any = gate
        connections: Tensor = held.real if isinstance(gate, Gate) else held.connections
        readers, branches = connections.shape
        streams = (
            readers
            if isinstance(gate, Gate) or connections.is_meta
            else len(distinct(connections)[0])
        )
        _, wide, height, width = _shape(costs, node)
        each, inside, fan_in = (
            wide // readers * height * width,
            _shape(costs, conv.all_input_nodes[0])[1] // branches,
            int(held.fan_in),
        )
        direct = is_direct(streams, fan_in, branches, inside)
        result[conv.name] = replace(
            costs[conv.name], macs=(streams * fan_in if direct else branches) * inside * each
        )
        result[node.name] = replace(
            costs[node.name], macs=0 if direct else streams * branches * each
        )
        for fold in [user for user in relu.users if user.target is fold_streams]:
            result |= {
                each.name: replace(
                    costs[each.name], macs=costs[each.name].macs * streams // readers
                )
                for each in way_of(fold)
            }
    return result


def _shape(costs: Mapping[str, NodeCost], node: fx.Node) -> tuple[int, ...]:
    shape = costs[node.name].shape
    assert shape is not None
    return shape
