"""Put gates into a network, and decide them for good; each kind of site does its own part.

What goes goes for all sites together: filters, layers and groups that meet at a reader have to be
folded into it at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import fx, nn

from gatecli.errors import SettingError
from gatecli.graph import prune_channels
from gatecli.kinds import registry
from gatecli.kinds.base import MASK, Cut, Keeping
from gatecli.kinds.renaming import repair
from gatecli.network.network import Network
from gatecli.traced.site import Site, SiteDecision, renamed
from gatecli.traced.traced import Traced

__all__ = [
    "Decided",
    "Decisions",
    "around",
    "decide",
    "insert_gate",
    "leave",
    "stays_wide",
    "why_not_removable",
]

RULES_OF_NARROW_READERS = 4
Decisions = Mapping[str, SiteDecision]  # by site
Gone = dict[fx.Node, list[int]]


# --- gates ---


def insert_gate(net: Traced, site: str, gate: nn.Module, method: str, sees: str = "") -> None:
    """Let a gate decide about a site, inside `Network.editing`.

    Args:
        net: The network.
        site: The site's name.
        gate: The gate; it sees the site's entry.
        method: The name of the method that it belongs to.
        sees: The node that it sees instead.

    Raises:
        SettingError: The site carries a gate already, lies in one that does, or cannot be split
            into as many units as the gate has.
    """
    place = net.sites[site]
    kind = registry.of(place)
    if site in net.gated_by:
        what, did = ("have no exit", "has put one there") if kind.leaves else _CARRIES
        raise SettingError(f"expected `{site}` to {what}, but {net.gated_by[site]} {did}")
    if not kind.linked:
        _check_not_nested(net, place)
    units = getattr(gate, "units", place.units)
    if kind.splits and units != place.units:
        net.sites[site] = kind.split(net, place, units)
    kind.insert(net, site, gate, sees)
    net.gated_by[site] = method


_CARRIES = ("carry no gate", "gates it")


def _check_not_nested(net: Traced, site: Site) -> None:
    """Gates within gated branches would decide for some of the samples alone.

    But for those that are told what is decided around them.

    Raises:
        SettingError: Two lie one within the other.
    """
    for name, method in net.gated_by.items():
        other = net.sites[name]
        overlap = set(site.branch) & set(other.branch)
        if overlap and not (_is_told(site, other) or _is_told(other, site)):
            raise SettingError(
                f"`{site.name}` and `{name}`, which {method} gates, lie one within the other: prune"
                f" first, or leave it out with --exclude '{site.name}'"
            )


def _is_told(inner: Site, outer: Site) -> bool:
    """Whether the inner site's kind may stand within a gated site of the outer's."""
    within, around = registry.of(inner), registry.of(outer)
    is_same = bool(inner.tail) and inner.tail[:1] == outer.tail[:1]
    if inner.kind == outer.kind or (is_same and within.one_by_one and around.one_by_one):
        return False  # the same layer's channels would be decided twice
    return bool(within.lies_in & around.offers)


def around(net: Traced, site: Site) -> Site | None:
    """The outermost gated site within which a site lies, and in which its entry is computed.

    A gate that looked at that entry would have what is around it computed, running or not.
    """
    found = []
    for name in net.gated_by:
        other = net.sites[name]
        if other.entry != site.entry and set(site.branch) < set(other.branch):
            found.append(other)
    return max(found, key=lambda other: len(other.branch), default=None)


# --- deciding for good ---


@dataclass(frozen=True, kw_only=True)
class Decided:
    """What has become of sites that are decided for good.

    Attributes:
        wide: The sites whose readers get zeros in the place of units that are gone.
        padded: By site how many channels, or heads, stay although they are closed, giving zeros.
    """

    wide: list[str]
    padded: dict[str, int]


def decide(network: Network, decisions: Decisions, round_to: int = 1) -> Decided:
    """Decide sites for good, in place; sites that are left out stay as they are.

    Args:
        network: The network.
        decisions: What is decided, by site.
        round_to: Where a branch loses some of its filters, keep so many more, giving zeros, that
            their number is a multiple of this.
    """
    wide = [site for site, each in decisions.items() if stays_wide(network.traced, site, each)]
    return settle(network, decisions, wide, round_to)


def settle(
    network: Network, decisions: Decisions, wide: Sequence[str], round_to: int = 1
) -> Decided:
    """Decide sites for good, in place, with the readers of `wide` ones keeping their width."""
    net = network.traced
    leave(net, decisions)
    removed = [site for site, each in decisions.items() if _goes(net, site, each)]
    gone: Gone = {}
    padded: dict[str, int] = {}
    among_zeros: list[str] = []
    for site, decision in decisions.items():
        if site in net.sites and site not in removed:
            is_wide = site in wide or registry.of(net.sites[site]).always_wide
            how = Keeping(round_to=round_to, wide=is_wide, decisions=decisions)
            cut = _keep(net, site, decision, how)
            gone |= cut.gone
            among_zeros += cut.wide
            if cut.padded:
                padded[site] = cut.padded
    _remove(net, removed, gone)
    if net.rules >= RULES_OF_NARROW_READERS:
        _read_narrow(net, among_zeros)
    network.recompile()
    return Decided(wide=list(wide), padded=padded)


def _read_narrow(net: Traced, among_zeros: Iterable[str]) -> None:
    """Let convolutions read values without the zeros that others need."""
    wide = [net.node(name) for name in among_zeros if net.has(name)]
    gated = [net.sites[site] for site in net.gated_by]
    apart = [site.branch for site in gated if MASK not in registry.of(site).offers]
    prune_channels.read_narrow(net, wide, list(chain.from_iterable(apart)))


def _keep(net: Traced, site: str, decision: SiteDecision, how: Keeping) -> Cut:
    """Decide a site of which something stays."""
    place = net.sites[site]
    kind = registry.of(place)
    if kind.leaves:
        return Cut()
    if not decision.dynamic and not decision.drop and not kind.linked:
        kind.ungate(net, site)
        net.gated_by.pop(site, None)
        return Cut()
    cut = kind.keep(net, site, decision, how)
    if cut.names:
        _repair(net, site, place, cut.names, cut.more)
    if not decision.dynamic:
        net.gated_by.pop(site, None)
    return cut


def leave(net: Traced, decisions: Decisions) -> None:
    """Exits first: who leaves nowhere, or where everybody does."""
    for site, decision in decisions.items():
        if site not in net.sites or not registry.of(net.sites[site]).leaves:
            continue
        kind = registry.of(net.sites[site])
        if decision.keep:
            kind.ungate(net, site)
        else:
            kind.remove(net, net.sites[site])
        net.gated_by.pop(site, None)


def _goes(net: Traced, site: str, decision: SiteDecision) -> bool:
    """Whether a site goes as a whole."""
    if site not in net.sites or decision.left:
        return False
    place = net.sites[site]
    return not place.places and not registry.of(place).leaves


def _repair(
    net: Traced, site: str, before: Site, names: Mapping[str, str], more: Sequence[str]
) -> None:
    """Let sites name what has taken a narrowed value's place."""
    repair(net, names, but=site, more=more)
    if before.add:  # it ends in an addition, which reads the wide value
        here = net.sites[site]
        net.sites[site] = renamed(_with_nodes(here, more), names)


