"""Let each node read the sizes that it needs near by: of its own inputs, or as constants.

A forward reads `n = images.size(0)` at its beginning, or a block its input's height and width, and
uses them much later. As long as all values hold the same images, that makes no difference. But
where samples leave by an exit, or a block is computed for some of them only, the number of images
is that of the values at hand; and a part that reads sizes elsewhere cannot be taken out. So what
depends on the number of images is worked out anew from an input of the node that needs it, and what
does not becomes a constant where it was read afar.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from gatecli.graph.flow import constants, data_nodes, reads_size
from gatecli.graph.shapes import BATCHES, Values, evaluate
from gatecli.traced.traced import Shape

__all__ = ["read_sizes_at_hand"]

# What every value of a type and place answers alike.
ALIKE = {"dtype", "device", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"}
NUMBERS = (bool, int, float, str, type(None))


def read_sizes_at_hand(root: nn.Module, graph: fx.Graph, image: Shape) -> None:
    """Rewrite the graph; nothing changes, and nothing is worked out, where no size is read afar.

    Args:
        root: The module in which the graph's targets are found.
        graph: A fresh trace.
        image: (channels, height, width).
    """
    lines = _Lines(graph)
    afar = [node for node in graph.nodes if lines.reads_afar(node)]
    if not afar:
        return
    mend = _Nearer(graph, evaluate(root, graph, image), lines)
    for node in afar:
        mend.inputs_of(node)
    _remove_unread(graph)


class _Lines:
    """Which nodes follow one another in line, so that no part of the network parts them.

    Attributes:
        data: The nodes whose values are computed from the images'.
        fixed: The nodes that depend on no image.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.data = data_nodes(graph)
        self.fixed = constants(graph)
        self._first: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if node in self.data:
                self._first[node] = self._first_of(node)

    def _first_of(self, node: fx.Node) -> fx.Node:
        sources = self.inputs(node)
        alone = len(sources) == 1 and sources[0].op != "placeholder"
        if alone and sum(user in self.data for user in sources[0].users) == 1:
            return self._first[sources[0]]
        return node

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The inputs that hold data."""
        return [source for source in node.all_input_nodes if source in self.data]

    def told(self, node: fx.Node) -> list[fx.Node]:
        """What a data node is told that depends on the images' sizes alone."""
        known = self.data | self.fixed
        return [source for source in node.all_input_nodes if source not in known]

    def reads_afar(self, node: fx.Node) -> bool:
        """Whether a data node is told of sizes that are not its own inputs'."""
        if node not in self.data:
            return False
        own = set(self.inputs(node))
        return any(not self.asked(each) <= own or len(each.users) > 1 for each in self.told(node))

    def is_near(self, told: fx.Node, node: fx.Node) -> bool:
        """Whether what a node is told is of values in line with it, and for such ones only."""
        first = self._first[node]
        near = {each for each, start in self._first.items() if start is first}
        if not self.asked(told) <= near | set(self.inputs(first)):
            return False
        return all(self._first.get(user) is first for user in told.users)

    def asked(self, told: fx.Node) -> set[fx.Node]:
        """The values whose sizes something is made of."""
        found: set[fx.Node] = set()
        todo, seen = [told], {told}
        while todo:
            node = todo.pop()
            for source in node.all_input_nodes:
                if reads_size(node):
                    found.add(source)
                elif source not in seen and source not in self.fixed:
                    seen.add(source)
                    todo.append(source)
        return found


