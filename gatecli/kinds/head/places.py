"""Where the heads lie in a value: followed from the product of each head back to projections.

A value's numbers, row by row, are (outer, heads, inner): so many numbers' worth of dimensions
before the heads, and after them. A change of shape leaves these three as they are, a transposition
moves them, and what works element by element, or multiplies within each head, hands them on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from gatecli.graph.flow import constants, reads_size
from gatecli.graph.ops import module_of
from gatecli.traced.traced import Shape, Traced

__all__ = ["NotPartedError", "Place", "Spot", "name_of", "place_of", "sources", "turn_of"]

RESHAPES = {
    "reshape",
    "view",
    "flatten",
    "unflatten",
    "contiguous",
    "unsqueeze",
    "squeeze",
    "clone",
}
TURNS = {"transpose", "permute", "swapaxes"}
TUPLES = {"unbind", "chunk", "split"}
APART = {
    "add", "iadd", "sub", "mul", "imul", "truediv", "div", "softmax", "dropout", "to", "float",
    "type_as", "clamp", "exp", "masked_fill", "relu", "sigmoid", "normalize", "pow", "neg",
}  # fmt: skip
LAYERS = (nn.Identity, nn.Dropout, nn.Softmax, nn.LayerNorm, nn.RMSNorm)
JOINS = {"cat", "concat", "stack"}
PRODUCTS = {"matmul", "scaled_dot_product_attention"}


class NotPartedError(Exception):
    """Why the heads of an attention cannot be told apart, in words for users."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where heads lie in a tensor: dimension `dim` is `before` x heads x `after` numbers."""

    dim: int
    before: int
    after: int


@dataclass(frozen=True)
class Spot:
    """A value and how its numbers lie: `outer` x heads x `inner`."""

    node: fx.Node
    outer: int
    inner: int


def name_of(node: fx.Node) -> str:
    """What a node does, as a method or function of torch is called."""
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def place_of(shape: Shape, outer: int, inner: int, heads: int) -> Place | None:
    """The one dimension in which the heads lie; None where they lie in several."""
    left = 1
    for dim, size in enumerate(shape):
        right = math.prod(shape[dim + 1 :])
        before, after = outer // left, inner // right
        exact = before * left == outer and after * right == inner
        if exact and before * heads * after == size:
            return Place(dim=dim, before=before, after=after)
        left *= size
    return None


