"""Which value every way to a node leads through, and what lies between two values."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from gatecli.graph.flow import constants, reads_size

__all__ = ["between", "immediate_dominators"]


def between(entry: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes on the ways from `entry` (left out) to `end`.

    Constants that other ways share are left out too.
    """
    inside: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node is not entry and node not in inside and node.op != "get_attr":
            inside.add(node)
            todo.extend(node.all_input_nodes)
    return inside - _shared_constants(inside, end)


def _shared_constants(inside: set[fx.Node], end: fx.Node) -> set[fx.Node]:
    """Those of the nodes that depend on no image, and are read by others too."""
    if not any(_starts_from_nothing(node) for node in inside):
        return set()
    fixed = constants(end.graph) & inside
    shared: set[fx.Node] = set()
    for node in reversed(end.graph.nodes):
        if node in fixed and any(user not in inside or user in shared for user in node.users):
            shared.add(node)
    return shared - {end}


def _starts_from_nothing(node: fx.Node) -> bool:
    return node.op != "placeholder" and all(each.op == "get_attr" for each in node.all_input_nodes)


def immediate_dominators(graph: fx.Graph) -> dict[fx.Node, fx.Node | None]:
    """For each node, the latest node through which every way from the input to it leads.

    Constants, sizes, gates' decisions and a gater lie on no way.
    """
    dominators: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if _decides(node) or reads_size(node):
            continue
        inputs = [source for source in node.all_input_nodes if source in depth]
        if not inputs and node.op != "placeholder":
            continue
        common: fx.Node | None = inputs[0] if inputs else None
        for other in inputs[1:]:
            common = _common(common, other, dominators, depth)
        dominators[node] = common
        depth[node] = 0 if common is None else depth[common] + 1
    return {node: dominators.get(node) for node in graph.nodes}


def _decides(node: fx.Node) -> bool:
    """Whether the node is a gate, or what says what gates shall decide."""
    return node.op == "call_module" and str(node.target).partition(".")[0] in ("gates", "gater")


def _common(
    a: fx.Node | None,
    b: fx.Node | None,
    dominators: Mapping[fx.Node, fx.Node | None],
    depth: Mapping[fx.Node, int],
) -> fx.Node | None:
    while a is not b and a is not None and b is not None:
        if depth[a] >= depth[b]:
            a = dominators[a]
        else:
            b = dominators[b]
    return a if a is b else None
