"""What the nodes of a graph do to channels: which of them treat each channel apart.

Where no formula says so, it is found out by trying the node on small images.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.graph.normalize import DROPOUTS
from gatecli.graph.ops import is_mask, module_of, widen

__all__ = [
    "as_function",
    "calls",
    "has_weights",
    "is_channelwise",
    "is_plain",
    "is_product",
    "keeps_zero",
    "reads_all_channels",
    "tail_of",
    "zero_stays_zero",
]

QUOTIENTS = {operator.truediv, torch.div}
PRODUCTS = {operator.mul, torch.mul}
CHANNELS, SIDE = 6, 4  # of the images on which unknown operations are tried
CALLS = ("call_module", "call_function", "call_method")


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a module is of a kind and does what that kind does.

    A subclass may pad on its own, or hold an activation.
    """
    return isinstance(module, kind) and type(module).forward is kind.forward


def has_weights(module: nn.Module) -> bool:
    """Whether a module has parameters, its own or of a module in it."""
    return next(module.parameters(), None) is not None


def calls(graph: fx.Graph, node: fx.Node) -> int:
    """How often the graph calls the module that the node calls."""
    return sum(other.op == "call_module" and other.target == node.target for other in graph.nodes)


def as_function(root: nn.Module, node: fx.Node) -> Callable[[Tensor], Any] | None:
    """The node as a function of its first argument, in evaluation.

    None where it reads another value or has tensors of its own.
    """
    first = node.args[0] if node.args else None
    if node.op not in CALLS or node.all_input_nodes != [first]:
        return None
    args, kwargs = node.args[1:], node.kwargs
    if node.op == "call_method":
        return lambda x: getattr(x, str(node.target))(*args, **kwargs)
    if node.op == "call_function":
        function: Any = node.target
        return lambda x: function(x, *args, **kwargs)
    module = module_of(root, node)
    if module is None or has_weights(module) or next(module.buffers(), None) is not None:
        return None
    return copy.deepcopy(module).eval()


def is_channelwise(
    root: nn.Module,
    node: fx.Node,
    shape: Sequence[int] = (1, CHANNELS, SIDE, SIDE),
    axis: int = 1,
) -> bool:
    """Whether the node, which has no weights, treats each channel of its one input apart.

    Found out by trying it in evaluation mode, on images of this shape but for the channels, which
    are dimension `axis`.
    """
    apply = as_function(root, node)
    if apply is None:
        return False
    draw = torch.Generator("cpu").manual_seed(0)  # the user's own draws stay as they are
    size = [1, *shape[1:]]
    size[axis] = CHANNELS
    x = torch.randn(size, device="cpu", generator=draw)
    kept = torch.tensor([0, 2, 3], device="cpu")
    try:
        with torch.no_grad():
            whole, part = apply(x.clone()), apply(x.index_select(axis, kept))
    except Exception:  # whatever an operation may say of an image that it was not made for
        return False
    if not isinstance(whole, Tensor) or whole.ndim < 2 or whole.shape[axis] != CHANNELS:
        return False
    taken = whole.index_select(axis, kept)
    return part.shape == taken.shape and torch.allclose(taken, part)


def zero_stays_zero(
    apply: Callable[[Tensor], Any] | None, size: Sequence[int] = (SIDE, SIDE)
) -> bool:
    """Whether a function (see as_function) makes zeros of a channel of zeros of this size."""
    return apply is not None and not bool(apply(torch.zeros(1, 1, *size, device="cpu")).any())


def keeps_zero(root: nn.Module, node: fx.Node, source: fx.Node) -> bool:
    """Whether a node without weights makes zeros of `source` zeros again, channel by channel.

    A mask, a product with a constant, an activation such as ReLU.
    """
    if is_mask(node) or node.target is widen or node.target in DROPOUTS:
        return source is node.args[0]
    if _is_scaled(node):
        return True
    return is_channelwise(root, node) and zero_stays_zero(as_function(root, node))


def _is_scaled(node: fx.Node) -> bool:
    """Whether the node multiplies or divides one value by constants."""
    if node.op == "call_function":
        named = node.target in PRODUCTS | QUOTIENTS
    else:
        named = node.op == "call_method" and node.target in ("mul", "div")
    sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
    if not named or len(sources) != 1:
        return False
    return sources[0] is node.args[0] or node.target not in QUOTIENTS


def is_product(node: fx.Node) -> bool:
    """Whether the node multiplies two values of the graph."""
    if node.op == "call_method":
        named = node.target == "mul"
    else:
        named = node.op == "call_function" and node.target in PRODUCTS
    sources = [arg for arg in node.args if isinstance(arg, fx.Node) and arg.op != "get_attr"]
    return named and len(sources) == len(node.args) == 2 and not node.kwargs


def tail_of(root: nn.Module, value: fx.Node) -> list[fx.Node]:
    """The nodes that make each channel of `value` apart.

    A convolution and what follows it channel by channel; in order, empty where there are none.
    """
    tail, node = [value], value
    while not _is_whole_convolution(module_of(root, node)):
        if not _works_apart(root, node):
            return []
        node = node.all_input_nodes[0]
        if len(node.users) > 1 or node.op == "placeholder":
            return []
        tail.append(node)
    layers = [part for part in tail if module_of(root, part) is not None]
    once = all(calls(value.graph, part) == 1 for part in layers)
    return tail[::-1] if once else []


def _works_apart(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node behind a convolution treats each channel apart."""
    if node.target in DROPOUTS:  # it reads also whether the network is in training
        return node.all_input_nodes[0] is node.args[0]
    return is_plain(module_of(root, node), nn.BatchNorm2d) or is_channelwise(root, node)


def reads_all_channels(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a convolution each of whose filters reads all channels, called once."""
    return _is_whole_convolution(module_of(root, node)) and calls(node.graph, node) == 1


def _is_whole_convolution(module: nn.Module | None) -> bool:
    """Whether each of a convolution's channels is made of all that come in."""
    return is_plain(module, nn.Conv2d) and getattr(module, "groups", 0) == 1
