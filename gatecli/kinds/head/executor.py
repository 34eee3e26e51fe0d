"""Gated heads: an attention computes those that are open, for one image.

In a batch those that are open for any of its images.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gatecli.graph.flow import constants
from gatecli.graph.heads import bias_alone, for_parts, mask_where, some_heads
from gatecli.graph.ops import is_decision, is_mask, spread
from gatecli.graph.trace import compile_graph
from gatecli.kinds.head.attention import Attention, weights_of
from gatecli.kinds.head.bias import bias_of
from gatecli.kinds.head.places import Place
from gatecli.kinds.head.resize import resized
from gatecli.lowering.inplace import Executor
from gatecli.traced.traced import Traced

__all__ = ["HeadBlock", "OpenHeads"]

Run = Callable[..., Tensor]


class HeadBlock(Executor):
    """An attention, of its open heads alone.

    Args:
        root: What holds the network's modules.
        whole: (root, tokens, decisions or None) -> the attention's result, of all heads.
        part: (root, tokens, decisions or None, heads, how many) -> the same of these heads.
        parts: How many parts of an image the tokens are cut into.
        output: The paths of the output projection's weight and bias.
    """

    def __init__(
        self, root: nn.Module, whole: Run, part: Run, *, parts: int, output: tuple[str, str]
    ) -> None:
        super().__init__(root)
        self.whole, self.part, self.parts, self.output = whole, part, parts, output

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """`x` (N * parts, L, C), `z` (N, heads) -> (N * parts, L, C')."""
        open_ = (z[0] if len(z) == 1 else z.amax(0)).nonzero().reshape(-1) if len(z) else None
        if open_ is None or len(open_) == z.shape[1]:
            decisions = None if open_ is None or bool(z.all()) else self._repeated(z)
            return self.whole(self.root, x, decisions)
        if not len(open_):
            return self._nothing(x)
        decisions = None if len(z) == 1 else self._repeated(z.index_select(1, open_))
        return self.part(self.root, x, decisions, open_, len(open_))

    def _repeated(self, z: Tensor) -> Tensor:
        return z if self.parts == 1 else for_parts(z, self.parts)

    def _nothing(self, x: Tensor) -> Tensor:
        """What the output projection makes of nothing: its bias, of the type of its products."""
        weight, bias = (_tensor(self.root, path) for path in self.output)
        assert weight is not None
        none = F.linear(x.new_zeros(0, weight.shape[1]), weight, bias)
        if torch.is_grad_enabled():  # zeros that x has a share in
            none = none.sum() + x.sum() * 0
        return bias_alone(x, len(weight), bias).to(none.dtype)


def _tensor(root: nn.Module, path: str) -> Tensor | None:
    owner, _, name = path.rpartition(".")
    found: Tensor | None = getattr(root.get_submodule(owner), name) if path else None
    return found


class OpenHeads:
    """Makes functions of an attention's part of a graph.

    Args:
        net: The network, whose shapes are those with all heads.
        found: The attention, on a graph with a mask.
    """

    def __init__(self, net: Traced, found: Attention) -> None:
        self.net = net
        self.found = found

    def whole(self) -> Run:
        """All heads, see `HeadBlock`."""
        return _Writer(self.net, self.found).function(narrowed=False)

    def part(self) -> Run:
        """Some heads, see `HeadBlock`."""
        return _Writer(self.net, self.found).function(narrowed=True)


class _Writer:
    """Writes one such function as a graph of its own."""

    def __init__(self, net: Traced, found: Attention) -> None:
        self.net, self.found = net, found
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {
            found.tokens: self.graph.placeholder("tokens"),
        }
        self.z = self.graph.placeholder("z")
        self.heads: fx.Node | None = None
        self.count: Any = None

    def function(self, *, narrowed: bool) -> Run:
        found = self.found
        if narrowed:
            self.heads = self.graph.placeholder("heads")
            self.count = self.graph.placeholder("count")
        wanted = found.region | constants(found.output.graph)
        for node in found.output.graph.nodes:
            skipped = node in self.copies or node.op == "output" or node.target is spread
            if node in wanted and not skipped and not is_decision(self.net.root, node):
                self.copies[node] = self._copy(node)
        self.graph.output(self.copies[found.output])
        _remove_unread(self.graph)
        return compile_graph(self.graph)

    def _copy(self, node: fx.Node) -> fx.Node:
        if is_mask(node):
            value = self.copies[node.args[0]]  # type: ignore[index]
            return self.graph.call_function(mask_where, (value, self.z))
        if self.heads is None:
            return self._same(node)
        found = self.found
        if node in found.projections:
            return self._projected(node, found.projections[node], 0)
        if node is found.output:
            return self._projected(node, found.columns, 1)
        if node in found.tables:
            place = found.tables[node]
            return self._some(self._same(node), place.dim, place)
        args = resized(self.net, found, node, self._size)
        copy = self._same(node)
        if args is not None:
            copy.args = fx.node.map_arg(args, lambda source: self.copies.get(source, source))
        return copy

    def _same(self, node: fx.Node) -> fx.Node:
        return self.graph.node_copy(node, lambda source: self.copies[source])

    def _size(self, before: int, after: int) -> fx.Node:
        return self.graph.call_function(operator.mul, (self.count, before * after))

    def _some(self, tensor: fx.Node, dim: int, place: Place) -> fx.Node:
        given = (tensor, dim, place.before, place.after, self.heads)
        return self.graph.call_function(some_heads, given)

    def _projected(self, node: fx.Node, place: Place, dim: int) -> fx.Node:
        """A projection with rows or columns of some heads alone."""
        x = self.copies[node.all_input_nodes[0]]
        weight, bias = weights_of(node)
        given = [x, self._some(self.graph.get_attr(weight), dim, place)]
        told = bias_of(node) if node.op == "call_function" else None
        if told is not None or _tensor(self.net.root, bias) is not None:
            held = self.graph.get_attr(bias) if told is None else self.copies[told]
            given.append(held if dim else self._some(held, 0, place))
        return self.graph.call_function(F.linear, tuple(given))


def _remove_unread(graph: fx.Graph) -> None:
    """Erase what nothing reads, whichever inputs are read."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
