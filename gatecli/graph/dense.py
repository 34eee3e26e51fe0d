"""Find densely connected layers on the traced graph.

What is computed from features and then concatenated to these very features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import is_cat
from gatecli.graph.sites import Site, find_blocks, module_path, with_unique_names


def find_sites(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]) -> dict[str, Site]:
    """All sites of the network, blocks and layers, in the order of execution, by name."""
    blocks = find_blocks(root, graph, costs)
    inside = {node for block in blocks for node in block.branch}
    layers = [layer for layer in find_layers(root, graph, costs) if inside.isdisjoint(layer.branch)]
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    return with_unique_names(sorted([*blocks, *layers], key=lambda site: order[site.value]))


def find_layers(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]) -> list[Site]:
    """All layers of dense blocks, in the order of execution.

    A layer is offered only where every concatenation that reads it also carries on all that it was
    made from (so not an Inception module's branches): there is then a network that works without
    it. It must keep the size of the maps.
    """
    found = (
        _layer_at(node, root, costs)
        for node in graph.nodes
        if node.users and all(is_cat(user) for user in node.users)
    )
    return [site for site in found if site is not None]


def _layer_at(value: fx.Node, root: nn.Module, costs: Mapping[str, NodeCost]) -> Site | None:
    entry, branch = _chain(value)
    macs = sum(costs[node.name].macs for node in branch)
    before, after = costs[entry.name].shape, costs[value.name].shape
    if macs == 0 or before is None or after is None or len(after) != 4 or before[2:] != after[2:]:
        return None
    made_from = _parts(entry)
    if not all(made_from <= _parts(user) and _reads_once(user, value) for user in value.users):
        return None
    names = tuple(node.name for node in reversed(branch))
    return Site(
        module_path(value, branch, root),
        "layer",
        1,
        macs,
        entry.name,
        value.name,
        "",
        "",
        names,
        before[1],
        (2, 3),
        macs,
    )


def _reads_once(cat: fx.Node, value: fx.Node) -> bool:
    parts: Any = cat.args[0]
    return list(parts).count(value) == 1


def _chain(value: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The nodes, from the last to the first, that lead to `value` one by one and to nothing else,
    and the value that the first reads.
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
