"""What a network costs on average, from what it costs with everything running and from how often
each site runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gatecli.errors import CheckpointError
from gatecli.gates import Gate
from gatecli.graph.sites import Site
from gatecli.network import Network
from gatecli.record import RateMeter

Rates = Mapping[str, Sequence[float]]  # site -> the rate of each unit


def expected_macs(network: Network, rates: Rates, busy: Mapping[str, float] | None = None) -> float:
    """Mean MACs of one image where each gated site's units run at their rates.

    Sites without rates count in full. Gates and exits are included.

    Rates are shares of all samples: one that has left by an exit runs nothing behind it.
    busy: site -> how often any of its units ran; where it is not known, the units are taken to be
        independent of each other.
    """
    saved = 0.0
    for name, units in rates.items():
        if name not in network.methods:
            continue
        site, here = network.sites[name], reach(network, name, rates)
        if site.kind == "exit":
            saved += site.macs * units[0]
            continue
        inside = _share(network, name, rates)
        any_ = (
            busy[name]
            if busy and name in busy
            else here * (1 - math.prod(1 - rate / here if here else 1.0 for rate in units))
        )
        saved += inside * (
            site.shared_macs * (here - any_) + site.unit_macs * sum(here - rate for rate in units)
        )
    return network.macs_dense - saved


class CostMeter(RateMeter):
    """Counts also what each sample costs, in the order in which samples come.

    An observer for gatecli.inference.predict, which keeps `total`.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self._batch, self._costs = network, -1, list[Tensor]()
        self._seen = dict[
            str, tuple[Tensor, Tensor]
        ]()  # of the latest batch: site -> which samples had not left by an exit, and their z
        self._outer = {site: around(network, site) for site in network.methods}

    def __call__(self, gate: Gate, z: Tensor, odds: Tensor | None) -> None:
        super().__call__(gate, z, odds)
        z = z.detach().double()
        if self.total != self._batch:
            self._count_batch()
            self._batch, self._here = (
                self.total,
                torch.arange(len(z), device=z.device),
            )  # before the first exit all samples are here
        self._seen[gate.site] = self._here, z
        if self.network.sites[gate.site].kind == "exit":
            self._here = self._here[z[:, 0] == 0]

    def costs(self) -> Tensor:
        """MACs of each sample, those of gates and exits included: (samples,), float64.

        Empty where nothing is gated.
        """
        self._count_batch()
        return torch.cat(self._costs) if self._costs else torch.empty(0, dtype=torch.float64)

    def _count_batch(self) -> None:
        if not self._seen:
            return
        first, _ = next(iter(self._seen.values()))
        costs = torch.full(
            (len(first),), float(self.network.macs_dense), dtype=torch.float64, device=first.device
        )
        for name, (here, z) in self._seen.items():
            site, runs = self.network.sites[name], torch.ones_like(costs)
            for outer in [outer for outer in self._outer[name] if outer in self._seen]:
                there, outer_z = self._seen[outer]
                runs[there] *= outer_z.amax(1)
            costs[here] -= runs[here] * (
                site.macs * z[:, 0] if site.kind == "exit" else _saved(site, z)
            )
        self._costs.append(costs.cpu())
        self._seen = {}


def _saved(site: Site, z: Tensor) -> Tensor:
    """What each sample saves at a site by decisions z (N, units): (N,)."""
    return site.shared_macs * (1 - z.amax(1)) + site.unit_macs * (1 - z).sum(1)


def spread_of(costs: Tensor) -> dict[str, float]:
    """How samples' costs (N,) lie: mean, standard deviation, the extremes and quantiles."""
    ranks = {
        "min": 0.0,
        "p05": 0.05,
        "p25": 0.25,
        "median": 0.5,
        "p75": 0.75,
        "p95": 0.95,
        "max": 1.0,
    }
    return {
        "mean": costs.mean().item(),
        "std": costs.std(correction=0).item(),
        **{name: torch.quantile(costs, rank).item() for name, rank in ranks.items()},
    }


def leaving_costs(network: Network, decisions: Mapping[str, Tensor]) -> Tensor:
    """What each sample costs that leaves at each exit in turn, and one that leaves nowhere.

    (N, E + 1), float64.

    decisions: the gates' z (N, units) by site, of all samples, nobody having left; exits are left
        out.
    """
    exits = list(network.site_exits)
    count = len(next(iter(decisions.values()))) if decisions else 1
    costs = torch.empty(count, len(exits) + 1, dtype=torch.float64)
    for number, name in enumerate([*exits, None]):
        costs[:, number] = network.macs_dense - (0 if name is None else network.sites[name].macs)
        for site, z in decisions.items():
            place = network.sites[site]
            if name is None or name not in network.before(site):
                runs = (
                    torch.stack(
                        [
                            decisions[outer].amax(1)
                            for outer in around(network, site)
                            if outer in decisions
                        ]
                        or [torch.ones(count)]
                    )
                    .amin(0)
                    .double()
                )
                costs[:, number] -= runs * _saved(place, z.double())
    return costs


def reach(network: Network, site: str, rates: Rates) -> float:
    """The share of all samples that come to a site, rather than leave before it."""
    return max(0.0, 1 - sum(rates[name][0] for name in network.before(site) if name in rates))


def around(network: Network, site: str) -> list[str]:
    """The gated branches that a site lies in.

    What it could save is saved already where one of them is skipped.
    """
    value = network.sites[site].value
    return [
        name
        for name in network.methods
        if name != site
        and network.sites[name].kind in ("block", "layer")
        and value in network.sites[name].branch
    ]


def _share(network: Network, site: str, rates: Rates) -> float:
    """How often, of the samples that come there, the branches around a site run.

    Taken to be independent of what its own gate says.
    """
    known = [
        name for name in around(network, site) if name in rates and reach(network, name, rates)
    ]
    return math.prod(max(rates[name]) / reach(network, name, rates) for name in known)


def mean_rate(units: Sequence[float]) -> float:
    return sum(units) / len(units)


def overall_rate(rates: Rates) -> float:
    """Mean over all gated units, the achieved rate; 1 where there are none."""
    return mean_rate([rate for units in rates.values() for rate in units]) if rates else 1.0


def site_rates(rates: Rates) -> dict[str, float]:
    """The mean activation of each site, as reports give it."""
    return {site: mean_rate(units) for site, units in rates.items()}


def known_rates(network: Network) -> dict[str, list[float]]:
    """Rates that need no data: those recorded by the latest step that measured them.

    Where none has, gates are as attached, all open.

    Raises: CheckpointError where the recipe records something else for a site.
    """
    step = network.recipe.last("finetune", "calibrate", "prune")
    recorded = step.results.get("unit_rates", {}) if step is not None else {}
    rates = {}
    for site, gate in network.site_gates.items():
        units = (
            recorded.get(site, [gate.fresh_rate] * gate.units)
            if isinstance(recorded, dict)
            else None
        )
        if (
            not isinstance(units, list)
            or len(units) != gate.units
            or not all(isinstance(rate, (int, float)) and 0 <= rate <= 1 for rate in units)
        ):
            raise CheckpointError(
                f"expected the recipe to record {gate.units} rates between 0 and 1 for `{site}`,"
                f" but it has {units!r}: the file is damaged"
            )
        rates[site] = units
    return rates
