"""Find where a classifier can be left early: at the end of each stage but the last.

An exit stands at a value through which everything that comes later goes. Stages are told apart by
the size of the maps; one that holds nothing that can be skipped (a stem) is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from gatecli.errors import SettingError
from gatecli.graph.dominators import immediate_dominators
from gatecli.graph.patterns import is_channelwise
from gatecli.traced.site import Site
from gatecli.traced.traced import Shape, Traced

__all__ = ["behind", "exits_after", "find_exits"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A value at which one could leave.

    Attributes:
        name: Of what ends there.
        node: The value's node.
        positions: The dimensions of its positions.
    """

    name: str
    node: fx.Node
    positions: tuple[int, ...]


def find_exits(net: Traced, kind: str, sites: Sequence[Site]) -> list[Site]:
    """The ends of all stages but the last, as sites `exit1`, `exit2`, ..., in order.

    Stages are made of `sites`; in a network where these make one stage at most, of convolutions
    that keep the size of the maps. A file whose rules are the first ones has them where it had.
    """
    ends = _ends_by_first_rules(net, sites) if net.rules == 1 else _ends(net, sites)
    return _numbered(net, kind, ends)


def _ends(net: Traced, sites: Sequence[Site]) -> list[Place]:
    last_of: dict[int, Place] = {}
    for place in _after_sites(net, sites):
        last_of[_size(net, place)] = place
    ends = list(last_of.values())
    if len(ends) < 2:
        ends = _stage_ends(net) or ends
    if ends and not _goes_on(net, ends[-1]):
        del ends[-1]
    return ends


def _ends_by_first_rules(net: Traced, sites: Sequence[Site]) -> list[Place]:
    """Stages told apart by height and width; the last one is taken for the network's last."""
    last_of: dict[Shape, Place] = {}
    for place in _after_sites(net, sites) or _stage_ends(net):
        shape = net.shape(place.node)
        last_of[tuple(shape[position] for position in place.positions)] = place
    return list(last_of.values())[:-1]


def _goes_on(net: Traced, place: Place) -> bool:
    """Whether another stage follows: layers with weights on fewer positions, but several."""
    size = _size(net, place)
    order = {node: index for index, node in enumerate(net.graph.nodes)}
    for node in net.graph.nodes:
        shape = net.costs[node.name].shape
        if shape is None or len(shape) != len(place.positions) + 2:
            continue
        positions = math.prod(shape[position] for position in place.positions)
        is_later = order[node] > order[place.node] and net.costs[node.name].macs > 0
        if is_later and 1 < positions < size:
            return True
    return False


def exits_after(net: Traced, kind: str, sites: Sequence[Site], names: Sequence[str]) -> list[Site]:
    """Exits after the sites, or after the modules, of these names.

    Raises:
        SettingError: One is no such thing, or one cannot leave the network there.
    """
    after = _after_sites(net, sites)
    places = {place.name: place for place in [*_modules(net), *after]}  # a site's name comes first
    unknown = [name for name in names if name not in places]
    if unknown:
        there = ", ".join(place.name for place in after or _modules(net)) or "none"
        raise SettingError(
            "expected setting `after` to name sites that all that comes later goes through, but"
            f" got `{unknown[0]}`; there are: {there}"
        )
    order = {node: index for index, node in enumerate(net.graph.nodes)}
    for name in names:
        _check_behind_weights(net, order, places[name])
    chosen = [places[name] for name in dict.fromkeys(names)]
    return _numbered(net, kind, sorted(chosen, key=lambda place: order[place.node]))


def _check_behind_weights(net: Traced, order: dict[fx.Node, int], place: Place) -> None:
    limit = order[place.node]
    if not any(net.costs[node.name].macs for node in order if order[node] <= limit):
        raise SettingError(
            "expected setting `after` to name places behind some layer with weights, but"
            f" nothing has been computed at `{place.name}`"
        )


def _modules(net: Traced) -> list[Place]:
    """The places right behind modules, called as these are."""
    places = [place for place in _maps(net) if place.node.op == "call_module"]
    return [
        Place(name=str(place.node.target), node=place.node, positions=place.positions)
        for place in places
    ]


