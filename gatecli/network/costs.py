"""What a network costs on average, for each image, and where it is left early: one formula.

    E[MACs] = sum over nodes n of macs(n) E[product over the sites s that save n of
                                             1 - share_s closed_s]

What a site saves of which nodes its kind has said (gatecli.traced.site.Saving); no kind is known
here. `closed` is a site's share of closed units, or where these save only together, whether all
are; of an exit, whether it is taken. It is exact from decisions; rates are taken as independent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatecli import together
from gatecli.errors import CheckpointError
from gatecli.gates.decider import Decider
from gatecli.gates.observe import RateMeter
from gatecli.network.network import Network
from gatecli.traced.site import Saving
from gatecli.traced.traced import Traced

__all__ = [
    "CostMeter",
    "Part",
    "Rates",
    "closed_at",
    "expected_macs",
    "exits_before",
    "gate_macs",
    "known_rates",
    "leaving_costs",
    "mean_rate",
    "overall_rate",
    "parts_of",
    "reach",
    "site_rates",
    "spread_of",
    "total",
]

Rates = Mapping[str, Sequence[float]]  # site -> the rate of each unit
Key = tuple[str, float, bool, bool]  # a site, and what it saves


@dataclass(frozen=True, kw_only=True)
class Part:
    """MACs of nodes that the same sites save in the same way."""

    macs: float
    savings: tuple[tuple[str, Saving], ...]


def gate_macs(net: Traced, site: str) -> int:
    """MACs of one image that a site's gate, or an exit with its classifier, costs itself."""
    owned = {f"gates.{site}", f"exits.{site}"}
    nodes = [node for node in net.graph.nodes if node.op == "call_module"]
    return net.macs([node.name for node in nodes if node.target in owned])


def parts_of(net: Traced) -> list[Part]:
    """All nodes, grouped by what is saved of them; sites without gates save nothing."""
    by_node: dict[str, list[tuple[str, Saving]]] = defaultdict(list)
    for name in net.gated_by:
        for saving in net.sites[name].savings:
            by_node[saving.node].append((name, saving))
    macs: dict[tuple[Key, ...], int] = defaultdict(int)
    savings: dict[tuple[Key, ...], tuple[tuple[str, Saving], ...]] = {}
    for node, cost in net.costs.items():
        key = tuple(_key(name, saving) for name, saving in by_node[node])
        macs[key] += cost.macs
        savings[key] = tuple(by_node[node])
    return [Part(macs=count, savings=savings[key]) for key, count in macs.items() if count]


def _key(site: str, saving: Saving) -> Key:
    return site, saving.share, saving.per_unit, saving.when_taken


def total(parts: Sequence[Part], closed: Callable[[str, Saving], Any]) -> Any:
    """The formula: numbers, or tensors (N,), as `closed` (site, saving) gives them."""
    result: Any = 0.0
    for part in parts:
        left: Any = 1.0
        for site, saving in part.savings:
            left = left * (1 - saving.share * closed(site, saving))
        result = result + part.macs * left
    return result


# --- from rates ---


def expected_macs(network: Network, rates: Rates, busy: Mapping[str, float] | None = None) -> float:
    """Mean MACs of one image where each gated site's units run at their rates.

    Gates and exits are included.

    Args:
        network: The network.
        rates: Shares of all samples: one that has left by an exit runs nothing behind it. Sites
            without rates count in full.
        busy: Site -> how often any of its units ran; where it is not known, the units are taken to
            be independent of each other.
    """

    def closed(site: str, saving: Saving) -> float:
        return closed_at(network, rates, busy or {}, (site, saving))

    return float(total(parts_of(network.traced), closed))


def closed_at(
    network: Network, rates: Rates, busy: Mapping[str, float], part: tuple[str, Saving]
) -> float:
    """How much of what a site may save, `part`, it does save at rates as for `expected_macs`."""
    site, saving = part
    if site not in rates:
        return 0.0
    here = reach(network, site, rates)
    if here <= 0:
        return 0.0 if saving.when_taken else 1.0
    units = [min(1.0, rate / here) for rate in rates[site]]
    if saving.when_taken:
        return units[0]
    if saving.per_unit:
        return 1 - sum(units) / len(units)
    if site in busy:
        return 1 - min(1.0, busy[site] / here)
    return math.prod(1 - rate for rate in units)


def exits_before(net: Traced, site: str) -> list[str]:
    """The exits in use at which a sample may have left before it comes to a site."""
    place = net.sites[site].value or net.sites[site].entry
    found = []
    for name in net.gated_by:
        saved = [saving.node for saving in net.sites[name].savings if saving.when_taken]
        if name != site and place in saved:
            found.append(name)
    return found


def reach(network: Network, site: str, rates: Rates) -> float:
    """The share of all samples that come to a site, rather than leave before it."""
    before = exits_before(network.traced, site)
    return max(0.0, 1 - sum(rates[name][0] for name in before if name in rates))


