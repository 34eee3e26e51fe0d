"""Find densely connected layers on the traced graph.

What is computed from features and then concatenated to these very features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from gatecli.graph.ops import is_cat
from gatecli.kinds.naming import module_path
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["find_layers"]


def find_layers(net: Traced, kind: str) -> list[Site]:
    """All layers of dense blocks outside of what can be gated already, in the order of execution.

    A layer is offered only where every concatenation that reads it also carries on all that it was
    made from (so not an Inception module's branches): there is then a network that works without
    it. It must keep the size of the maps.
    """
    inside = {node for site in net.sites.values() for node in site.branch}
    found = []
    for node in net.graph.nodes:
        if node.users and all(is_cat(user) for user in node.users):
            entry, branch = _chain(node)
            if _is_layer(net, node, entry, branch):
                found.append(_site(net, node, entry, branch, kind))
    return [site for site in found if inside.isdisjoint(site.branch)]


def _is_layer(net: Traced, value: fx.Node, entry: fx.Node, branch: Sequence[fx.Node]) -> bool:
    before, after = net.costs[entry.name].shape, net.costs[value.name].shape
    if before is None or after is None or len(after) != 4 or before[2:] != after[2:]:
        return False
    if not net.macs([node.name for node in branch]) or not net.holds_images(value):
        return False
    made_from = _parts(entry)
    return all(made_from <= _parts(user) and _reads_once(user, value) for user in value.users)


def _site(
    net: Traced, value: fx.Node, entry: fx.Node, branch: Sequence[fx.Node], kind: str
) -> Site:
    names = tuple(node.name for node in reversed(branch))
    return Site(
        name=module_path(value, branch, net.root),
        kind=kind,
        units=1,
        macs=net.macs(names),
        entry=entry.name,
        value=value.name,
        branch=names,
        channels=net.channels(entry),
        positions=(2, 3),
    )


def _reads_once(cat: fx.Node, value: fx.Node) -> bool:
    parts: Any = cat.args[0]
    return list(parts).count(value) == 1


def _chain(value: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The value that a chain of nodes reads, and the chain, which leads to `value` alone.

    The chain's nodes, one by one, are listed from the last to the first.
    """
    branch = [value]
    while True:
        sources = [source for source in branch[-1].all_input_nodes if source.op != "get_attr"]
        if len(sources) != 1:  # reads several values, or none: no part of the chain
            return branch.pop(), branch
        (source,) = sources
        if len(source.users) > 1 or is_cat(source) or source.op == "placeholder":
            return source, branch
        branch.append(source)


def _parts(node: fx.Node) -> set[fx.Node]:
    """What a value is concatenated from, concatenations of concatenations included.

    Itself where it is none.
    """
    if not is_cat(node):
        return {node}
    parts: Any = node.args[0]
    return set().union(*(_parts(part) for part in parts))
