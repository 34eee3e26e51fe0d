"""Additions to some of the channels, as what they are: additions.

Some networks add to a part of the channels and hand the others on: `cat([x[:, :k] + a, x[:, k:]])`
(ReXNet), or with new ones behind, `cat([x[:, :k] + a, x[:, k:], b])` (dual path networks). That is
`x + a` and `x + cat([a, b])`, with zeros where a channel has nothing to add: so whatever finds,
skips and removes the branch of an addition finds these.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gatecli.graph.ops import is_add, is_cat, widen
from gatecli.graph.runs import Runs
from gatecli.graph.trace import remove_dead
from gatecli.traced.traced import NodeCost

__all__ = ["unfold_partial_additions"]


def unfold_partial_additions(graph: fx.Graph, costs: Mapping[str, NodeCost]) -> bool:
    """Rewrite these concatenations as additions.

    Args:
        graph: A fresh trace.
        costs: The cost of every node, by name.

    Returns:
        Whether there were any.
    """
    found = [each for each in map(_partial, graph.nodes) if each is not None]
    found = [each for each in found if _fits(each, costs)]
    totals: dict[fx.Node, fx.Node] = {}  # what has taken a concatenation's place
    for each in found:
        totals[each.cat] = _unfold(graph, costs, each, totals)
    remove_dead(graph)
    return bool(found)


@dataclass(frozen=True, kw_only=True)
class _Partial:
    """`cat([x[:, :k] + a, x[:, k:], *more])`."""

    cat: fx.Node
    x: fx.Node
    a: fx.Node
    k: int
    more: tuple[fx.Node, ...]


def _partial(cat: fx.Node) -> _Partial | None:
    if not is_cat(cat):
        return None
    parts: Any = cat.args[0]
    if len(parts) < 2 or not is_add(parts[0]) or len(parts[0].users) > 1:
        return None
    x, k, end = _channels_of(parts[1])
    if x is None or end is not None or not k:
        return None
    for mine, other in (parts[0].args, parts[0].args[::-1]):
        if _channels_of(mine) in ((x, 0, k), (x, None, k)):
            return _Partial(cat=cat, x=x, a=other, k=k, more=tuple(parts[2:]))
    return None


def _channels_of(node: Any) -> tuple[fx.Node | None, int | None, int | None]:
    """The value of which a node takes some channels, the first and one past the last of them."""
    if not isinstance(node, fx.Node) or node.target is not operator.getitem:
        return None, None, None
    source, index = node.args
    if not isinstance(index, tuple) or len(index) != 2 or index[0] != slice(None):
        return None, None, None
    part = index[1]
    if not isinstance(part, slice) or part.step is not None or not isinstance(source, fx.Node):
        return None, None, None
    return source, part.start, part.stop


def _fits(each: _Partial, costs: Mapping[str, NodeCost]) -> bool:
    """Whether all are maps, and what is added has the channels that it is added to."""
    shapes = [costs[node.name].shape for node in (each.x, each.a, *each.more)]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return False
    return _width(costs, each.a) == each.k < _width(costs, each.x)


def _width(costs: Mapping[str, NodeCost], node: fx.Node) -> int:
    shape = costs[node.name].shape
    assert shape is not None
    return shape[1]


def _unfold(
    graph: fx.Graph,
    costs: Mapping[str, NodeCost],
    each: _Partial,
    totals: Mapping[fx.Node, fx.Node],
) -> fx.Node:
    own = _width(costs, each.x)
    new = [_width(costs, part) for part in each.more]
    whole = own + sum(new)
    runs: Runs = ((0, each.k), (own, whole)) if new else ((0, each.k),)
    carried, added = totals.get(each.x, each.x), totals.get(each.a, each.a)
    more = [totals.get(part, part) for part in each.more]
    with graph.inserting_before(each.cat):
        if more:
            added = graph.call_function(torch.cat, ([added, *more], 1))
            carried = graph.call_function(widen, (carried, ((0, own),), whole))
        added = graph.call_function(widen, (added, runs, whole))
        total = graph.call_function(operator.add, (carried, added))
    each.cat.replace_all_uses_with(total)
    return total
