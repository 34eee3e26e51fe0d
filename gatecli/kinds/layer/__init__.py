"""Layers of dense blocks: a closed gate leaves zeros in its place of the concatenations."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import fx

from gatecli.graph import prune_channels
from gatecli.graph.ops import is_cat
from gatecli.graph.trace import remove_dead
from gatecli.kinds.base import MASK, VALUE, Gone
from gatecli.kinds.layer.executor import SkipLayer
from gatecli.kinds.layer.find import find_layers
from gatecli.kinds.masked import MaskedKind, nothing_of
from gatecli.lowering.context import Lowering
from gatecli.lowering.region import skippable
from gatecli.traced.site import Saving, Site
from gatecli.traced.traced import Traced

__all__ = ["LAYER", "LayerKind"]


class LayerKind(MaskedKind):
    """What is made of features and concatenated to them."""

    name: ClassVar[str] = "layer"
    offers: ClassVar[frozenset[str]] = frozenset({MASK, VALUE})
    listed: ClassVar[bool] = True
    in_line: ClassVar[bool] = True
    whole_only: ClassVar[bool] = True

    def find(self, net: Traced) -> list[Site]:
        return find_layers(net, self.name)

    def refresh(self, net: Traced, site: Site) -> Site | None:
        if not net.has(site.value, site.entry):
            return None
        branch = tuple(node for node in site.branch if node in net.costs)
        channels = net.channels(site.entry)
        return replace(site, branch=branch, macs=net.macs(branch), channels=channels)

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        return tuple(Saving(node=node) for node in site.branch)

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
        # a gate that looks elsewhere leaves the concatenation to the layer alone
        start = next((each for each in low.graph.nodes if each.name == site.entry), None)
        found = skippable(low.root, node, start)
        if found is not None and all(is_cat(user) for user in node.users):
            width = low.net.shape(found.value)[1]
            executor = SkipLayer(low.root, found.branch, width)
            low.replace(node, executor, (found.entry, found.decision, *found.others))
        return True


LAYER = LayerKind()
