"""Variants of a network that differ in one site, for what the site takes to be timed.

In a *static* one all sites are decided for good, in a *dynamic* one gates that look at images
decide, by thresholds that make them decide alike for all. Exits stay, and nobody leaves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gatecli import methods
from gatecli.gates.exit import Exit
from gatecli.kinds import registry
from gatecli.network import Network, surgery
from gatecli.traced.site import SiteDecision

__all__ = ["PARTS", "Variants", "count_at", "counts_of"]

PARTS = 4  # points of a curve, besides none


def counts_of(network: Network, site: str) -> list[int]:
    """How many of a site's units run at the points that are measured, all of them left out."""
    return sorted({count_at(network, site, part) for part in range(PARTS)})


def count_at(network: Network, site: str, part: int) -> int:
    """How many of a site's units are `part` of PARTS; none where they save only together."""
    place = network.sites[site]
    in_part = any(saving.per_unit for saving in place.savings)
    return place.units * part // PARTS if in_part else 0


class Variants:
    """Makes them.

    Attributes:
        sites: Those that can be told apart, in the order in which they run.
        dependent: Those of them whose gates look at images.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.copy().eval()
        self.sites: list[str] = []
        self.dependent: list[str] = []
        for site, gate in self.network.site_gates.items():
            gate.threshold.fill_(math.inf if isinstance(gate, Exit) else 0.0)
            kind = registry.of(self.network.sites[site])
            if kind.leaves or kind.linked:
                continue
            self.sites.append(site)
            if gate.data_dependent:
                self.dependent.append(site)

    def static(self, running: Mapping[str, int]) -> Network | None:
        """All decided: of these sites so many units stay, of the others all.

        None where a site cannot be removed.
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
        methods.apply_decisions(made, decisions)
        return made
