"""Find where a classifier can be left early, on the traced graph: at the end of each stage but the last.

An exit stands at a value through which everything that comes later goes. Stages are told apart by the size of the maps; one that holds
nothing that can be skipped (a stem) is none.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import fx, nn

from gatecli.errors import SettingError
from gatecli.graph.macs import NodeCost
from gatecli.graph.sites import Site, immediate_dominators
from gatecli.graph.slices import is_channelwise


def find_exits(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], sites: Iterable[Site]) -> list[Site]:
    """The ends of all stages but the last, as sites `exit1`, `exit2`, ..., in the order of execution."""
    places = _after(root, graph, costs, list(sites))
    last_of: dict[tuple[int, ...], tuple[fx.Node, Site]] = {}
    for node, site in places:
        last_of[_size(costs, node, site)] = (node, site)
    ends = list(last_of.values())[:-1]
    return [_exit(number, graph, costs, node, site) for number, (node, site) in enumerate(ends, 1)]


def exits_after(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], sites: Mapping[str, Site], names: Sequence[str]) -> list[Site]:
    """Exits after the blocks or layers of these names. Raises SettingError where one is no such site, or where one cannot leave the network."""
    places = {site.name: (node, site) for node, site in _after(root, graph, costs, list(sites.values()))}
    unknown = [name for name in names if name not in places]
    if unknown:
        raise SettingError(f"expected setting `after` to name sites that all that comes later goes through, but got `{unknown[0]}`; there are: {', '.join(places) or 'none'}")
    chosen = [place for name, place in places.items() if name in names]
    return [_exit(number, graph, costs, node, site) for number, (node, site) in enumerate(chosen, 1)]


def _after(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], sites: Sequence[Site]) -> list[tuple[fx.Node, Site]]:
    """For each block or layer that has one, the first value after it through which everything goes, activations included; in order."""
    through, order = _through(graph), {node: index for index, node in enumerate(graph.nodes)}
    nodes = {node.name: node for node in graph.nodes}
    places = []
    for site in sites:
        start = nodes.get(site.add or site.value)
        following = [node for node in through if start is not None and order[node] >= order[start]]
        if not following:
            continue
        node = following[0]
        for later in following[1:]:  # a ReLU after the addition still belongs to the block
            if later.all_input_nodes != [node] or not is_channelwise(root, later) or costs[later.name].shape != costs[node.name].shape:
                break
            node = later
        if _carries(costs, node, site):
            places.append((node, site))
    return places


def _through(graph: fx.Graph) -> list[fx.Node]:
    """The values that every way from the image to the output goes through, in order."""
    dominators = immediate_dominators(graph)
    chain: list[fx.Node] = []
    node = dominators[next(node for node in graph.nodes if node.op == "output")]
    while node is not None:
        chain.append(node)
        node = dominators[node]
    return chain[::-1]


def _carries(costs: Mapping[str, NodeCost], node: fx.Node, site: Site) -> bool:
    """Whether the value has the block's own layout."""
    shape = costs[node.name].shape
    return shape is not None and len(shape) == len(site.positions) + 2


def _size(costs: Mapping[str, NodeCost], node: fx.Node, site: Site) -> tuple[int, ...]:
    shape = costs[node.name].shape
    assert shape is not None
    return tuple(shape[position] for position in site.positions)


def _exit(number: int, graph: fx.Graph, costs: Mapping[str, NodeCost], node: fx.Node, site: Site) -> Site:
    shape = costs[node.name].shape
    assert shape is not None
    (axis,) = set(range(1, len(shape))) - set(site.positions)
    saved = macs_behind(graph, costs, node)
    return Site(f"exit{number}", "exit", 1, saved, node.name, "", "", "", (), shape[axis], site.positions, saved)


def macs_behind(graph: fx.Graph, costs: Mapping[str, NodeCost], node: fx.Node) -> int:
    """MACs of one image that leaving at `node` saves."""
    return sum(costs[later.name].macs for later in behind(graph, node) if later.name in costs)


def behind(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """What is needed for nobody who leaves at `node`: neither to compute it, nor by an exit that stands there or before it."""
    needed, todo = {node}, [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                todo.append(source)
    return [later for later in graph.nodes if later not in needed and later.op not in ("placeholder", "get_attr") and not (_is_exit(later) and later.all_input_nodes[0] in needed)]


def _is_exit(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith("exits.")
