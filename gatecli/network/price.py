"""What thresholds and target rates shall hold down: MACs, or milliseconds by a table.

    ms = ms with all units running + shared + sum over sites of ms(share of units that run)

where a site that is decided by the image pays for its gate too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from gatecli.network.costs import Rates, closed_at, expected_macs
from gatecli.network.network import Network
from gatecli.traced.latency import LatencyTable, SiteTimes, curve_at

__all__ = ["Macs", "Milliseconds", "Price", "running"]


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

    def least(self, network: Network) -> float:
        """The cost with nothing running that a gate decides about."""
        gates = network.site_gates
        return self.of(network, {site: [0.0] * gate.units for site, gate in gates.items()})

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
        for site, times in self.table.sites.items():
            cost += curve_at(_curve(times), running(network, site, rates, busy))
        return cost

    def saving(self, network: Network, site: str, before: float, after: float) -> float:
        if site not in self.table.sites:
            return 0.0
        curve = _curve(self.table.sites[site])
        return curve_at(curve, before) - curve_at(curve, after)


def _curve(times: SiteTimes) -> list[list[float]]:
    """What the site's gate makes of it."""
    return times.dynamic or times.static


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
