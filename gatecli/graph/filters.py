"""Find where the filters of convolutions can be gated, on the traced graph.

Any convolution whose filters work apart from each other can be. A site's `role` says where it stands, and is one of ROLES:

    residual   the last convolution of a residual branch
    branch     the last convolution of each way where a residual branch is a sum of several (Shake-Shake)
    dense      the last convolution of a layer of a dense block, the block's first layer left out

Chen, Li, Bengio, Si, "You look twice: GaterNet for dynamic filter selection in CNNs" (2019), section 4.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx, nn

from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import is_add, is_cat, module_of
from gatecli.graph.sites import Site
from gatecli.graph.slices import calls, is_plain, keeps_zero, tail_of

ROLES = ("residual", "branch", "dense")


def find_filters(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], sites: Iterable[Site]) -> list[Site]:
    """All convolutions whose filters can be gated, in the order of execution; `sites`: the network's blocks and layers."""
    nodes = {node.name: node for node in graph.nodes}
    found = {path: _site(root, costs, tail, "") for node in graph.nodes if (tail := _conv_at(root, node)) for path in [str(node.target)]}
    sites = list(sites)
    features = {site.value for site in sites if site.kind == "layer"}
    for site in sites:
        if site.kind == "layer" and not features & _features(nodes[site.entry]):
            continue  # the first of its block
        tails = _tails(root, nodes[site.value])
        role = "dense" if site.kind == "layer" else "residual" if len(tails) == 1 else "branch"
        if all(tails):
            found |= {str(tail[0].target): _site(root, costs, tail, role) for tail in tails}
    return list(found.values())


def _conv_at(root: nn.Module, node: fx.Node) -> list[fx.Node]:
    """A convolution that starts at the node, with the BatchNorm behind it; empty where it does not, or its filters do not work apart."""
    conv = module_of(root, node)
    if not isinstance(conv, nn.Conv2d) or not is_plain(conv, nn.Conv2d) or conv.groups != 1 or calls(node.graph, node) > 1 or not node.users:
        return []
    after = next(iter(node.users))
    normed = len(node.users) == 1 and is_plain(module_of(root, after), nn.BatchNorm2d) and calls(node.graph, after) == 1
    return [node, after] if normed else [node]


def _tails(root: nn.Module, value: fx.Node) -> list[list[fx.Node]]:
    """The last convolutions of all ways that are summed up in `value`, each with what follows it channel by channel; an empty one where a way ends otherwise."""
    tail = tail_of(root, value)
    if tail:
        return [tail]
    if is_add(value):
        return [tail for part in value.args if isinstance(part, fx.Node) for tail in (_tails(root, part) if len(part.users) == 1 else [[]])]
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
        f"{conv.target}.filters", "filter", module.out_channels, macs, entry.name, value.name, "", "", names, module.in_channels, (2, 3), macs // module.out_channels, names, role=role,
    )  # fmt: skip