def _after_sites(net: Traced, sites: Sequence[Site]) -> list[Place]:
    """For each site that has one, the first value after it through which everything goes.

    Activations belong to it; in order.
    """
    through = _through(net)
    order = {node: index for index, node in enumerate(net.graph.nodes)}
    places = []
    for site in sites:
        start = net.find(site.add or site.value)
        if start is None:
            continue
        following = [node for node in through if order[node] >= order[start]]
        node = _with_activations(net, following)
        shape = None if node is None else net.costs[node.name].shape
        if node is not None and shape is not None and len(shape) == len(site.positions) + 2:
            places.append(Place(name=site.name, node=node, positions=site.positions))
    return places


def _with_activations(net: Traced, following: Sequence[fx.Node]) -> fx.Node | None:
    """The first of these values, or the last activation right behind it."""
    node = following[0] if following else None
    for later in following[1:]:  # a ReLU after the addition still belongs to the block
        assert node is not None
        same = net.costs[later.name].shape == net.costs[node.name].shape
        if later.all_input_nodes != [node] or not same or not is_channelwise(net.root, later):
            break
        node = later
    return node


def _maps(net: Traced) -> list[Place]:
    """All maps (N, C, H, W) that everything goes through, but for the image."""
    places = []
    for node in _through(net):
        shape = net.costs[node.name].shape
        if node.op != "placeholder" and shape is not None and len(shape) == 4:
            places.append(Place(name=node.name, node=node, positions=(2, 3)))
    return places


def _stage_ends(net: Traced) -> list[Place]:
    """The last maps of each size that convolutions keep.

    A first convolution that changes the size, a stem, makes no stage.
    """
    keeping = {math.prod(net.shape(node)[2:]) for node in net.graph.nodes if _keeps_size(net, node)}
    last_of: dict[int, Place] = {}
    for place in _maps(net):
        if _size(net, place) in keeping and _size(net, place) > 1:
            last_of[_size(net, place)] = place
    return list(last_of.values())


def _keeps_size(net: Traced, node: fx.Node) -> bool:
    """Whether the node has weights, and makes maps of maps of the same size."""
    shape = net.costs[node.name].shape
    if not net.costs[node.name].macs or shape is None or len(shape) != 4:
        return False
    sources = [net.costs[source.name].shape for source in node.all_input_nodes]
    maps = [source for source in sources if source is not None and len(source) == 4]
    return any(source[2:] == shape[2:] for source in maps)


def _through(net: Traced) -> list[fx.Node]:
    """The values that every way from the image to the output goes through, in order.

    Several streams of maps are none.
    """
    graph = net.graph
    dominators = immediate_dominators(graph)
    chain: list[fx.Node] = []
    node = dominators[next(node for node in graph.nodes if node.op == "output")]
    while node is not None:
        if not _is_streams(node) and net.holds_images(node):
            chain.append(node)
        node = dominators[node]
    return chain[::-1]


def _is_streams(node: fx.Node) -> bool:
    """Whether the value holds several streams of maps, or comes right of such a one."""
    sources = node.all_input_nodes
    near = [node, *sources] if len(sources) == 1 else [node]
    return any(getattr(each.target, "makes_streams", False) for each in near)


def _size(net: Traced, place: Place) -> int:
    """How many positions a value has: as maps, or as tokens."""
    shape = net.shape(place.node)
    return math.prod(shape[position] for position in place.positions)


def _numbered(net: Traced, kind: str, places: Sequence[Place]) -> list[Site]:
    return [_exit(net, kind, number, place) for number, place in enumerate(places, 1)]


def _exit(net: Traced, kind: str, number: int, place: Place) -> Site:
    shape = net.shape(place.node)
    (axis,) = set(range(1, len(shape))) - set(place.positions)
    return Site(
        name=f"exit{number}",
        kind=kind,
        units=1,
        macs=net.macs(behind(net.graph, place.node)),
        entry=place.node.name,
        value="",
        branch=(),
        channels=shape[axis],
        positions=place.positions,
    )


def behind(graph: fx.Graph, node: fx.Node) -> list[str]:
    """What is needed for nobody who leaves at `node`.

    Neither to compute it, nor by an exit that stands there or before it; by name.
    """
    needed, todo = {node}, [node]
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                todo.append(source)
    return [later.name for later in graph.nodes if _comes_later(later, needed)]


def _comes_later(node: fx.Node, needed: set[fx.Node]) -> bool:
    if node in needed or node.op in ("placeholder", "get_attr"):
        return False
    is_exit = node.op == "call_module" and str(node.target).startswith("exits.")
    return not (is_exit and node.all_input_nodes[0] in needed)
