"""Filters of convolutions: a closed unit is a channel of zeros.

A convolution that reads it does not look at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import fx, nn

from gatecli.graph import additions, prune_channels
from gatecli.graph.edit import mask_of
from gatecli.graph.ops import is_add, never_negative, relu_after, widen
from gatecli.graph.patterns import tail_of
from gatecli.graph.runs import numbers_of
from gatecli.graph.trace import remove_dead
from gatecli.kinds.base import MASK, VALUE, Cut, Gone, Keeping, Kind
from gatecli.kinds.filter import coupled
from gatecli.kinds.filter.executor import FilterBlock, FilterLayer, FilterReader, OpenFilters
from gatecli.kinds.filter.find import ROLES, FilterFinder
from gatecli.kinds.filter.readers import fed_by, readers_of
from gatecli.kinds.masked import UnitsKind, nothing_of, savings_by_unit
from gatecli.kinds.units import gone_channels
from gatecli.lowering.context import Lowering
from gatecli.lowering.region import tail_part
from gatecli.traced.site import Saving, Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = ["FILTER", "CoupledFilters", "FilterKind"]


class FilterKind(UnitsKind):
    """The filters of a convolution, with what follows it channel by channel.

    Each is a unit; split in n units, each n-th part of them is one.
    """

    name: ClassVar[str] = "filter"
    offers: ClassVar[frozenset[str]] = frozenset({MASK, VALUE})
    splits: ClassVar[bool] = True
    called: ClassVar[str] = "filters"
    roles: ClassVar[tuple[str, ...]] = ROLES
    couples: ClassVar[bool] = True

    def find(self, net: Traced) -> list[Site]:
        return FilterFinder(net, self.name).run()

    def couple(self, net: Traced) -> bool:
        return coupled.couple(net, self.name)

    def of(self, site: Site) -> Kind:
        return COUPLED_FILTERS if coupled.is_coupled(site) else self

    def refresh(self, net: Traced, site: Site) -> Site | None:
        if not net.has(site.value, site.entry):
            return None
        if site.tail[-1] != site.value:
            return site  # the convolution's channels are gated
        branch = tuple(node for node in site.branch if node in net.costs)
        units = site.units if _is_grouped(net, site) else net.channels(site.value)
        channels = net.channels(site.entry)
        return replace(site, branch=branch, units=units, channels=channels, macs=net.macs(branch))

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        nodes = [node for node in site.tail if node in net.costs]
        if site.name in net.gated_by:
            nodes += readers_of(net, site.name)
        return savings_by_unit(net, site, nodes)

    def keep(self, net: Traced, site: str, decision: SiteDecision, how: Keeping) -> Cut:
        cut = super().keep(net, site, decision, how)
        return replace(cut, wide=cut.more)

    def why_not_removable(
        self, net: Traced, site: Site, replaced: dict[fx.Node, fx.Node]
    ) -> str | None:
        if not _is_summand(net, site):
            return prune_channels.foldable(net.root, net.graph, net.costs, nothing_of(net, site))
        added = additions.additions_of_zero(net.root, net.node(site.value), replaced)
        if added is None:
            return "nothing else would be left of the sum that it goes into"
        replaced.update(added)
        return None

    def zeros(self, net: Traced, site: Site) -> Gone:
        return {} if _is_summand(net, site) else nothing_of(net, site)

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        value = net.find(site.value)
        if value is not None and additions.additions_of_zero(net.root, value) is not None:
            return additions.remove_zero(net.root, net.graph, value)
        remove_dead(net.graph)  # nothing reads it any more
        return {}

    def prepare(self, low: Lowering) -> None:
        """Filters first: a branch around them is then skipped with their executors in it."""
        feeds = _feeds(low, fed_by(low.net, self.name))
        for node in list(low.graph.nodes):
            site = low.site_of(node)
            if site is not None and site.kind == self.name:
                _lower(low, node, feeds)
        for conv, fed in feeds.items():
            if not conv._erased:
                executor = FilterReader(low.root, str(conv.target))
                low.replace(conv, executor, (conv.all_input_nodes[0], fed))

    def lower(self, low: Lowering, node: fx.Node) -> bool:
        site = low.site_of(node)
        return site is not None and site.kind == self.name  # done, or it stays a mask


class CoupledFilters(FilterKind):
    """The filters of all convolutions that write one stream: channel i of all of them is unit i."""

    def insert(self, net: Traced, site: str, gate: nn.Module, sees: str = "") -> None:
        coupled.insert_masks(net, net.sites[site], gate, sees)

    def refresh(self, net: Traced, site: Site) -> Site | None:
        return coupled.refreshed(net, site)

    def why_wide(self, net: Traced, site: Site, kept: Sequence[int]) -> str | None:
        gone = gone_channels(site, net.channels(site.value), kept)
        return coupled.why_coupled_wide(net, site, gone)

    def keep(self, net: Traced, site: str, decision: SiteDecision, how: Keeping) -> Cut:
        return coupled.keep_coupled(net, net.sites[site], decision, how)

    def why_not_removable(
        self, net: Traced, site: Site, replaced: dict[fx.Node, fx.Node]
    ) -> str | None:
        return "nothing would be left of the stream that it is"


def _is_grouped(net: Traced, site: Site) -> bool:
    """Whether a gate decides other units than each of the value's channels."""
    is_split = site.name in net.gated_by and site.units < net.channels(site.value)
    return bool(site.places) or is_split


