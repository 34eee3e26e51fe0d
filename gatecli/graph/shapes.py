"""What each value of a graph is like for two batches of images: which sizes depend on their number.

Everything runs on torch's meta device, so that nothing is computed. A size that is the same for
both batches, and is not calculated from their number, is a constant of the network at this size of
images.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from gatecli.graph.macs import meta_copy, on_zeros
from gatecli.traced.traced import Shape

__all__ = ["BATCHES", "Values", "evaluate"]

# Numbers of images. Without a common factor, and so far apart that no half, third, ... of both is
# the same number.
BATCHES = (6, 35)
PLAIN = (bool, int, float, str, torch.Size, torch.dtype, torch.device, type(None))


class _Pair(NamedTuple):
    """A node's value for each of BATCHES, and whether it is a number that depends on these."""

    values: tuple[Any, ...]
    varies: bool


class Values:
    """The values of a graph's nodes, worked out one by one in the order of the graph.

    Args:
        root: The module in which the nodes' targets are found.
        image: (channels, height, width).

    Attributes:
        problem: What stood in the way of the last node that could not be worked out.
    """

    def __init__(self, root: nn.Module, image: Shape) -> None:
        self.root = root
        self.ghost = meta_copy(root).eval()
        self.image = image
        self.problem = ""
        self._pairs: dict[fx.Node, _Pair] = {}

    def add(self, node: fx.Node) -> None:
        """Work out a node whose inputs are known; it stays unknown where that cannot be done."""
        try:
            values = tuple(self._value(node, number) for number in range(len(BATCHES)))
        except Exception as error:  # whatever an operation may say of tensors without values
            self.problem = f"{type(error).__name__}: {error}"
            return
        self._pairs[node] = _Pair(values, self._varies(node, values))

    def of(self, node: fx.Node) -> tuple[Any, ...] | None:
        """A node's value for each of BATCHES; None where that is not known."""
        pair = self._pairs.get(node)
        return None if pair is None else pair.values

    def tensor(self, node: fx.Node) -> tuple[Tensor, ...] | None:
        """The same where it is a tensor."""
        values = self.of(node)
        return values if values is not None and isinstance(values[0], Tensor) else None

    def varies(self, node: fx.Node) -> bool:
        """Whether a value is no tensor and depends on the number of images."""
        pair = self._pairs.get(node)
        return pair is not None and pair.varies

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node's value is known, plain, and the same for any number of images."""
        pair = self._pairs.get(node)
        return pair is not None and not pair.varies and isinstance(pair.values[0], PLAIN)

    def constant(self, node: fx.Node) -> Any:
        """The value of a node that `is_constant`."""
        return self._pairs[node].values[0]

    def _varies(self, node: fx.Node, values: tuple[Any, ...]) -> bool:
        if isinstance(values[0], Tensor):
            return False  # its sizes are asked for one by one
        of_sizes = node.target is operator.getitem and self._are_sizes(node.args[0])
        if not of_sizes and any(self.varies(source) for source in node.all_input_nodes):
            return True
        return bool(_without_tensors(values[0]) != _without_tensors(values[1]))

    def _are_sizes(self, source: Any) -> bool:
        """Whether a value is the sizes of a tensor, each of which is looked at apart."""
        values = self.of(source) if isinstance(source, fx.Node) else None
        return values is not None and isinstance(values[0], torch.Size)

    def _value(self, node: fx.Node, number: int) -> Any:
        if node.op == "placeholder":
            if not self._pairs:
                return torch.empty(BATCHES[number], *self.image, device="meta")
            return node.args[0] if node.args else None
        if node.op == "get_attr":
            return self._attribute(str(node.target))

        def look(source: fx.Node) -> Any:
            return self._pairs[source].values[number]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), look)
        with torch.no_grad():
            return _on_meta(self._called(node, args, kwargs))

    def _attribute(self, path: str) -> Any:
        value: Any = self.root
        for part in path.split("."):
            value = getattr(value, part)
        return _on_meta(value)

    def _called(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_function":
            if node.target is getattr and args[1] == "device":
                return torch.device("cpu")  # a forward may do otherwise without memory
            function: Any = node.target
            return function(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        module = self.ghost.get_submodule(str(node.target))
        try:
            return module(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError):
            if type(module).__module__.startswith("torch.nn"):
                raise
            return on_zeros(module, args, kwargs)


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Size):
        return value  # the tree's own functions would make a plain tuple of it
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)


def _without_tensors(value: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: None, value)


def evaluate(root: nn.Module, graph: fx.Graph, image: Shape) -> Values:
    """The values of all nodes of a graph that can be worked out."""
    values = Values(root, image)
    for node in graph.nodes:
        if node.op != "output":
            values.add(node)
    return values
