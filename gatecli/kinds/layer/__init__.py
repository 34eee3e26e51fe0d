"""Layers of dense blocks: a closed gate leaves zeros in its place of the concatenations."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import fx, nn

from gatecli.graph import prune_channels
from gatecli.graph.ops import is_cat
from gatecli.graph.patterns import tail_of
from gatecli.graph.trace import remove_dead
from gatecli.kinds.base import MASK, VALUE, Gone
from gatecli.kinds.layer.executor import SkipLayer, SkipParts
from gatecli.kinds.layer.find import find_layers
from gatecli.kinds.masked import MaskedKind, nothing_of
from gatecli.kinds.units import split_tail
from gatecli.lowering.context import Lowering
from gatecli.lowering.region import Skippable, skippable, tail_part, trunk_of
from gatecli.traced.site import Saving, Site
from gatecli.traced.traced import Traced

__all__ = ["LAYER", "LayerKind"]


class LayerKind(MaskedKind):
    """What is made of features and concatenated to them.

    Split in n units, each n-th part of the channels that it adds is one.
    """

    name: ClassVar[str] = "layer"
    offers: ClassVar[frozenset[str]] = frozenset({MASK, VALUE})
    listed: ClassVar[bool] = True
    in_line: ClassVar[bool] = True
    splits: ClassVar[bool] = True
    whole_only: ClassVar[bool] = True

    def find(self, net: Traced) -> list[Site]:
        return find_layers(net, self.name)

    def split(self, net: Traced, site: Site, units: int) -> Site:
        return split_tail(net, site, units)

    def refresh(self, net: Traced, site: Site) -> Site | None:
        if not net.has(site.value, site.entry):
            return None
        branch = tuple(node for node in site.branch if node in net.costs)
        channels = net.channels(site.entry)
        return replace(site, branch=branch, macs=net.macs(branch), channels=channels)

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        return tuple(Saving(node=node, per_unit=node in site.tail) for node in site.branch)

    def why_not_removable(
        self, net: Traced, site: Site, replaced: dict[fx.Node, fx.Node]
    ) -> str | None:
        return prune_channels.foldable(net.root, net.graph, net.costs, nothing_of(net, site))

    def zeros(self, net: Traced, site: Site) -> Gone:
        return nothing_of(net, site)

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        remove_dead(net.graph)  # nothing reads it any more
        return {}

    def lower(self, low: Lowering, node: fx.Node) -> bool:
        site = low.site_of(node)
        if site is None or site.kind != self.name:
            return False
        _lower(low, node, site)
        return True


def _lower(low: Lowering, masked: fx.Node, site: Site) -> None:
    """Skip the layer where it can be skipped."""
    # a gate that looks elsewhere leaves the concatenation to the layer alone
    start = next((each for each in low.graph.nodes if each.name == site.entry), None)
    found = skippable(low.root, masked, start)
    if found is None or not all(is_cat(user) for user in masked.users):
        return
    executor = _executor(low, site, found)
    if executor is not None:
        low.replace(masked, executor, (found.entry, found.decision, *found.others))


def _executor(low: Lowering, site: Site, found: Skippable) -> nn.Module | None:
    """What skips a layer; None where there is nothing for such a one."""
    width = low.net.channels(site.value)  # the value itself may be another executor by now
    if site.units == 1:
        return SkipLayer(low.root, found.branch, width)
    tail = tail_of(low.root, found.value)
    if found.others or not tail:
        return None
    trunk = trunk_of(found.region, found.entry, tail)
    return SkipParts(low.root, found.branch, width, trunk=trunk, tail=tail_part(low.root, tail))


LAYER = LayerKind()
