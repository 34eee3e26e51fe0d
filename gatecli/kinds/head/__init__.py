"""Heads of attention: a closed head adds nothing to what the output projection reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import fx, nn

from gatecli.graph.edit import mask_of, remove_mask
from gatecli.kinds.base import MASK, VALUE, Cut, Keeping
from gatecli.kinds.head.attention import Attention, attention_at, weights_of
from gatecli.kinds.head.executor import HeadBlock, OpenHeads
from gatecli.kinds.head.find import find_heads, refused_heads, site_of
from gatecli.kinds.head.places import NotPartedError
from gatecli.kinds.head.surgery import kept_heads, leave_bias, narrow, repeat_decision
from gatecli.kinds.masked import UnitsKind, savings_by_unit
from gatecli.kinds.units import channels_of, gone_channels, narrow_gate
from gatecli.lowering.context import Lowering
from gatecli.traced.site import Saving, Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = ["HEAD", "HeadKind"]


class HeadKind(UnitsKind):
    """The heads of an attention; each is a unit."""

    name: ClassVar[str] = "head"
    offers: ClassVar[frozenset[str]] = frozenset({MASK, VALUE})

    def find(self, net: Traced) -> list[Site]:
        return find_heads(net, self.name)

    def refused(self, net: Traced) -> dict[str, str]:
        return refused_heads(net)

    def refresh(self, net: Traced, site: Site) -> Site | None:
        value = net.find(site.value)
        if value is None or site.value not in net.costs:
            return None
        try:
            now = site_of(net, attention_at(net, value), self.name, site.name)
        except NotPartedError:
            return None
        if site.name not in net.gated_by:
            return now
        return replace(now, units=site.units, places=site.places)

    def insert(self, net: Traced, site: str, gate: nn.Module, sees: str = "") -> None:
        parts = _attention(net, net.sites[site]).parts
        super().insert(net, site, gate, sees)
        if parts > 1:
            repeat_decision(net, site, parts)

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        by_head = savings_by_unit(net, site, site.tail)
        if site.places:
            return by_head
        # what all heads share, as layers that a bias of positions is made by
        others = [node for node in site.branch if net.costs[node].macs and node not in site.tail]
        return (*by_head, *(Saving(node=node) for node in others))

    # --- taking heads out ---

    def why_wide(self, net: Traced, site: Site, kept: Sequence[int]) -> str | None:
        return None  # who reads them loses them here

    def keep(self, net: Traced, site: str, decision: SiteDecision, how: Keeping) -> Cut:
        place = net.sites[site]
        found = _attention(net, place)
        kept = kept_heads(
            found.heads, gone_channels(place, found.heads, decision.left), how.round_to
        )
        narrow(net, found, kept)
        if not decision.dynamic:
            remove_mask(net.graph, site)
            net.sites[site] = replace(place, units=len(kept.places), places=())
            return Cut(padded=len(kept.silent))
        masked = mask_of(net.graph, site)
        assert masked is not None
        dynamic = channels_of(place, found.heads, decision.dynamic)
        now = [kept.places.index(head) for head in dynamic]
        net.sites[site] = narrow_gate(net, place, [masked], decision.dynamic, now, len(kept.places))
        if found.parts > 1:
            repeat_decision(net, site, found.parts)
        return Cut(padded=len(kept.silent))

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        value = net.find(site.value)
        if value is None:
            return {}  # it went with what was around it
        found = attention_at(net, value)
        output = found.output.name
        return {output: leave_bias(net, found).name}

    # --- how it runs ---

    def prepare(self, low: Lowering) -> None:
        """Heads first: a branch around them is then skipped with their executor in it."""
        for node in list(low.graph.nodes):
            site = low.site_of(node)
            if site is not None and site.kind == self.name:
                _lower(low, node)

    def lower(self, low: Lowering, node: fx.Node) -> bool:
        site = low.site_of(node)
        return site is not None and site.kind == self.name  # done, or it stays a mask


def _attention(net: Traced, site: Site) -> Attention:
    return attention_at(net, net.node(site.value))


def _lower(low: Lowering, masked: fx.Node) -> None:
    """The open heads alone, from the projections to the output projection."""
    value, decision = masked.args
    assert isinstance(value, fx.Node) and isinstance(decision, fx.Node)
    found = attention_at(low.net, value)
    if found.parts > 1:
        decision = decision.all_input_nodes[0]  # as it is for an image
    made = OpenHeads(low.net, found)
    output = weights_of(found.output)
    executor = HeadBlock(low.root, made.whole(), made.part(), parts=found.parts, output=output)
    low.replace(found.output, executor, (found.tokens, decision))


HEAD = HeadKind()
