"""Find where the filters of convolutions can be gated, on the traced graph.

Any convolution whose filters work apart from each other can be. A site's `role` says where it
stands, and is one of ROLES:

    residual   the last convolution of a residual branch
    branch     the last convolution of each way where a residual branch is a sum of several
        (Shake-Shake)
    dense      the last convolution of a layer of a dense block, the block's first layer left out
    concatenation   what is concatenated, and read by nothing else (Inception, GoogLeNet): the same
        as gates behind the concatenation.
               Where a part is no convolution's, as a pooling's, nothing is saved by its closed
               gates

Chen, Li, Bengio, Si, "You look twice: GaterNet for dynamic filter selection in CNNs" (2019),
section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx, nn

from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import is_add, is_cat, is_shake, module_of, summands
from gatecli.graph.sites import Site, module_path
from gatecli.graph.slices import calls, is_plain, keeps_zero, tail_of

ROLES = (
    "concatenation",
    "residual",
    "branch",
    "dense",
)  # from what a network may have beside the others to what tells most


def find_filters(
    root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], sites: Iterable[Site]
) -> list[Site]:
    """All convolutions whose filters can be gated, in the order of execution.

    `sites`: the network's blocks and layers.
    """
    nodes = {node.name: node for node in graph.nodes}
    found = {
        path: _site(root, costs, tail, "")
        for node in graph.nodes
        if (tail := _conv_at(root, node))
        for path in [str(node.target)]
    }
    sites = list(sites)
    features = {site.value for site in sites if site.kind == "layer"}
    for site in sites:
        if site.kind == "layer" and not features & _features(nodes[site.entry]):
            continue  # the first of its block
        tails = _tails(root, nodes[site.value])
        role = "dense" if site.kind == "layer" else "residual" if len(tails) == 1 else "branch"
        if all(tails):
            found |= {str(tail[0].target): _site(root, costs, tail, role) for tail in tails}
    for node in graph.nodes:
        if is_shake(node) and all(
            tails := _tails(root, node)
        ):  # also where the shortcut has too many weights of its own for a block
            found |= {str(tail[0].target): _site(root, costs, tail, "branch") for tail in tails}
    for cat in (
        node
        for node in graph.nodes
        if is_cat(node) and not any(is_cat(user) for user in node.users)
    ):
        parts = _concatenated(cat)
        taken = [
            path
            for part in parts
            if (tail := tail_of(root, part))
            for path in [str(tail[0].target)]
            if found[path].role
        ]
        if all(_own_maps(costs, part) for part in parts) and not taken:
            found |= dict(_part(root, costs, cat, part) for part in parts)
    order = {name: index for index, name in enumerate(nodes)}
    return sorted(found.values(), key=lambda site: order[site.tail[0]])


def _concatenated(cat: fx.Node) -> list[fx.Node]:
    """What a value is concatenated from, in order.

    Concatenations that nothing else reads are taken apart in turn.
    """
    parts = [part for part in cat.args[0] if isinstance(part, fx.Node)]  # type: ignore[union-attr]
    return [
        each
        for part in parts
        for each in (_concatenated(part) if is_cat(part) and len(part.users) == 1 else [part])
    ]


def _own_maps(costs: Mapping[str, NodeCost], part: fx.Node) -> bool:
    """Whether a value is made of maps, is maps itself, and has one reader."""
    shapes = [costs[node.name].shape for node in (part, *part.all_input_nodes)]
    return (
        len(part.users) == 1
        and len(shapes) > 1
        and all(shape is not None and len(shape) == 4 for shape in shapes)
    )


def _part(
    root: nn.Module, costs: Mapping[str, NodeCost], cat: fx.Node, part: fx.Node
) -> tuple[str, Site]:
    """A part of a concatenation as a site, with the path that it is named by."""
    tail = tail_of(root, part)
    if tail:
        return str(tail[0].target), _site(root, costs, tail, "concatenation")
    path = (
        str(part.target)
        if part.op == "call_module"
        else f"{module_path(cat, _concatenated(cat), root)}.{part.name}"
    )
    shape, before = costs[part.name].shape, costs[part.all_input_nodes[0].name].shape
    assert shape is not None and before is not None
    names = (part.name,)
    return path, Site(
        f"{path}.filters",
        "filter",
        shape[1],
        0,
        part.all_input_nodes[0].name,
        part.name,
        "",
        "",
        names,
        before[1],
        (2, 3),
        0,
        names,
        role="concatenation",
    )


def _conv_at(root: nn.Module, node: fx.Node) -> list[fx.Node]:
    """A convolution that starts at the node, with the BatchNorm behind it.

    Empty where it does not, or its filters do not work apart.
    """
    conv = module_of(root, node)
    if (
        not isinstance(conv, nn.Conv2d)
        or not is_plain(conv, nn.Conv2d)
        or conv.groups != 1
        or calls(node.graph, node) > 1
        or not node.users
    ):
        return []
    after = next(iter(node.users))
    normed = (
        len(node.users) == 1
        and is_plain(module_of(root, after), nn.BatchNorm2d)
        and calls(node.graph, after) == 1
    )
    return [node, after] if normed else [node]


def _tails(root: nn.Module, value: fx.Node) -> list[list[fx.Node]]:
    """The last convolutions of all ways that are summed up in `value`, each with what follows it
    channel by channel; an empty one where a way ends otherwise.
    """
    tail = tail_of(root, value)
    if tail:
        return [tail]
    if is_add(value) or is_shake(value):
        return [
            tail
            for part in summands(value)
            for tail in (_tails(root, part) if len(part.users) == 1 else [[]])
        ]
    sources = [source for source in value.all_input_nodes if source.op != "get_attr"]
    if len(sources) == 1 and len(sources[0].users) == 1 and keeps_zero(root, value, sources[0]):
        return _tails(root, sources[0])
    return [[]]


def _features(entry: fx.Node) -> set[str]:
    """What a dense layer reads: the parts of the concatenations before it."""
    seen, todo = set[fx.Node](), [entry]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(node.all_input_nodes if is_cat(node) else [])
    return {node.name for node in seen}


def _site(root: nn.Module, costs: Mapping[str, NodeCost], tail: list[fx.Node], role: str) -> Site:
    conv, value = tail[0], tail[-1]
    names, (entry,) = tuple(node.name for node in tail), conv.all_input_nodes
    module, macs = module_of(root, conv), costs[conv.name].macs
    assert isinstance(module, nn.Conv2d)
    return Site(
        f"{conv.target}.filters",
        "filter",
        module.out_channels,
        macs,
        entry.name,
        value.name,
        "",
        "",
        names,
        module.in_channels,
        (2, 3),
        macs // module.out_channels,
        names,
        role=role,
    )
