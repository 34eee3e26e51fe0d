"""prune: remove what never runs, let go of gates that never close, and prove that nothing else has changed."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gatecli import methods
from gatecli.costs import Rates, expected_macs, known_rates, reach
from gatecli.errors import GatecliError, SettingError
from gatecli.gates import Exit
from gatecli.network import Network
from gatecli.probe import logits, random_images, relative_change
from gatecli.recipe import Step
from gatecli.record import force, in_evaluation

TOLERANCE = 1e-4  # of the largest logit: above this, prune has broken something and writes nothing


@dataclass(frozen=True)
class Pruned:
    """The smaller network, and what was done to which site.

    `removed`: branches gone; `thinned`: sites that have lost some of their units -> which; `ungated`: gates gone, all units always run;
    `kept_dynamic`: decided at run time as before; `mixed`: those of them that run for some units, the others being `open` or `closed` for good; `stuck`: those of them that never run, but cannot be taken out -> why.
    `max_logit_change`: against the input with the same units forced, relative to the largest logit, on random images.
    """

    network: Network
    removed: list[str]
    thinned: dict[str, list[int]]
    ungated: list[str]
    kept_dynamic: list[str]
    mixed: dict[str, dict[str, list[int]]]
    stuck: dict[str, str]
    params_before: int
    macs_before: int
    max_logit_change: float
    rates: dict[str, list[float]]

    @property
    def macs_expected(self) -> float:
        return expected_macs(self.network, self.rates)


def prune(
    network: Network, *, threshold: float | None = None, rates: Rates | None = None, collapse: float = 0.01, static: float | None = None, round_to: int = 1
) -> Pruned:
    """A pruned copy of `network`.

    Args:
        threshold: units of data-independent gates run where P(on) > threshold; none: each gate's own (calibrated, else .5).
        rates: how often each unit of the data-dependent gates runs, measured on validation data.
        collapse: a data-dependent unit with a rate below it is removed, one above 1 - collapse loses its gate.
        static: decide the remaining data-dependent units by rate > static, instead of leaving them dynamic.
        round_to: where a branch loses some of its filters, keep as many more, giving zeros, as make their number a multiple of this.
    A site of several data-dependent units stays dynamic until all of them are decided, unless its method `mixes`.
    Raises: SettingError for values out of range, and where a data-dependent gate has no rate; GatecliError if nothing is gated.
    """
    _check(network, threshold, collapse, static, round_to)
    plan = make_plan(network, threshold, rates or {}, collapse, static)
    plan = _shortened(network, plan)
    stuck = {site: why for site, kept in plan.items() if not kept and (why := network.why_not_removable(site)) is not None}
    plan = {site: kept for site, kept in plan.items() if site not in stuck}
    mixed = _mixed(network, plan, rates or {}, collapse)
    smaller = network.copy().eval()
    for site in stuck:
        smaller.site_gates[site].threshold.fill_(1.0)  # P(on) is never above it
    methods.apply_plan(smaller, plan, round_to, mixed)
    with _settled(network, mixed):
        change = _verify(network, smaller, {**plan, **{site: [] for site in stuck}})
    left = {site: [0.0] * len(units) if site in stuck else list(units) for site, units in (rates or known_rates(network)).items() if site in smaller.methods}
    left.update({site: [rate for unit, rate in enumerate(left[site]) if unit not in units["open"] + units["closed"]] for site, units in mixed.items()})
    units = {site: gate.units for site, gate in network.site_gates.items()}
    ends = [site for site, kept in plan.items() if kept and network.sites[site].kind == "exit"]
    result = Pruned(
        smaller, [site for site, kept in plan.items() if not kept],
        {site: [unit for unit in range(units[site]) if unit not in kept] for site, kept in plan.items() if 0 < len(kept) < units[site]},
        [site for site, kept in plan.items() if len(kept) == units[site] and site not in ends], list(smaller.methods), mixed, stuck, network.params, network.macs_dense, change, left,
    )  # fmt: skip
    settings = {"threshold": threshold, "collapse": collapse, "static": static, "round_to": round_to, "plan": plan, "mixed": mixed}
    measured = {"params": smaller.params, "macs_dense": smaller.macs_dense, "macs_expected": result.macs_expected, "max_logit_change": change, "unit_rates": left}
    smaller.recipe = network.recipe.with_step(Step("prune", settings, measured))
    return result


def _shortened(network: Network, plan: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The plan without what lies behind an exit at which everybody leaves."""
    ends = [site for site, kept in plan.items() if kept and network.sites[site].kind == "exit"]
    return {site: kept for site, kept in plan.items() if not set(network.before(site)) & set(ends)}