def _is_summand(net: Traced, site: Site) -> bool:
    """Whether a site's value goes into additions alone, so that these do without it."""
    return additions.additions_of_zero(net.root, net.node(site.value)) is not None


def _feeds(low: Lowering, fed: Mapping[str, str]) -> dict[fx.Node, fx.Node]:
    """Convolution -> the decisions about the channels that it reads, as nodes."""
    feeds = {}
    for node in low.graph.nodes:
        if node.name in fed:
            masked = mask_of(low.graph, fed[node.name])
            assert masked is not None and isinstance(masked.args[1], fx.Node)
            feeds[node] = masked.args[1]
    return feeds


def _lower(low: Lowering, masked: fx.Node, feeds: Mapping[fx.Node, fx.Node]) -> None:
    """The open filters alone, added to the shortcut where there is one, else among zeros."""
    value, decision = masked.args
    assert isinstance(value, fx.Node) and isinstance(decision, fx.Node)
    tail = tail_of(low.root, value)
    if not tail:
        return
    (x,) = tail[0].all_input_nodes
    fed = [feeds[tail[0]]] if tail[0] in feeds else []
    last, places = _widened(masked)
    add = next(iter(last.users))
    filters = OpenFilters(tail_part(low.root, tail), low.net.channels(value.name))
    if len(last.users) > 1 or not is_add(add) or _is_of_others(low, masked, add):
        low.replace(masked, FilterLayer(low.root, filters), (x, decision, *fed))
        return
    shortcut = next(arg for arg in add.args if arg is not last)
    assert isinstance(shortcut, fx.Node)
    relu = relu_after(low.root, add)
    rectified = never_negative(low.root, shortcut)
    block = FilterBlock(low.root, filters, places, rectify=relu is not None, rectified=rectified)
    low.replace(relu or add, block, (x, shortcut, decision, *fed))


def _is_of_others(low: Lowering, masked: fx.Node, add: fx.Node) -> bool:
    """Whether an addition is another kind's to lower, as its mask is what is added."""
    mine = low.site_of(masked)
    sites = [low.site_of(each) for each in add.all_input_nodes]
    return any(site is not None and mine is not None and site.kind != mine.kind for site in sites)


def _widened(masked: fx.Node) -> tuple[fx.Node, list[int] | None]:
    """What takes a masked value on: the value widened with zeros and its places, or itself."""
    user = next(iter(masked.users))
    if len(masked.users) != 1 or user.target is not widen:
        return masked, None
    runs: Any = user.args[1]
    return user, numbers_of(runs)


FILTER = FilterKind()
COUPLED_FILTERS = CoupledFilters()