class _Nearer:
    """Works out again, for one node after the other, what it is told of sizes."""

    def __init__(self, graph: fx.Graph, values: Values, lines: _Lines) -> None:
        self.graph = graph
        self.values = values
        self.lines = lines
        self.shared: dict[fx.Node, Any] = {}  # what has turned out to be a constant
        self.own: dict[fx.Node, Any] = {}  # what has been worked out for the node at hand
        self.near: fx.Node | None = None  # the input that this is worked out from

    def inputs_of(self, node: fx.Node) -> None:
        """Let a node read sizes near by."""
        self.own = {}
        self.near = self._at_hand(node)
        if self.near is None:
            return
        for told in self.lines.told(node):
            if not self.values.varies(told) and self.lines.is_near(told, node):
                self.own[told] = told
        with self.graph.inserting_before(node):
            args = fx.node.map_arg(node.args, self._again)
            kwargs = fx.node.map_arg(node.kwargs, self._again)
        node.args, node.kwargs = args, kwargs

    def _at_hand(self, node: fx.Node) -> fx.Node | None:
        """The first input that holds images, with a dimension that goes with their number."""
        for source in self.lines.inputs(node):
            if self._images_along(source) is not None:
                return source
        return None

    def _images_along(self, node: fx.Node) -> tuple[int, int] | None:
        """The dimension of a value that holds so and so many entries an image."""
        tensors = self.values.tensor(node)
        if tensors is None:
            return None
        for dim in range(tensors[0].ndim):
            times = _times(tuple(tensor.shape[dim] for tensor in tensors))
            if times is not None:
                return dim, times
        return None

    def _again(self, node: fx.Node) -> Any:
        """What takes a node's place where the node at hand reads it."""
        if node in self.lines.data or node in self.lines.fixed:
            return node
        for known in (self.shared, self.own):
            if node in known:
                return known[node]
        made = self._made(node)
        is_shared = not _nodes_in(made) - self.lines.fixed
        (self.shared if is_shared else self.own)[node] = made
        return made

    def _made(self, node: fx.Node) -> Any:
        pair = self.values.of(node)
        if pair is None:
            return node  # nothing is known of it: it stays as it is
        if self.values.is_constant(node) and isinstance(pair[0], NUMBERS):
            return pair[0]
        if isinstance(pair[0], torch.Size):
            sizes = zip(*pair, strict=True)
            return tuple(self._size(dim, each, node) for dim, each in enumerate(sizes))
        times = _times(pair)
        return self._copied(node) if times is None else self._of_images(times)

    def _size(self, dim: int, sizes: tuple[int, ...], node: fx.Node) -> Any:
        """One of the sizes that a node has asked for."""
        if len(set(sizes)) == 1:
            return sizes[0]
        times = _times(sizes)
        if times is None:
            return self.graph.call_function(operator.getitem, (node, dim))
        return self._of_images(times)

    def _of_images(self, times: int) -> fx.Node:
        """So many times the number of images, by the input at hand."""
        assert self.near is not None
        along = self._images_along(self.near)
        assert along is not None
        dim, entries = along
        number = self.graph.call_method("size", (self.near, dim))
        if entries == times:
            return number
        if entries != 1:
            number = self.graph.call_function(operator.floordiv, (number, entries))
        return number if times == 1 else self.graph.call_function(operator.mul, (number, times))

    def _copied(self, node: fx.Node) -> fx.Node:
        """The node once more, on what its inputs have become."""
        args: Any = fx.node.map_arg(node.args, self._again)
        kwargs: Any = fx.node.map_arg(node.kwargs, self._again)
        if reads_size(node) and self._is_alike(node):
            args = (self.near, *args[1:])
        copy = self.graph.create_node(node.op, node.target, args, kwargs)
        if not set(copy.all_input_nodes) - self.lines.fixed:
            self.lines.fixed.add(copy)
        return copy

    def _is_alike(self, node: fx.Node) -> bool:
        """Whether the input at hand answers a question for a type, or a place, in the same way."""
        attribute = node.args[1] if node.target is getattr else node.target
        if attribute not in ALIKE:
            return False  # sizes, or something of the same shape
        assert self.near is not None
        asked, near = self.values.tensor(node.all_input_nodes[0]), self.values.tensor(self.near)
        return asked is not None and near is not None and asked[0].dtype == near[0].dtype


def _times(pair: tuple[Any, ...]) -> int | None:
    """How many times the number of images two whole numbers are; None where they are not."""
    if not all(type(value) is int and value for value in pair):
        return None
    found = {divmod(value, batch) for value, batch in zip(pair, BATCHES, strict=True)}
    if len(found) > 1:
        return None
    times, left = found.pop()
    return None if left else times


def _nodes_in(value: Any) -> set[fx.Node]:
    found: set[fx.Node] = set()
    fx.node.map_arg(value, found.add)
    return found


def _remove_unread(graph: fx.Graph) -> None:
    """Let go of sizes that nothing reads any more."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
