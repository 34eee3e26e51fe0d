"""What sites of a kind save together, with the same share of the units of each running.

A runtime may gain only where several sites go, or lose once for all of them; and two copies of one
network differ by as much as a site may save, which a sum over all sites has as often as there are
sites. So each site's curve is moved, in proportion to the MACs that it saves, until their sum is
what they take together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from gatecli.network import Network
from gatecli.network.costs import Rates
from gatecli.network.price import Milliseconds, times_of
from gatecli.stages.variants import PARTS, Variants, by_kind
from gatecli.traced.latency import Curve, LatencyTable

__all__ = ["Running", "alike", "moved", "parts_of_all", "rates_of"]

Running = Mapping[str, int]  # how many units run, by site; of others all do
ENOUGH = 2  # sites that can differ from their sum


def alike(network: Network, sites: Sequence[str]) -> list[list[str]]:
    """Sites by kind; several of each."""
    return [each for each in by_kind(network, sites) if len(each) >= ENOUGH]


def parts_of_all(variants: Variants, sites: Sequence[str]) -> list[dict[str, int]]:
    """The points at which curves are measured, for all of these sites at once.

    Sites of which all units run there are left out.
    """
    found: list[dict[str, int]] = []
    for part in range(PARTS):
        counts = {site: variants.count_at(site, part) for site in sites}
        whole = variants.network.sites
        running = {site: count for site, count in counts.items() if count < whole[site].units}
        if running and running not in found:
            found.append(running)
    return found


def rates_of(network: Network, sites: Sequence[str], running: Running) -> dict[str, list[float]]:
    """Rates at which so many units of sites run."""
    rates = {}
    for site in sites:
        units = network.sites[site].units
        left = running.get(site, units)
        rates[site] = [1.0] * left + [0.0] * (units - left)
    return rates


def moved(table: LatencyTable, network: Network, running: Running, ms: float) -> LatencyTable:
    """A table in which these units take `ms` more than all do, or less where it is negative.

    Args:
        table: With the curves that count: dynamic ones where there are any.
        network: With the sites.
        running: How many units run of the sites whose curves are moved, at this point alone.
        ms: What a clock says.
    """
    rates = rates_of(network, list(table.sites), running)
    weights = {site: float(network.sites[site].macs) for site in running}
    lacking = ms - _more(table, network, rates)
    weighed = _more(_raised(table, network, running, weights), network, rates)
    each = weighed - _more(table, network, rates)
    if not each:
        return table
    by = {site: weight * lacking / each for site, weight in weights.items()}
    return _raised(table, network, running, by)


def _more(table: LatencyTable, network: Network, rates: Rates) -> float:
    """What a table says that these rates take more than all units running."""
    price = Milliseconds(table)
    return price.of(network, rates) - price.of(network, rates_of(network, list(rates), {}))


def _raised(
    table: LatencyTable, network: Network, running: Running, by: Mapping[str, float]
) -> LatencyTable:
    sites = dict(table.sites)
    for site, ms in by.items():
        share = running[site] / network.sites[site].units
        times = sites[site]
        curve = _raised_at(times_of(times), share, ms)
        if times.dynamic:
            sites[site] = replace(times, dynamic=curve)
        else:
            sites[site] = replace(times, static=curve)
    return replace(table, sites=sites)


def _raised_at(curve: Curve, share: float, ms: float) -> Curve:
    return [[x, y + ms] if math.isclose(x, share, abs_tol=1e-9) else [x, y] for x, y in curve]
