"""Take what is added to a value out of a graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import fx, nn

from gatecli.graph.ops import is_add, is_relu, is_shake, never_negative, summands
from gatecli.graph.patterns import keeps_zero
from gatecli.graph.trace import remove_dead

__all__ = ["additions_of_zero", "remove_zero", "replace_addition"]


def additions_of_zero(
    root: nn.Module, value: fx.Node, replaced: Mapping[fx.Node, fx.Node] | None = None
) -> dict[fx.Node, fx.Node] | None:
    """If `value` were zero for good.

    The additions that would add zeros, each with what it adds them to; None where something else
    reads the value.

    replaced: additions taken to be gone already, each with the operand that is left.
    """
    found, todo = dict[fx.Node, fx.Node](), [value]
    while todo:
        node = todo.pop()
        for user in node.users:
            if replaced and replaced.get(user) is node:
                todo.append(user)
            elif is_add(user) or is_shake(user):
                found[user] = next(arg for arg in summands(user) if arg is not node)
            elif keeps_zero(root, user, node):
                todo.append(user)
            else:
                return None
    return found


def remove_zero(root: nn.Module, graph: fx.Graph, value: fx.Node) -> dict[str, str]:
    """Take `value`, which is zero for good, out of all additions, see `additions_of_zero`.

    Returns:
        Nodes that are gone -> what has taken their place.
    """
    names: dict[str, str] = {}
    for add, other in (additions_of_zero(root, value) or {}).items():
        names |= _replaced(root, add, other)
    remove_dead(graph)
    return names


def replace_addition(
    root: nn.Module, graph: fx.Graph, add: fx.Node, other: fx.Node
) -> dict[str, str]:
    """Let what is added to take an addition's place, and that of a ReLU that it makes needless.

    Returns:
        Nodes that are gone -> what has taken their place.
    """
    names = _replaced(root, add, other)
    remove_dead(graph)
    return names


def _replaced(root: nn.Module, add: fx.Node, other: fx.Node) -> dict[str, str]:
    """Let what `add` added to take its place, half of it where it took the mean.

    It also takes the place of a ReLU behind that no longer does anything.
    """
    gone = [add]
    if is_shake(add):
        with add.graph.inserting_before(add):
            other = add.graph.call_function(operator.truediv, (other, 2))
    elif never_negative(root, other):
        gone += [user for user in add.users if is_relu(root, user)]
    for node in gone:
        node.replace_all_uses_with(other)
    return {node.name: other.name for node in gone}