def _with_nodes(site: Site, more: Sequence[str]) -> Site:
    return replace(site, branch=(*site.branch, *more))


def _remove(net: Traced, sites: Iterable[str], gone: Gone) -> None:
    """Take sites that never run out, with their gates; `gone`: channels of others' values."""
    places = [net.sites[site] for site in sites if site in net.sites]
    zeros: Gone = dict(gone)
    for place in places:
        zeros |= registry.of(place).zeros(net, place)
    if zeros:
        prune_channels.fold(net.root, net.graph, net.costs, zeros)
    for place in places:
        net.gated_by.pop(place.name, None)
        if place.name not in net.sites:
            continue
        current = net.sites[place.name]
        names = registry.of(current).remove(net, current)
        net.sites.pop(place.name, None)
        net.sites = {name: renamed(other, names) for name, other in net.sites.items()}


def why_not_removable(net: Traced, sites: Iterable[str]) -> dict[str, str]:
    """What stands in the way of removing these sites for good, all together.

    Returns:
        Site -> why; those are left out that can go.
    """
    reasons: dict[str, str] = {}
    replaced: dict[fx.Node, fx.Node] = {}
    for name in sites:
        site = net.sites[name]
        why = registry.of(site).why_not_removable(net, site, replaced)
        if why is not None:
            reasons[name] = why
    return reasons


def stays_wide(net: Traced, site: str, decision: SiteDecision) -> bool:
    """Whether who reads a site that loses some units must read zeros in their place."""
    place = net.sites[site]
    kind = registry.of(place)
    if not decision.drop or MASK not in kind.offers or _goes(net, site, decision):
        return False
    return kind.why_wide(net, place, decision.left) is not None
