"""What flows from the image to the output, and what is only said of it: sizes, types, devices.

To read a size is no flow of data: a network that reads `images.size(0)` at the beginning for a view
at the end can be left, and cut, in between.
"""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["constants", "data_nodes", "reads_size", "whole_number"]

# What asks a tensor for its shape, type or place; or makes one like it, whatever it holds.
METHODS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "get_device",
    "is_floating_point",
    "is_complex",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "new_tensor",
}
ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"}
FUNCTIONS = {
    len,
    torch.numel,
    torch.is_floating_point,
    torch.is_complex,
    torch.zeros_like,
    torch.ones_like,
    torch.empty_like,
    torch.full_like,
}


def reads_size(node: fx.Node) -> bool:
    """Whether the node looks at what its first input is like, and not at what it holds."""
    if node.op == "call_method":
        return node.target in METHODS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return len(node.args) > 1 and node.args[1] in ATTRIBUTES
    return node.target in FUNCTIONS


def data_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values are computed from the image's."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        flows = any(source in found for source in node.all_input_nodes)
        if node.op == "placeholder" or (flows and not reads_size(node)):
            found.add(node)
    return found


def constants(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on no image at all, not even on its size."""
    varying: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(each in varying for each in node.all_input_nodes):
            varying.add(node)
    return {node for node in graph.nodes if node not in varying}


def whole_number(value: float) -> int:
    """What `int()` makes of a number, as a function that graphs can call."""
    return int(value)
