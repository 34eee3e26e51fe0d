"""Channels of convolutions: a share of the inputs says which channels need the others too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import fx, nn

from gatecli.graph.ops import module_of
from gatecli.kinds.base import CHANNELS, Cut, Keeping, Kind
from gatecli.kinds.conv.executor import SkipChannels, SkipInputs
from gatecli.kinds.conv.find import find_convs, refused_convs
from gatecli.kinds.conv.ops import choose, keep_inputs
from gatecli.kinds.conv.surgery import (
    Change,
    base_of,
    decide_channels,
    insert_channel_gate,
    remove_channel_gate,
)
from gatecli.kinds.renaming import repair
from gatecli.lowering.context import Lowering
from gatecli.traced.site import Saving, Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = ["CONV", "ConvKind"]


class ConvKind(Kind):
    """The channels of a convolution with a BatchNorm behind it."""

    name: ClassVar[str] = "conv"
    offers: ClassVar[frozenset[str]] = frozenset({CHANNELS})
    one_by_one: ClassVar[bool] = True
    shares_batch: ClassVar[bool] = True

    def find(self, net: Traced) -> list[Site]:
        return find_convs(net, self.name)

    def refused(self, net: Traced) -> dict[str, str]:
        return refused_convs(net)

    def refresh(self, net: Traced, site: Site) -> Site | None:
        if not net.has(site.value, site.entry):
            return None
        branch = tuple(node for node in site.branch if node in net.costs)
        units = site.units if site.name in net.gated_by else net.channels(branch[0])
        macs = round((1 - site.always) * net.macs(branch))
        return replace(site, branch=branch, units=units, macs=macs)

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        share = 1 - site.always
        return tuple(Saving(node=node, share=share, per_unit=True) for node in site.branch)

    def insert(self, net: Traced, site: str, gate: nn.Module, sees: str = "") -> None:
        channels: Any = gate
        self._repair(net, site, insert_channel_gate(net, net.sites[site], gate))
        place = net.sites[site]
        net.sites[site] = replace(place, units=channels.units, always=channels.always)

    def ungate(self, net: Traced, site: str) -> None:
        place = net.sites[site]
        self._repair(net, site, remove_channel_gate(net, place))
        net.sites[site] = replace(place, units=net.channels(place.branch[0]), always=0.0)

    def why_not_removable(
        self, net: Traced, site: Site, replaced: dict[fx.Node, fx.Node]
    ) -> str | None:
        gate: Any = net.root.get_submodule(f"gates.{site.name}")
        starves = gate.of_inputs and not gate.order
        return "the convolution would have nothing left to read" if starves else None

    def keep(self, net: Traced, site: str, decision: SiteDecision, how: Keeping) -> Cut:
        place = net.sites[site]
        gate: Any = net.root.get_submodule(f"gates.{site}")
        self._repair(net, site, decide_channels(net, place, decision))
        if not decision.dynamic:
            self._forget(net, site)
            return Cut()
        conv: Any = module_of(net.root, net.node(place.branch[0]))
        share = gate.units / (conv.in_channels if gate.of_inputs else conv.out_channels)
        always = 1 - share if gate.of_inputs else 1 - (1 - gate.always) * share
        net.sites[site] = replace(place, units=gate.units, always=always)
        return Cut()

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        self.keep(net, site.name, SiteDecision.of(site.units, []), Keeping())
        return {}

    def _repair(self, net: Traced, site: str, change: Change) -> None:
        repair(net, {change.before: change.now}, but=site, more=change.more)

    def _forget(self, net: Traced, site: str) -> None:
        """The convolution is in parts: it is no site any more, nor are its filters."""
        place = net.sites.pop(site)
        net.gated_by.pop(site, None)
        for name, other in list(net.sites.items()):
            starts_here = other.tail[:1] == place.branch[:1]
            if starts_here and other.tail[-1] != other.value:
                del net.sites[name]

    def is_theoretical(self, net: Traced, site: str) -> bool:
        """Where decisions are for single activations, which no dense kernel can leave out."""
        gate: Any = net.root.get_submodule(f"gates.{site}")
        return bool(gate.per_activation)

    def lower(self, low: Lowering, node: fx.Node) -> bool:
        if node.target is choose:
            _lower_outputs(low, node)
        elif node.target is keep_inputs:
            _lower_inputs(low, node)
        else:
            return False
        return True


def _lower_outputs(low: Lowering, chosen: fx.Node) -> None:
    """Gated output channels.

    Decisions for single activations save nothing that is dense, so these stay as they are.
    """
    norm, _, decision = chosen.all_input_nodes
    (conv,) = norm.all_input_nodes
    gate: Any = module_of(low.root, decision)
    if gate.per_activation:
        return
    base = base_of(conv)
    rows: Any = chosen.args[3]
    executor = SkipChannels(
        low.root,
        (str(conv.target), str(norm.target), str(decision.target)),
        base.args[2],
        rows,
        reads_input=gate.reads_input,
    )
    low.replace(chosen, executor, (conv.all_input_nodes[0],))


def _lower_inputs(low: Lowering, kept: fx.Node) -> None:
    """Gated input channels."""
    x, decision = kept.all_input_nodes
    (conv,) = kept.users
    order: Any = kept.args[2]
    low.replace(conv, SkipInputs(low.root, str(conv.target), order), (x, decision))


CONV = ConvKind()