def _check(network: Network, threshold: float | None, collapse: float, static: float | None, round_to: int) -> None:
    if not network.methods:
        raise SettingError("there are no gates to prune by: attach a method first (gatecli attach CHECKPOINT --method NAME)")
    for name, value, high in (("--collapse", collapse, 0.5), ("--static", static, 1.0)):
        if value is not None and not 0 <= value <= high:
            raise SettingError(f"expected {name} to be between 0 and {high}, but got {value}")
    if not 1 <= round_to <= 65536:
        raise SettingError(f"expected --round-to to be between 1 and 65536, but got {round_to}")
    if threshold is not None and not math.isfinite(threshold):
        raise SettingError(f"expected --threshold to be a finite number, but got {threshold}")


def make_plan(network: Network, threshold: float | None, rates: Rates, collapse: float, static: float | None) -> dict[str, list[int]]:
    """Which units each decided site keeps: site -> kept units, sites that stay dynamic left out."""
    plan: dict[str, list[int]] = {}
    for site, gate in network.site_gates.items():
        if isinstance(gate, Exit):
            decided = _exit(network, site, gate, rates, collapse)
            if decided is not None:
                plan[site] = decided
            continue
        runs = methods.get(network.methods[site]).decided(network, site, threshold)
        if runs is None:
            runs = _by_rate(site, rates, collapse, static)
        if runs is not None:
            plan[site] = [unit for unit, run in enumerate(runs) if run]
    return plan


def _by_rate(site: str, rates: Rates, collapse: float, static: float | None) -> list[bool] | None:
    if site not in rates:
        raise SettingError(f"the gate at `{site}` depends on the image, so prune needs its rate: name a data set with --data (rates are measured on its val split)")
    units: Sequence[float] = rates[site]
    if static is not None:
        return [rate > static for rate in units]
    if all(rate < collapse or rate > 1 - collapse for rate in units):
        return [rate > 0.5 for rate in units]
    return None


def _mixed(network: Network, plan: Mapping[str, list[int]], rates: Rates, collapse: float) -> dict[str, dict[str, list[int]]]:
    """Of sites that stay dynamic, whose methods allow it, the units that are decided."""
    found = {}
    for site, method in network.methods.items():
        if site not in plan and methods.get(method).mixes:
            units = {"open": [unit for unit, rate in enumerate(rates[site]) if rate > 1 - collapse], "closed": [unit for unit, rate in enumerate(rates[site]) if rate < collapse]}
            found.update({site: units} if units["open"] or units["closed"] else {})
    return found


@contextmanager
def _settled(network: Network, mixed: Mapping[str, Mapping[str, list[int]]]) -> Iterator[None]:
    """Let these units always, or never, run inside the block, by thresholds that every P(on) is above, or none."""
    gates = {site: network.site_gates[site] for site in mixed}
    before = {site: gate.threshold for site, gate in gates.items()}
    for site, gate in gates.items():
        gate.threshold = gate.threshold.clone()
        gate.threshold[mixed[site]["open"]] = 0.0
        gate.threshold[mixed[site]["closed"]] = 1.0
    try:
        yield
    finally:
        for site, gate in gates.items():
            gate.threshold = before[site]


def _exit(network: Network, site: str, exit_: Exit, rates: Rates, collapse: float) -> list[int] | None:
    """[]: the exit goes, as nobody takes it; [0]: what lies behind it goes, as everybody does who comes to it; None: it stays."""
    if bool(exit_.threshold.isposinf().all()):
        return []
    if site not in rates:
        raise SettingError(f"how many leave at `{site}` depends on the images: name a data set with --data (rates are measured on its val split)")
    come, leave = reach(network, site, rates), rates[site][0]
    if leave < collapse:
        return []
    return [0] if leave > (1 - collapse) * come else None


def _verify(network: Network, smaller: Network, plan: Mapping[str, list[int]]) -> float:
    gates = network.site_gates
    decisions = {site: [int(unit in kept) for unit in range(gates[site].units)] for site, kept in plan.items()}
    images = random_images(network)
    with in_evaluation(network), force(network, decisions):
        change = relative_change(logits(network, images), logits(smaller, images))
    if not change <= TOLERANCE:
        raise GatecliError(f"the pruned network's logits differ by {change:.1e} of the largest logit from the gated network's: this is a bug in gatecli; nothing was written")
    return change
