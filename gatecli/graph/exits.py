"""Find where a classifier can be left early, on the traced graph.

At the end of each stage but the last.

An exit stands at a value through which everything that comes later goes. Stages are told apart by
the size of the maps; one that holds nothing that can be skipped (a stem) is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from gatecli.errors import SettingError
from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import connect
from gatecli.graph.sites import Site, immediate_dominators
from gatecli.graph.slices import is_channelwise


@dataclass(frozen=True)
class Place:
    """A value at which one could leave, the name of what ends there, and the dimensions of the
    value's positions.
    """

    name: str
    node: fx.Node
    positions: tuple[int, ...]


def find_exits(
    root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], sites: Iterable[Site]
) -> list[Site]:
    """The ends of all stages but the last, as sites `exit1`, `exit2`, ..., in the order of
    execution.

    Stages are made of blocks and layers; in a network without these, of convolutions that keep the
    size of the maps.
    """
    last_of: dict[tuple[int, ...], Place] = {}
    for place in _after_sites(root, graph, costs, list(sites)) or _stage_ends(graph, costs):
        last_of[_size(costs, place)] = place
    return [
        _exit(number, graph, costs, place)
        for number, place in enumerate(list(last_of.values())[:-1], 1)
    ]


def exits_after(
    root: nn.Module,
    graph: fx.Graph,
    costs: Mapping[str, NodeCost],
    sites: Mapping[str, Site],
    names: Sequence[str],
) -> list[Site]:
    """Exits after the blocks or layers, or after the modules, of these names.

    Raises SettingError where one is no such thing, or where one cannot leave the network.
    """
    blocks = _after_sites(root, graph, costs, list(sites.values()))
    modules = [
        Place(str(place.node.target), place.node, place.positions)
        for place in _maps(graph, costs)
        if place.node.op == "call_module"
    ]
    places = {
        place.name: place for place in [*modules, *blocks]
    }  # a block's name may be a module's
    unknown = [name for name in names if name not in places]
    if unknown:
        there = ", ".join(place.name for place in blocks or modules) or "none"
        raise SettingError(
            "expected setting `after` to name sites that all that comes later goes through, but"
            f" got `{unknown[0]}`; there are: {there}"
        )
    order = {node: index for index, node in enumerate(graph.nodes)}
    for name in names:
        if not any(
            costs[node.name].macs for node in order if order[node] <= order[places[name].node]
        ):
            raise SettingError(
                "expected setting `after` to name places behind some layer with weights, but"
                f" nothing has been computed at `{name}`"
            )
    chosen = sorted(
        (places[name] for name in dict.fromkeys(names)), key=lambda place: order[place.node]
    )
    return [_exit(number, graph, costs, place) for number, place in enumerate(chosen, 1)]


def _after_sites(
    root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], sites: Sequence[Site]
) -> list[Place]:
    """For each block or layer that has one, the first value after it through which everything goes,
    activations included; in order.
    """
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
            if (
                later.all_input_nodes != [node]
                or not is_channelwise(root, later)
                or costs[later.name].shape != costs[node.name].shape
            ):
                break
            node = later
        shape = costs[node.name].shape
        if (
            shape is not None and len(shape) == len(site.positions) + 2
        ):  # it has the block's own layout
            places.append(Place(site.name, node, site.positions))
    return places


def _maps(graph: fx.Graph, costs: Mapping[str, NodeCost]) -> list[Place]:
    """All maps (N, C, H, W) that everything goes through, but for the image."""
    return [
        Place(node.name, node, (2, 3))
        for node in _through(graph)
        if node.op != "placeholder"
        and (shape := costs[node.name].shape) is not None
        and len(shape) == 4
    ]


def _stage_ends(graph: fx.Graph, costs: Mapping[str, NodeCost]) -> list[Place]:
    """The last maps of each size that convolutions keep.

    A first convolution that changes the size, a stem, makes no stage.
    """
    keeping = {
        shape[2:]
        for node in graph.nodes
        if costs[node.name].macs
        and (shape := costs[node.name].shape) is not None
        and len(shape) == 4
        and _reads_size(costs, node, shape)
    }
    return list(
        {
            _size(costs, place): place
            for place in _maps(graph, costs)
            if _size(costs, place) in keeping
        }.values()
    )


def _reads_size(costs: Mapping[str, NodeCost], node: fx.Node, shape: Sequence[int]) -> bool:
    sources = (costs[source.name].shape for source in node.all_input_nodes)
    return any(
        source is not None and len(source) == 4 and source[2:] == shape[2:] for source in sources
    )


def _through(graph: fx.Graph) -> list[fx.Node]:
    """The values that every way from the image to the output goes through, in order.

    Several streams of maps are none.
    """
    dominators = immediate_dominators(graph)
    chain: list[fx.Node] = []
    node = dominators[next(node for node in graph.nodes if node.op == "output")]
    while node is not None:
        if node.target is not connect and (
            len(node.all_input_nodes) != 1 or node.all_input_nodes[0].target is not connect
        ):
            chain.append(node)
        node = dominators[node]
    return chain[::-1]


def _size(costs: Mapping[str, NodeCost], place: Place) -> tuple[int, ...]:
    shape = costs[place.node.name].shape
    assert shape is not None
    return tuple(shape[position] for position in place.positions)


def _exit(number: int, graph: fx.Graph, costs: Mapping[str, NodeCost], place: Place) -> Site:
    shape = costs[place.node.name].shape
    assert shape is not None
    (axis,) = set(range(1, len(shape))) - set(place.positions)
    saved = macs_behind(graph, costs, place.node)
    return Site(
        f"exit{number}",
        "exit",
        1,
        saved,
        place.node.name,
        "",
        "",
        "",
        (),
        shape[axis],
        place.positions,
        saved,
    )


def macs_behind(graph: fx.Graph, costs: Mapping[str, NodeCost], node: fx.Node) -> int:
    """MACs of one image that leaving at `node` saves."""
    return sum(costs[later.name].macs for later in behind(graph, node) if later.name in costs)


def behind(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """What is needed for nobody who leaves at `node`.

    Neither to compute it, nor by an exit that stands there or before it.
    """
    needed, todo = {node}, [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                todo.append(source)
    return [
        later
        for later in graph.nodes
        if later not in needed
        and later.op not in ("placeholder", "get_attr")
        and not (_is_exit(later) and later.all_input_nodes[0] in needed)
    ]


def _is_exit(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith("exits.")