def sources(net: Traced, spot: Spot, heads: int) -> list[Spot]:
    """The values that a value is made of, as far as heads lie in them.

    Raises:
        NotPartedError: The node does what mixes heads, or what is not known.
    """
    node = spot.node
    step = _step_of(net, node)
    if step is None:
        raise NotPartedError(f"its heads go through `{node.name}`, which may mix them")
    return step(_Step(net=net, spot=spot, heads=heads))


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One step back from a value; see `sources`."""

    net: Traced
    spot: Spot
    heads: int

    @property
    def node(self) -> fx.Node:
        return self.spot.node

    @property
    def first(self) -> fx.Node:
        first = self.node.args[0]
        assert isinstance(first, fx.Node)
        return first

    def shape(self, node: fx.Node) -> Shape:
        return self.net.shape(node)

    def axis(self) -> int:
        """The dimension that is the heads and nothing else."""
        place = place_of(self.shape(self.node), self.spot.outer, self.spot.inner, self.heads)
        if place is None or place.before * place.after != 1:
            raise NotPartedError(f"its heads are no dimension of their own in `{self.node.name}`")
        return place.dim

    def at(self, node: fx.Node, dim: int) -> Spot:
        """The value `node`, whose dimension `dim` is the heads."""
        shape = self.shape(node)
        return Spot(node, math.prod(shape[:dim]), math.prod(shape[dim + 1 :]))


def _step_of(net: Traced, node: fx.Node) -> Callable[[_Step], list[Spot]] | None:
    if node.op == "call_module":
        return _apart if isinstance(module_of(net.root, node), LAYERS) else None
    name = name_of(node)
    families: list[tuple[set[str], Callable[[_Step], list[Spot]]]] = [
        (RESHAPES, _same),
        (TURNS, _turned),
        ({"getitem"}, _item),
        (JOINS, _joined),
        ({*APART, "expand"}, _apart),
        (PRODUCTS, _multiplied),
    ]
    return next((step for names, step in families if name in names), None)


def _same(step: _Step) -> list[Spot]:
    return [Spot(step.first, step.spot.outer, step.spot.inner)]


def _turned(step: _Step) -> list[Spot]:
    order = turn_of(step.node, len(step.shape(step.node)))
    return [step.at(step.first, order[step.axis()])]


def turn_of(node: fx.Node, count: int) -> list[int]:
    """The order of dimensions that a transposition of `count` gives: `out[i] = in[order[i]]`."""
    given: Any = node.args[1:]
    if len(given) == 1 and isinstance(given[0], (tuple, list)):
        given = given[0]
    numbers = [number % count for number in given]
    if name_of(node) == "permute":
        return numbers
    order = list(range(count))
    order[numbers[0]], order[numbers[1]] = numbers[1], numbers[0]
    return order


def _item(step: _Step) -> list[Spot]:
    source, index = step.first, step.node.args[1]
    if isinstance(index, int):
        if name_of(source) in TUPLES and source.op != "get_attr":
            return [_part(step, source)]
        return [_without(step, source, 0)]
    is_table = isinstance(index, fx.Node) and source in constants(source.graph)
    if is_table and isinstance(index, fx.Node):  # looked up by numbers
        looked_up, rows = math.prod(step.shape(index)), step.shape(source)[0]
        if step.spot.outer % looked_up == 0:
            return [Spot(source, step.spot.outer // looked_up * rows, step.spot.inner)]
    if isinstance(index, tuple):
        return [_sliced(step, source, index)]
    raise NotPartedError(f"its heads go through `{step.node.name}`, which picks some of them")


def _sliced(step: _Step, source: fx.Node, index: Sequence[Any]) -> Spot:
    """`x[:, :, 0]`, `x[..., ::2]`: numbers and slices, all of the heads."""
    known = all(each is ... or isinstance(each, (int, slice)) for each in index)
    given = list(index)
    if ... in given:
        whole = [slice(None)] * (len(step.shape(source)) - len(given) + 1)
        place = given.index(...)
        given[place : place + 1] = whole
    given += [slice(None)] * (len(step.shape(source)) - len(given))
    kept = [dim for dim, each in enumerate(given) if not isinstance(each, int)]
    if not known or given[kept[step.axis()]] != slice(None):
        raise NotPartedError(f"its heads go through `{step.node.name}`, which picks some of them")
    return step.at(source, kept[step.axis()])


def _joined(step: _Step) -> list[Spot]:
    """Values that are put one behind another, or side by side, in a dimension without heads."""
    parts: Any = step.node.args[0]
    positional = step.node.args[1] if len(step.node.args) > 1 else 0
    dim: Any = step.node.kwargs.get("dim", positional)
    dim %= len(step.shape(step.node))
    axis = step.axis()
    if dim == axis:
        raise NotPartedError(f"its heads are put together in `{step.node.name}`")
    if name_of(step.node) == "stack" and dim < axis:
        axis -= 1
    return [step.at(part, axis) for part in parts]


def _without(step: _Step, source: fx.Node, dim: int) -> Spot:
    """The source of which one entry of dimension `dim` has been taken."""
    axis = step.axis()
    return step.at(source, axis + 1 if dim <= axis else axis)


def _part(step: _Step, parts: fx.Node) -> Spot:
    """The source of one of several parts."""
    source: Any = parts.args[0]
    given: Any = parts.args[1] if len(parts.args) > 1 else parts.kwargs.get("dim", 0)
    if name_of(parts) == "unbind":
        return _without(step, source, int(given) % len(step.shape(source)))
    shape, part = step.shape(source), step.shape(step.node)
    dims = [dim for dim, size in enumerate(part) if size != shape[dim]]
    here = place_of(part, step.spot.outer, step.spot.inner, step.heads)
    equal = len(dims) == 1 and shape[dims[0]] % part[dims[0]] == 0
    if here is None or not equal:
        raise NotPartedError(f"`{parts.name}` cuts them into unequal parts")
    times = shape[dims[0]] // part[dims[0]]
    if dims[0] < here.dim or (dims[0] == here.dim and here.before == 1):
        return Spot(source, step.spot.outer * times, step.spot.inner)
    if dims[0] == here.dim:
        raise NotPartedError(f"`{parts.name}` cuts through them")
    return Spot(source, step.spot.outer, step.spot.inner * times)


def _apart(step: _Step) -> list[Spot]:
    """What each input of an elementwise operation has where the result has heads."""
    shape = step.shape(step.node)
    place = place_of(shape, step.spot.outer, step.spot.inner, step.heads)
    if place is None or _works_along(step, place):
        raise NotPartedError(f"its heads go through `{step.node.name}`, which mixes them")
    found = []
    for source in step.node.all_input_nodes:
        cost = step.net.costs.get(source.name)
        if cost is None or cost.shape is None or reads_size(source):
            continue
        dim = place.dim - len(shape) + len(cost.shape)
        if dim < 0 or cost.shape[dim] == 1:
            continue  # the same for every head
        outer = math.prod(cost.shape[:dim]) * place.before
        found.append(Spot(source, outer, math.prod(cost.shape[dim + 1 :]) * place.after))
    return found


def _works_along(step: _Step, place: Place) -> bool:
    """Whether a softmax or a normalisation works along the dimension of the heads."""
    count = len(step.shape(step.node))
    module: Any = module_of(step.net.root, step.node)
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return place.dim >= count - len(module.normalized_shape)
    if isinstance(module, nn.Softmax):
        return module.dim is None or module.dim % count == place.dim
    if name_of(step.node) not in ("softmax", "normalize"):
        return False
    positional = step.node.args[1] if len(step.node.args) > 1 else None
    dim: Any = step.node.kwargs.get("dim", positional)
    return not isinstance(dim, int) or dim % count == place.dim


def _multiplied(step: _Step) -> list[Spot]:
    """The factors of a product within each head, and a bias that is added between."""
    axis = step.axis()
    count = len(step.shape(step.node))
    if axis >= count - 2:
        raise NotPartedError(f"`{step.node.name}` sums over its heads")
    found = []
    for number, source in enumerate(step.node.all_input_nodes):
        cost = step.net.costs.get(source.name)
        if cost is None or cost.shape is None:
            continue  # the share of dropout
        shape = cost.shape
        dim = axis - count + len(shape)
        if dim >= 0 and shape[dim] == step.heads:
            found.append(step.at(source, dim))
        elif number < 3 and not _is_bias(step.node, source):
            raise NotPartedError(
                f"its {step.heads} heads share keys and values (`{source.name}`), as in"
                " grouped-query attention, which is not supported"
            )
    return found


def _is_bias(product: fx.Node, source: fx.Node) -> bool:
    """Whether a value is what attention adds to its weights: a mask, a bias."""
    third = product.args[3] if len(product.args) > 3 else None
    return source in (product.kwargs.get("attn_mask"), third)
