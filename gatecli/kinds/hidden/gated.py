"""Find a gated perceptron's product: of two layers that read the same, or of two halves of one.

    apart     act(W x) * (V x)                  EVA-02, AIMv2
    packed    a, b = chunk(W x); act(a) * b     DINOv2's largest, EVA-02's smaller ones

Either factor may be the one with the activation. Shazeer, "GLU Variants Improve Transformer"
(2020), equation 5.
"""

from __future__ import annotations

import operator

from torch import fx

from gatecli.graph.ops import module_of
from gatecli.graph.patterns import is_product
from gatecli.kinds.hidden.apart import is_pointwise, works_apart
from gatecli.traced.traced import Traced, parts_of

__all__ = ["gated_tail"]


def gated_tail(net: Traced, first: fx.Node, axis: int) -> list[fx.Node]:
    """From a first layer to the product of which it makes a factor, or both, all in order.

    Args:
        net: The network.
        first: A linear layer or a 1x1 convolution.
        axis: The dimension that the channels are.

    Returns:
        The nodes; empty where it makes no factor, or is the second of two layers.
    """
    halves = _halves(net, first, axis)
    one = _way(net, halves[0] if halves else first, axis)
    if not one:
        return []
    others = (_way(net, start, axis) for start in halves[1:] or _beside(net, first))
    other = next((way for way in others if way[-1:] == one[-1:]), [])
    if not other:
        return []
    inside = {*(first.users if halves else ()), first, *one, *other}
    tail = [node for node in first.graph.nodes if node in inside]
    return tail if tail[0] is first else []


def _halves(net: Traced, first: fx.Node, axis: int) -> list[fx.Node]:
    """The two halves of what a layer makes, where it is cut into these and nothing else."""
    count, dim = parts_of(first)
    if count != 2:
        return []
    shape = net.shape(first)
    if dim % len(shape) != axis % len(shape) or shape[axis] % 2:
        return []
    (chunk,) = first.users
    halves = sorted(chunk.users, key=lambda half: str(half.args[1:]))
    items = all(half.target is operator.getitem for half in halves)
    return halves if items and [half.args[1] for half in halves] == [0, 1] else []


def _beside(net: Traced, first: fx.Node) -> list[fx.Node]:
    """The other layers of a layer's kind and width that read what it reads."""
    found = []
    (entry,) = first.all_input_nodes
    for node in entry.users:
        is_other = node is not first and is_pointwise(net.root, node)
        alike = type(module_of(net.root, node)) is type(module_of(net.root, first))
        if is_other and alike and net.shape(node) == net.shape(first):
            found.append(node)
    return found


def _way(net: Traced, start: fx.Node, axis: int) -> list[fx.Node]:
    """From a node unit by unit to the product that alone reads it; empty where there is none."""
    way = [start]
    while len(way[-1].users) == 1:
        (node,) = way[-1].users
        if is_product(node):
            return [*way, node]
        if not works_apart(net, node, way[-1], axis):
            break
        way.append(node)
    return []