class CostMeter(RateMeter):
    """Counts also what each sample costs, in the order in which samples come.

    An observer for gatecli.stages.predict.predict, which keeps `total`.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self._net, self._parts = network.traced, parts_of(network.traced)
        self._batch = -1
        self._costs: list[Tensor] = []
        # Of the latest batch: site -> which samples had not left by an exit, and their decisions.
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, gate: Decider, z: Tensor, odds: Tensor | None) -> None:
        super().__call__(gate, z, odds)
        z = z.detach().double()
        if self.total != self._batch:
            self._count_batch()
            self._batch = self.total
            self._here = torch.arange(len(z), device=z.device)  # before the first exit all are here
        self._seen[gate.site] = self._here, z
        if any(saving.when_taken for saving in self._net.sites[gate.site].savings):
            self._here = self._here[z[:, 0] == 0]

    def gather(self) -> None:
        self._count_batch()
        self._costs = together.in_order(self._costs)
        super().gather()

    def costs(self) -> Tensor:
        """MACs of each sample, those of gates and exits included.

        Returns:
            (samples,), float64; empty where nothing is gated.
        """
        self._count_batch()
        return torch.cat(self._costs) if self._costs else torch.empty(0, dtype=torch.float64)

    def _count_batch(self) -> None:
        if not self._seen:
            return
        first, _ = next(iter(self._seen.values()))
        cost = total(self._parts, self._closed) + first.new_zeros(len(first), dtype=torch.float64)
        self._costs.append(cost.cpu())
        self._seen = {}

    def _closed(self, site: str, saving: Saving) -> Any:
        if site not in self._seen:
            return 0.0
        here, z = self._seen[site]
        first, _ = next(iter(self._seen.values()))
        result = first.new_zeros(len(first), dtype=torch.float64)
        result[here] = _closed(z, saving)
        return result


def _closed(z: Tensor, saving: Saving) -> Tensor:
    """How much of what a site may save its decisions z (N, units) do save: (N,)."""
    if saving.when_taken:
        return z[:, 0]
    return 1 - (z.mean(1) if saving.per_unit else z.amax(1))


def leaving_costs(network: Network, decisions: Mapping[str, Tensor]) -> Tensor:
    """What each sample costs that leaves at each exit in turn, and one that leaves nowhere.

    Args:
        network: The network.
        decisions: The gates' z (N, units) by site, of all samples, nobody having left; exits are
            left out.

    Returns:
        (N, E + 1), float64.
    """
    parts = parts_of(network.traced)
    exits = list(network.site_exits)
    count = len(next(iter(decisions.values()))) if decisions else 1
    costs = torch.empty(count, len(exits) + 1, dtype=torch.float64)
    for number, name in enumerate([*exits, None]):

        def closed(site: str, saving: Saving, leaves_at: str | None = name) -> Any:
            if saving.when_taken:
                return float(site == leaves_at)
            return _closed(decisions[site].double(), saving) if site in decisions else 0.0

        costs[:, number] = total(parts, closed)
    return costs


def spread_of(costs: Tensor) -> dict[str, float]:
    """How samples' costs (N,) lie: mean, standard deviation, the extremes and quantiles."""
    ranks = {"min": 0.0, "p05": 0.05, "p25": 0.25, "median": 0.5}
    ranks |= {"p75": 0.75, "p95": 0.95, "max": 1.0}
    result = {"mean": costs.mean().item(), "std": costs.std(correction=0).item()}
    for name, rank in ranks.items():
        result[name] = torch.quantile(costs, rank).item()
    return result


def mean_rate(units: Sequence[float]) -> float:
    """The mean of a site's rates."""
    return sum(units) / len(units)


def overall_rate(rates: Rates) -> float:
    """Mean over all gated units, the achieved rate; 1 where there are none."""
    units: list[float] = []
    for site in rates.values():
        units += site
    return mean_rate(units) if units else 1.0


def site_rates(rates: Rates) -> dict[str, float]:
    """The mean activation of each site, as reports give it."""
    return {site: mean_rate(units) for site, units in rates.items()}


def known_rates(network: Network) -> dict[str, list[float]]:
    """Rates that need no data: those recorded by the latest step that measured them.

    Where none has, gates are as attached, all open.

    Raises:
        CheckpointError: The recipe records something else for a site.
    """
    step = network.recipe.last("finetune", "calibrate", "prune")
    recorded = step.results.get("unit_rates", {}) if step is not None else {}
    rates = {}
    for site, gate in network.site_gates.items():
        fresh = [gate.fresh_rate] * gate.units
        units = recorded.get(site, fresh) if isinstance(recorded, dict) else None
        if not isinstance(units, list) or not _are_rates(units, gate.units):
            raise CheckpointError(
                f"expected the recipe to record {gate.units} rates between 0 and 1 for `{site}`,"
                f" but it has {units!r}: the file is damaged"
            )
        rates[site] = units
    return rates


def _are_rates(units: Sequence[Any], count: int) -> bool:
    numbers = [rate for rate in units if isinstance(rate, (int, float)) and 0 <= rate <= 1]
    return len(units) == len(numbers) == count
