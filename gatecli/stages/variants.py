"""Variants of a network that differ in one site, for what the site takes to be timed.

In a *static* one all sites are decided for good, in a *dynamic* one gates that look at images
decide, by thresholds that make them decide alike for all. Exits stay, and nobody leaves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from gatecli import methods
from gatecli.errors import SettingError
from gatecli.gates.exit import Exit
from gatecli.kinds import registry
from gatecli.network import Network, surgery
from gatecli.traced.latency import in_grains
from gatecli.traced.site import SiteDecision

__all__ = ["PARTS", "Variants", "by_kind"]

PARTS = 4  # points of a curve, besides none


def by_kind(network: Network, sites: Iterable[str]) -> list[list[str]]:
    """Sites, those of a kind together."""
    found: dict[str, list[str]] = {}
    for site in sites:
        found.setdefault(network.sites[site].kind, []).append(site)
    return list(found.values())


class Variants:
    """Makes them.

    Attributes:
        sites: Those that can be told apart, in the order in which they run.
        dependent: Those of them whose gates look at images.
        grains: How many units run at a time, by site (gatecli.stages.grains); of others one.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.copy().eval()
        self.sites: list[str] = []
        self.dependent: list[str] = []
        self.grains: dict[str, int] = {}
        for site, gate in self.network.site_gates.items():
            gate.threshold.fill_(math.inf if isinstance(gate, Exit) else 0.0)
            kind = registry.of(self.network.sites[site])
            if kind.leaves or kind.linked:
                continue
            self.sites.append(site)
            if gate.data_dependent:
                self.dependent.append(site)

    def in_part(self, site: str) -> bool:
        """Whether a site's units save one by one."""
        return any(saving.per_unit for saving in self.network.sites[site].savings)

    def counts_of(self, site: str) -> list[int]:
        """How many of a site's units run at the points that are measured, all of them left out."""
        counts = {self.count_at(site, part) for part in range(PARTS)}
        return sorted(counts - {self.network.sites[site].units})

    def count_at(self, site: str, part: int) -> int:
        """How many of a site's units are `part` of PARTS, in multiples of its grain.

        None where they save only together.
        """
        units = self.network.sites[site].units
        if not self.in_part(site):
            return 0
        return in_grains(units * part // PARTS, self.grains.get(site, 1), units)

    def static(self, running: Mapping[str, int]) -> Network | None:
        """All decided: of these sites so many units stay, of the others all.

        None where these sites cannot be removed.
        """
        return self._decided(self._all_gated(), running)

    def dynamic(self, running: Mapping[str, int], but: Sequence[str] = ()) -> Network:
        """Gates that look at images decide.

        Args:
            running: How many of a site's units run; of the others all do.
            but: Sites whose units all run without a gate.
        """
        fixed = [site for site in self._all_gated() if site not in self.dependent or site in but]
        made = self._decided(fixed, {})
        assert made is not None  # nothing was removed
        for site, count in running.items():
            made.site_gates[site].threshold[count:] = 1.0
        return made

    def _all_gated(self) -> list[str]:
        sites = self.network.sites
        return [site for site in self.network.gated_by if not registry.of(sites[site]).leaves]

    def _decided(self, fixed: Sequence[str], running: Mapping[str, int]) -> Network | None:
        decisions = {}
        for site in fixed:
            units = self.network.sites[site].units
            decisions[site] = SiteDecision.of(units, range(running.get(site, units)))
        empty = [site for site, count in running.items() if count == 0]
        if surgery.why_not_removable(self.network.traced, empty):
            return None
        made = self.network.copy().eval()
        try:
            methods.apply_decisions(made, decisions)
        except SettingError:
            if not empty:
                raise
            return None  # each of them could go, but not all
        return made
