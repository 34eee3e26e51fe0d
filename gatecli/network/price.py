"""What thresholds and target rates shall hold down: MACs, or milliseconds by a table.

    ms = ms with all units running + shared + sum over sites of ms(share of units that run)

where a site that is decided by the image pays for its gate too, and saves, of the nodes of sites
that can save more, what these have left: what lies in something closed counts once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from gatecli.network.costs import Part, Rates, closed_at, expected_macs, total
from gatecli.network.network import Network
from gatecli.traced.latency import LatencyTable, SiteTimes, cheapest, curve_at, in_grains
from gatecli.traced.site import Saving
from gatecli.traced.traced import Traced

__all__ = ["Macs", "Milliseconds", "Price", "overlaps", "running", "times_of"]


class Price(ABC):
    """What an image costs.

    Attributes:
        option: Of the command line, that limits it.
        key: Its name among an epoch's figures.
        unit: Its unit, for people, and `scale`: how much one of it is.
    """

    option: ClassVar[str]
    key: ClassVar[str]
    unit: ClassVar[str]
    scale: ClassVar[float]

    @abstractmethod
    def of(self, network: Network, rates: Rates, busy: Mapping[str, float] | None = None) -> float:
        """The mean cost of an image; the arguments are those of `expected_macs`."""

    @abstractmethod
    def saving(self, network: Network, site: str, before: float, after: float) -> float:
        """What is saved if a site's mean rate changes so, and nothing else does."""

    def grain(self, site: str) -> int:
        """How many units of a site come at the price of one: they are best kept in multiples."""
        return 1

    def least(self, network: Network, sites: Iterable[str] | None = None) -> float:
        """The least cost that the gates at these sites may come to; None: all gates."""
        gates = network.site_gates
        named = gates if sites is None else sites
        return self.of(network, {s: [self._cheapest(s)] * gates[s].units for s in named})

    def _cheapest(self, site: str) -> float:
        """The rate of its units at which a site costs least."""
        return 0.0

    def said(self, cost: float) -> str:
        """A cost for people."""
        return f"{cost / self.scale:.4g} {self.unit}"


class Macs(Price):
    """Multiply-accumulates."""

    option: ClassVar[str] = "--max-gmacs"
    key: ClassVar[str] = "macs_expected"
    unit: ClassVar[str] = "GMACs"
    scale: ClassVar[float] = 1e9

    def of(self, network: Network, rates: Rates, busy: Mapping[str, float] | None = None) -> float:
        return expected_macs(network, rates, busy)

    def saving(self, network: Network, site: str, before: float, after: float) -> float:
        return network.sites[site].macs * (before - after)


class Milliseconds(Price):
    """Milliseconds of a call with one image, by a latency table of this very network."""

    option: ClassVar[str] = "--max-ms"
    key: ClassVar[str] = "ms_expected"
    unit: ClassVar[str] = "ms"
    scale: ClassVar[float] = 1.0

    def __init__(self, table: LatencyTable) -> None:
        self.table = table

    def of(self, network: Network, rates: Rates, busy: Mapping[str, float] | None = None) -> float:
        cost = self.table.all_on_ms
        if any(times.dynamic for times in self.table.sites.values()):
            cost += self.table.shared_ms
        left = overlaps(network.traced, list(self.table.sites))

        def closed(site: str, saving: Saving) -> float:
            return closed_at(network, rates, busy or {}, (site, saving))

        for site, times in self.table.sites.items():
            curve = times_of(times)
            whole = curve_at(curve, 1.0)
            share = self._in_grains(network, site, running(network, site, rates, busy))
            saved = whole - curve_at(curve, share)
            cost += whole - saved * total(left.get(site, ()), closed)
        return cost

    def grain(self, site: str) -> int:
        times = self.table.sites.get(site)
        return 1 if times is None or times.dynamic else times.grain

    def _in_grains(self, network: Network, site: str, share: float) -> float:
        """A share of running units, as the next multiple of the site's grain."""
        grain = self.grain(site)
        if grain == 1 or site not in network.sites:
            return share
        units = network.sites[site].units
        return in_grains(share * units, grain, units) / units

    def _cheapest(self, site: str) -> float:
        return cheapest(times_of(self.table.sites[site])) if site in self.table.sites else 0.0

    def saving(self, network: Network, site: str, before: float, after: float) -> float:
        if site not in self.table.sites:
            return 0.0
        curve = times_of(self.table.sites[site])
        return curve_at(curve, before) - curve_at(curve, after)


def times_of(times: SiteTimes) -> list[list[float]]:
    """What the site's gate makes of it: dynamic times where it looks at images, else static."""
    return times.dynamic or times.static


def overlaps(net: Traced, sites: Sequence[str]) -> dict[str, list[Part]]:
    """What is left of each of some gated sites' nodes by those that can save more, as parts of 1.

    A node weighs as many MACs as the site can save of it.
    """
    savable = {}
    for site in sites:
        if site in net.sites:
            savable[site] = sum(_weight(net, saving) for saving in net.sites[site].savings)
    found: dict[str, list[Part]] = {}
    before: dict[str, list[tuple[str, Saving]]] = {}
    for site in sorted(savable, key=lambda name: -savable[name]):
        parts: dict[tuple[tuple[str, Saving], ...], float] = {}
        for saving in net.sites[site].savings:
            others = tuple((name, replace(s, node="")) for name, s in before.get(saving.node, ()))
            share = _weight(net, saving) / savable[site] if savable[site] else 0.0
            parts[others] = parts.get(others, 0.0) + share
        found[site] = [Part(macs=share, savings=others) for others, share in parts.items()]
        for saving in net.sites[site].savings:
            before.setdefault(saving.node, []).append((site, saving))
    return found


def _weight(net: Traced, saving: Saving) -> float:
    """How many MACs a site can save of a node."""
    return net.costs[saving.node].macs * saving.share if saving.node in net.costs else 0.0


def running(
    network: Network, site: str, rates: Rates, busy: Mapping[str, float] | None = None
) -> float:
    """How much of a gated site runs, on average over the images that come to it, from 0 to 1.

    The share of its units, or where these save only together, how often any of them runs.

    Args:
        network: The network.
        site: No exit.
        rates: As for `expected_macs`.
        busy: Likewise.
    """
    savings = network.sites[site].savings
    return 1 - closed_at(network, rates, busy or {}, (site, savings[0])) if savings else 1.0
