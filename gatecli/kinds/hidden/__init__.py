"""Hidden units: of a perceptron between two linear layers, and of an inverted residual's expansion.

A closed unit is a row of the first layer, a column of the last one and whatever lies between them:
none of it is computed, and prune takes all of it out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import fx, nn

from gatecli.graph import edit, prune_channels
from gatecli.graph.ops import is_decision, is_mask, module_of, widen
from gatecli.kinds.base import MASK, VALUE, Gone
from gatecli.kinds.hidden.apart import is_depthwise, is_pointwise
from gatecli.kinds.hidden.executor import APART, COLUMNS, ROWS, HiddenLayers, HiddenValue, steps_of
from gatecli.kinds.hidden.find import Hidden, HiddenFinder, hidden_at, refusals
from gatecli.kinds.masked import UnitsKind, output_of, savings_by_unit
from gatecli.lowering.context import Lowering
from gatecli.traced.site import Saving, Site
from gatecli.traced.traced import Traced

__all__ = ["HIDDEN", "HiddenKind"]


class HiddenKind(UnitsKind):
    """Hidden units, each for itself; split in n units, each n-th part of them is one."""

    name: ClassVar[str] = "hidden"
    offers: ClassVar[frozenset[str]] = frozenset({MASK, VALUE})
    splits: ClassVar[bool] = True
    called: ClassVar[str] = "hidden units"

    def find(self, net: Traced) -> list[Site]:
        return HiddenFinder(net, self.name).run()

    def refused(self, net: Traced) -> dict[str, str]:
        return refusals(net)

    def refresh(self, net: Traced, site: Site) -> Site | None:
        if not net.has(site.value, site.entry, *site.tail):
            return None
        hidden = _hidden(net, site)
        if hidden is None:
            return None
        inside = [*hidden.tail, *hidden.between, hidden.last]
        branch = tuple(node.name for node in inside)
        is_split = site.name in net.gated_by and site.units < net.channels(site.value)
        units = site.units if site.places or is_split else net.channels(site.value)
        return replace(site, branch=branch, units=units, macs=net.macs(branch))

    def decided(self, net: Traced, site: Site) -> list[str]:
        hidden = _hidden(net, site)
        assert hidden is not None
        scale = [node.name for node in _between(net.root, hidden)[-1:]]
        return [*super().decided(net, site), *scale]

    def insert(self, net: Traced, site: str, gate: nn.Module, sees: str = "") -> None:
        place = net.sites[site]
        entry = output_of(net, replace(place, value=place.entry))
        if not sees and entry.name != place.entry:
            sees = entry.name  # what is masked is not computed in full for the gate to look at
        axis = net.channel_axis(place.value)
        edit.insert_mask(net, place, gate, sees=sees, outside=False, axis=axis)

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        hidden = _hidden(net, site)
        assert hidden is not None
        nodes = hidden.tail
        if _reads_open_units(net, site, hidden):
            nodes = [*hidden.tail, *hidden.between, hidden.last]
        heavy = [node.name for node in nodes if net.costs[node.name].macs]
        return savings_by_unit(net, site, heavy)

    # --- where no unit is left, one stays that says nothing: a layer has at least one ---

    def why_not_removable(
        self, net: Traced, site: Site, replaced: dict[fx.Node, fx.Node]
    ) -> str | None:
        if not prune_channels.stays_zero(net.root, [net.node(name) for name in site.tail]):
            return "a unit without weights is not zero there"
        gone = self.zeros(net, site)
        return prune_channels.foldable(net.root, net.graph, net.costs, gone) if gone else None

    def zeros(self, net: Traced, site: Site) -> Gone:
        gone = list(range(1, net.channels(site.value)))
        return {output_of(net, site): gone} if gone else {}

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        if not net.has(site.value, *site.tail):
            return {}  # it went with what was around it
        tail = [net.node(name) for name in site.tail]
        prune_channels.keep_outputs(net.root, tail, [0], silent={0})
        edit.remove_mask(net.graph, site.name)
        return {}

    # --- how it runs ---

    def prepare(self, low: Lowering) -> None:
        """Before branches around them, which are then skipped with these executors in them."""
        for node in list(low.graph.nodes):
            site = None if node._erased else low.site_of(node)
            if site is not None and site.kind == self.name:
                _lower(low, node, site)

    def lower(self, low: Lowering, node: fx.Node) -> bool:
        site = low.site_of(node)
        return site is not None and site.kind == self.name  # done, or it stays a mask


def _hidden(net: Traced, site: Site) -> Hidden | None:
    """A site's hidden units on the graph as it is."""
    gated = site.name in net.gated_by
    return hidden_at(net, net.node(site.tail[0]), net.node(site.value) if gated else None)


def _reads_open_units(net: Traced, site: Site, hidden: Hidden) -> bool:
    """Whether what reads the units looks at open ones alone: no other gate decides there."""
    if any(user.target is widen for user in output_of(net, site).users):
        return False
    inside = {hidden.last.name}
    for node in hidden.between:
        if is_mask(node) or is_decision(net.root, node):
            return False
        inside.add(node.name)
    for other in net.gated_by:
        own = net.sites[other].tail or net.sites[other].branch
        is_around = site.value in net.sites[other].branch
        if other != site.name and not is_around and inside & set(own):
            return False
    return True


def _lower(low: Lowering, masked: fx.Node, site: Site) -> None:
    """The open units alone, down to the layer that reads them where that is free to look at them.

    The graph is a copy: its nodes have the names of the network's.
    """
    own = {node.name: node for node in low.graph.nodes}
    hidden = _hidden(low.net, site)
    value, decision = masked.args
    assert isinstance(value, fx.Node) and isinstance(decision, fx.Node)
    if hidden is None or not all(node.name in own for node in hidden.tail):
        return
    nodes, last = hidden.tail, masked
    executor: type[HiddenLayers] = HiddenValue
    if _reads_open_units(low.net, site, hidden):
        nodes = [*hidden.tail, *hidden.between, hidden.last]
        last, executor = own[hidden.last.name], HiddenLayers
    copies = [own[node.name] for node in nodes]
    hows = _hows(low.root, hidden)
    steps = steps_of(low.root, copies, [hows.get(node) for node in nodes], value)
    (x,) = copies[0].all_input_nodes
    low.replace(last, executor(low.root, steps, low.net.channel_axis(site.value)), (x, decision))


def _hows(root: nn.Module, hidden: Hidden) -> dict[fx.Node, str]:
    """Which weights of each layer belong to a unit."""
    hows = {hidden.tail[0]: ROWS, hidden.last: COLUMNS}
    for node in hidden.tail[1:]:
        if isinstance(module_of(root, node), nn.BatchNorm2d) or is_depthwise(root, node):
            hows[node] = APART
        elif is_pointwise(root, node):
            hows[node] = ROWS
    layers = _between(root, hidden)
    if layers:
        hows[layers[0]] = COLUMNS
        hows[layers[-1]] = ROWS
    return hows


def _between(root: nn.Module, hidden: Hidden) -> list[fx.Node]:
    """The layers of squeeze-and-excitation; the last one makes the scale."""
    return [node for node in hidden.between if isinstance(module_of(root, node), nn.Conv2d)]


HIDDEN = HiddenKind()
