"""Find densely connected layers on the traced graph.

What is computed from features and then concatenated to these very features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from gatecli.graph.dominators import between, immediate_dominators
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
    taken = {node for site in net.sites.values() for node in site.branch}
    dominators = immediate_dominators(net.graph)
    found = []
    for node in net.graph.nodes:
        if node.users and all(is_cat(user) for user in node.users):
            entry, inside = _before(node, dominators)
            branch = [each for each in net.graph.nodes if each in inside]
            if _is_layer(net, node, entry, branch):
                found.append(_site(net, node, entry, branch, kind))
    return [site for site in found if taken.isdisjoint(site.branch)]


def _is_layer(net: Traced, value: fx.Node, entry: fx.Node, branch: Sequence[fx.Node]) -> bool:
    before, after = net.costs[entry.name].shape, net.costs[value.name].shape
    if before is None or after is None or len(after) != 4 or before[2:] != after[2:]:
        return False
    if not net.macs([node.name for node in branch]) or not net.holds_images(value):
        return False
    if any(_others_read(node, {*branch, *value.users}) for node in branch):
        return False  # of a layer's own values only the last may be read
    made_from = _parts(entry)
    return all(made_from <= _parts(user) and _reads_once(user, value) for user in value.users)


def _site(
    net: Traced, value: fx.Node, entry: fx.Node, branch: Sequence[fx.Node], kind: str
) -> Site:
    names = tuple(node.name for node in branch)
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


def _before(
    value: fx.Node, dominators: Mapping[fx.Node, fx.Node | None]
) -> tuple[fx.Node, set[fx.Node]]:
    """The value that a layer is made of, and the layer's nodes, which lead to `value` alone.

    That is the latest value before it, through which all of it goes, that others read too.
    """
    entry: fx.Node = value
    while True:
        before = dominators[entry]
        if before is None:
            return entry, between(entry, value) if entry is not value else set()
        entry = before
        inside = between(entry, value)
        if _others_read(entry, inside) or is_cat(entry) or entry.op == "placeholder":
            return entry, inside


def _others_read(entry: fx.Node, inside: set[fx.Node]) -> bool:
    return any(user not in inside for user in entry.users)


def _parts(node: fx.Node) -> set[fx.Node]:
    """What a value is concatenated from, concatenations of concatenations included.

    Itself where it is none.
    """
    if not is_cat(node):
        return {node}
    parts: Any = node.args[0]
    return set().union(*(_parts(part) for part in parts))
