"""What kinds have in common whose decision is a mask: a value is multiplied by it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import fx, nn

from gatecli.errors import SettingError
from gatecli.graph import edit, prune_channels
from gatecli.graph.ops import is_decision, is_mask
from gatecli.kinds.base import MASK, Cut, Gone, Keeping, Kind
from gatecli.kinds.units import gone_channels, narrow, widen_again
from gatecli.traced.site import Saving, Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = ["MaskedKind", "UnitsKind", "nothing_of", "output_of", "savings_by_unit"]


class MaskedKind(Kind):
    """A kind whose sites are masked; see gatecli.graph.ops.mask."""

    masks_outside: ClassVar[bool] = True  # its masks come after those of what lies within

    def insert(self, net: Traced, site: str, gate: nn.Module, sees: str = "") -> None:
        place = net.sites[site]
        edit.insert_mask(net, place, gate, sees=sees, outside=self.masks_outside)

    def ungate(self, net: Traced, site: str) -> None:
        edit.remove_mask(net.graph, net.sites[site].name)
        net.sites[site] = self.whole(net, net.sites[site])

    def whole(self, net: Traced, site: Site) -> Site:
        """The site as it is where nothing gates it."""
        return replace(site, units=1, tail=())

    def why_wide(self, net: Traced, site: Site, kept: Sequence[int]) -> str | None:
        gone = gone_channels(site, net.channels(site.value), kept)
        return prune_channels.foldable(net.root, net.graph, net.costs, {output_of(net, site): gone})

    def keep(self, net: Traced, site: str, decision: SiteDecision, how: Keeping) -> Cut:
        old = net.sites[site]
        result = narrow(net, old, decision, how.round_to)
        net.sites[site] = result.site
        if not decision.dynamic:
            edit.remove_mask(net.graph, site)
            net.sites[site] = self.kept(net, result.site, len(result.kept))
        if result.output.name not in net.costs:
            # it stands for the value in its full width, until all is done
            net.costs[result.output.name] = net.costs[old.value]
        if not result.gone:
            return Cut(padded=result.padded)
        if not how.wide:
            return Cut(gone={result.output: result.gone}, padded=result.padded)
        wide = widen_again(net.graph, result, net.channel_axis(old.value))
        return Cut(names={old.value: wide.name}, more=[wide.name], padded=result.padded)

    def kept(self, net: Traced, site: Site, channels: int) -> Site:
        """The site without a gate, of whose value so many channels are left."""
        return replace(site, units=1, tail=())


class UnitsKind(MaskedKind):
    """A masked kind of whose value each channel is a unit; split in n, each n-th part is one.

    Attributes:
        called: What messages call its units.
    """

    called: ClassVar[str] = "units"
    one_by_one: ClassVar[bool] = True
    shares_batch: ClassVar[bool] = True
    lies_in: ClassVar[frozenset[str]] = frozenset({MASK})
    masks_outside: ClassVar[bool] = False

    def split(self, net: Traced, site: Site, units: int) -> Site:
        width = net.channels(site.value)
        if units > width or width % units:
            raise SettingError(
                f"expected the number of units to divide the {width} {self.called} of"
                f" `{site.name}`, but got {units}"
            )
        return replace(site, units=units)

    def whole(self, net: Traced, site: Site) -> Site:
        return replace(site, units=net.channels(site.value), places=())

    def kept(self, net: Traced, site: Site, channels: int) -> Site:
        return replace(site, units=channels, places=())


def savings_by_unit(net: Traced, site: Site, nodes: Iterable[str]) -> tuple[Saving, ...]:
    """What closed units save of nodes that work for each of a site's channels apart."""
    share = len(site.places) / net.channels(site.value) if site.places else 1.0
    return tuple(Saving(node=node, share=share, per_unit=True) for node in nodes)


def output_of(net: Traced, site: Site) -> fx.Node:
    """What others read of a site: its value, masked where it is gated."""
    value = net.node(site.value)
    while masks := [user for user in value.users if is_mask(user) and user.args[0] is value]:
        others = [user for user in value.users if user is not masks[0]]
        if len(masks) > 1 or any(not is_decision(net.root, user) for user in others):
            break
        value = masks[0]
    return value


def nothing_of(net: Traced, site: Site) -> Gone:
    """The site's value with all its channels zero."""
    return {output_of(net, site): list(range(net.channels(site.value)))}
