"""A traced network as data: modules, graph, costs, sites, and which method gates which site."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from gatecli.errors import InternalError
from gatecli.traced.recipe import RULES
from gatecli.traced.site import Site

__all__ = ["NodeCost", "Shape", "Traced", "has_channels_last", "parts_of"]

Shape = tuple[int, ...]
TOKENS = 3  # dimensions of (N, L, C)


@dataclass(frozen=True)
class NodeCost:
    """What a node costs.

    Attributes:
        macs: Multiply-accumulates for one image.
        shape: Of what the node returns for one image; None where that is no tensor.
        unknown: It works with weights in a way that nothing here can count, so its MACs are 0.
    """

    macs: int
    shape: Shape | None
    unknown: bool = False


class Traced:
    """A network's modules and its graph, with what is known of its nodes and sites.

    Attributes:
        root: Holds the modules and tensors that the graph calls, by the graph's targets.
        graph: What the network means.
        costs: The cost of every node, by name.
        sites: What can be gated, by name.
        gated_by: Site -> the method that gates it.
        details: What a kind knows of the network besides its sites, by the kind's name.
        rules: The version of the rules by which sites are found and numbered.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root = root
        self.graph = graph
        self.costs: dict[str, NodeCost] = {}
        self.sites: dict[str, Site] = {}
        self.gated_by: dict[str, str] = {}
        self.details: dict[str, Any] = {}
        self.rules = RULES
        self._index: dict[str, fx.Node] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Traced:
        twin = Traced(copy.deepcopy(self.root, memo), copy.deepcopy(self.graph, memo))
        memo[id(self)] = twin
        twin.costs = dict(self.costs)
        twin.sites = dict(self.sites)
        twin.gated_by = dict(self.gated_by)
        twin.details = dict(self.details)
        twin.rules = self.rules
        return twin

    def find(self, name: str) -> fx.Node | None:
        """The node of that name; None where the graph has none."""
        node = self._index.get(name)
        if node is None or node._erased or node.graph is not self.graph:
            self._index = {each.name: each for each in self.graph.nodes}
            node = self._index.get(name)
        return node

    def node(self, name: str) -> fx.Node:
        """The node of that name.

        Raises:
            InternalError: The graph has none.
        """
        found = self.find(name)
        if found is None:
            raise InternalError(f"expected a node `{name}` in the graph")
        return found

    def has(self, *names: str) -> bool:
        """Whether the graph has nodes of all these names."""
        return all(self.find(name) is not None for name in names)

    def shape(self, node: fx.Node | str) -> Shape:
        """The shape of a node's value for one image.

        Raises:
            InternalError: The value is no tensor, or the node has not been counted.
        """
        cost = self.costs.get(node if isinstance(node, str) else node.name)
        if cost is None or cost.shape is None:
            raise InternalError(f"expected `{node}` to be a tensor of a known shape")
        return cost.shape

    def holds_images(self, node: fx.Node | str) -> bool:
        """Whether a value has one entry an image, and not one for each part of an image."""
        cost = self.costs.get(node if isinstance(node, str) else node.name)
        shape = None if cost is None else cost.shape
        return shape is not None and len(shape) >= 2 and shape[0] == 1

    def channel_axis(self, node: fx.Node | str) -> int:
        """The dimension of a value that its channels are: the second of maps, a token's last.

        What a linear layer makes has them last, whatever its other dimensions are.
        """
        if len(self.shape(node)) == TOKENS:
            return -1
        value = self.node(node) if isinstance(node, str) else node
        return -1 if has_channels_last(self.root, self.costs, value) else 1

    def channels(self, node: fx.Node | str) -> int:
        """How many channels a node's value has."""
        return self.shape(node)[self.channel_axis(node)]

    def macs(self, nodes: Iterator[str] | tuple[str, ...] | list[str]) -> int:
        """MACs of these nodes together; those that the graph has no more cost nothing."""
        return sum(self.costs[node].macs for node in nodes if node in self.costs)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls; None where it calls none."""
        return self.root.get_submodule(str(node.target)) if node.op == "call_module" else None


def has_channels_last(root: nn.Module, costs: Mapping[str, NodeCost], value: fx.Node) -> bool:
    """Whether a value is a linear layer's, with nothing behind it that has weights or a shape."""
    node: Any = value
    while isinstance(node, fx.Node) and node.op.startswith("call_"):
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear):
            return True
        if module is not None and next(module.parameters(), None) is not None:
            return False
        before, node = node, node.args[0] if node.args else None
        whole = _cut_at_the_end(costs, node)
        if whole is not None:
            node = whole
        elif isinstance(node, fx.Node) and not _same_shape(costs, before, node):
            return False
    return False


def _cut_at_the_end(costs: Mapping[str, NodeCost], node: Any) -> fx.Node | None:
    """What a node cuts in equal parts along its last dimension; None where it does not."""
    whole = node.args[0] if isinstance(node, fx.Node) and node.args else None
    if not isinstance(whole, fx.Node) or whole.name not in costs:
        return None
    count, dim = parts_of(whole)
    last = len(costs[whole.name].shape or ()) - 1
    return whole if count > 1 and dim in (-1, last) else None


def _same_shape(costs: Mapping[str, NodeCost], one: fx.Node, other: fx.Node) -> bool:
    """Whether two values are of one shape, as far as both have been counted."""
    if one.name not in costs or other.name not in costs:
        return True
    return costs[one.name].shape == costs[other.name].shape


def parts_of(node: fx.Node) -> tuple[int, int]:
    """In how many equal parts the only reader of a value cuts it, and along which dimension.

    (1, 0) where it does nothing of the kind.
    """
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.target not in ("chunk", torch.chunk):
        return 1, 0
    told: Any = {"dim": 0, **dict(zip(("chunks", "dim"), user.args[1:], strict=False))}
    told |= user.kwargs
    return told["chunks"], told["dim"]
