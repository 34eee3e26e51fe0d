"""What `gatecli prune` does: remove what never runs, and prove that nothing else has changed.

Gates that never close are let go of.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch

from gatecli import methods
from gatecli.errors import SettingError
from gatecli.gates.exit import Exit
from gatecli.kinds import registry
from gatecli.network import Network
from gatecli.network.costs import Rates, expected_macs, known_rates
from gatecli.network.surgery import Decisions
from gatecli.stages.predict import Scores
from gatecli.stages.proof import verify_decisions, verify_logits
from gatecli.stages.prune_plan import How, is_removed, make_plan
from gatecli.traced.recipe import Step
from gatecli.traced.site import SiteDecision

__all__ = [
    "How",
    "Pruned",
    "prune",
    "prune_by",
    "with_scores",
]


@dataclass(frozen=True)
class Pruned:
    """The smaller network, and what was done to which site.

    `removed`: branches gone; `thinned`: sites that have lost some of their units -> which;
    `padded`: those of them where `round_to` has left channels that give zeros -> how many;
    `ungated`: gates gone, all units always run; `freed`: units that always run, and are decided no
    more, of a site that stays dynamic;
    `kept_dynamic`: decided at run time as before; `stuck`: those of them that never run, but cannot
    be taken out -> why.
    `max_logit_change`: against the input with the same units forced, relative to the largest logit,
    on random images. `rates` of what stays dynamic, and the MACs
    that follow: those given to `prune`, until `with_scores` puts measured ones in their place.
    """

    network: Network
    removed: list[str]
    thinned: dict[str, list[int]]
    ungated: list[str]
    freed: dict[str, list[int]]
    kept_dynamic: list[str]
    stuck: dict[str, str]
    params_before: int
    macs_before: int
    max_logit_change: float
    rates: dict[str, list[float]]
    macs_expected: float
    padded: dict[str, int] = field(default_factory=dict)


def prune(
    network: Network,
    *,
    threshold: float | None = None,
    rates: Rates | None = None,
    collapse: float = 0.01,
    static: float | None = None,
    round_to: int = 1,
) -> Pruned:
    """A pruned copy of `network`.

    Filters, and channels of convolutions, are decided one by one; another site of several
    data-dependent units stays dynamic until all of them are decided.

    Args:
        network: a network with gates; it is left as it is.
        threshold: units run where P(on) > threshold, now and in gates that stay; none: each gate's
            own (calibrated, else .5). Exits keep theirs.
        rates: how often each unit of the data-dependent gates runs, measured on validation data at
            that threshold.
        collapse: a data-dependent unit with a rate below it is removed, one above 1 - collapse
            loses its gate.
        static: decide the remaining data-dependent units by rate > static, instead of leaving them
            dynamic.
        round_to: where a branch loses some of its filters, keep as many more, giving zeros, as make
            their number a multiple of this.

    Raises:
        SettingError: A value is out of range, or a data-dependent gate has no rate, or one that
            it cannot have.
        GatecliError: Nothing is gated.
    """
    how = How(threshold=threshold, collapse=collapse, static=static)
    return prune_by(network, how, rates=rates, round_to=round_to)


def prune_by(
    network: Network, how: How, *, rates: Rates | None = None, round_to: int = 1
) -> Pruned:
    """A pruned copy of `network`, see `prune`.

    Args:
        network: As there.
        how: What is decided by, and which sites stay dynamic in any case.
        rates: As there.
        round_to: As there.
    """
    _check(network, how, round_to)
    threshold = how.threshold
    decisions = make_plan(network, rates or {}, how)
    stuck = {site: each for site, each in decisions.items() if each.stuck_because}
    able = {site: each for site, each in decisions.items() if not each.stuck_because}
    smaller = network.copy().eval()
    for site in stuck:
        smaller.site_gates[site].threshold.fill_(1.0)  # P(on) is never above it
    settled = methods.apply_decisions(smaller, able, round_to=round_to)
    if threshold is not None:
        _set_threshold(smaller, threshold, stuck)
    change = verify_logits(network, smaller, decisions)
    verify_decisions(network, smaller, decisions, threshold)
    left = _left_rates(smaller, decisions, rates or known_rates(network))
    result = _result(network, smaller, decisions, left, change)
    result = replace(result, padded=settled.padded)
    settings = {
        "threshold": threshold,
        "collapse": how.collapse,
        "static": how.static,
        "round_to": round_to,
        "plan": {site: list(each.keep) for site, each in able.items()},
        "dynamic": {site: list(each.dynamic) for site, each in able.items() if each.dynamic},
        "wide": settled.wide,
    }
    measured = {
        "params": smaller.params,
        "macs_dense": smaller.macs_dense,
        "macs_expected": result.macs_expected,
        "max_logit_change": change,
        "unit_rates": left,
    }
    smaller.recipe = network.recipe.with_step(Step("prune", settings, measured))
    return result


def _left_rates(smaller: Network, decisions: Decisions, rates: Rates) -> dict[str, list[float]]:
    """The rates of the units that are still decided at run time."""
    left = {}
    for site, units in rates.items():
        if site not in smaller.gated_by:
            continue
        decision = decisions.get(site)
        if decision is None:
            left[site] = list(units)
        elif decision.stuck_because:
            left[site] = [0.0] * len(units)
        else:
            left[site] = [units[unit] for unit in decision.dynamic]
    return left


def _result(
    network: Network,
    smaller: Network,
    decisions: Decisions,
    rates: dict[str, list[float]],
    change: float,
) -> Pruned:
    done = _Done()
    for site in network.gated_by:
        if site in decisions:
            done.add(network, smaller, site, decisions[site])
    return Pruned(
        network=smaller,
        removed=done.removed,
        thinned=done.thinned,
        ungated=done.ungated,
        freed=done.freed,
        kept_dynamic=list(smaller.gated_by),
        stuck=done.stuck,
        params_before=network.params,
        macs_before=network.macs_dense,
        max_logit_change=change,
        rates=rates,
        macs_expected=expected_macs(smaller, rates),
    )


@dataclass(kw_only=True)
class _Done:
    """What was done to which site, see `Pruned`."""

    removed: list[str] = field(default_factory=list)
    thinned: dict[str, list[int]] = field(default_factory=dict)
    ungated: list[str] = field(default_factory=list)
    freed: dict[str, list[int]] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)

    def add(self, network: Network, smaller: Network, site: str, decision: SiteDecision) -> None:
        """Put one site where it belongs."""
        if decision.stuck_because:
            if site in smaller.gated_by:
                self.stuck[site] = decision.stuck_because
            else:  # gone with what was around it
                self.removed.append(site)
            return
        if is_removed(network, site, decision):
            self.removed.append(site)
        elif decision.drop:
            self.thinned[site] = list(decision.drop)
        elif not decision.dynamic and not registry.of(network.sites[site]).leaves:
            self.ungated.append(site)
        if decision.dynamic and decision.keep:
            self.freed[site] = list(decision.keep)


def with_scores(pruned: Pruned, scores: Scores) -> Pruned:
    """The same with the rates that the pruned network itself has on val, here and in its recipe.

    Those that `prune` was given are of the network before: a unit that is decided for good changes
    what the gates behind it see.
    """
    network = pruned.network
    macs = expected_macs(network, scores.rates, scores.busy)
    *earlier, step = network.recipe.steps
    measured = {
        "top1": scores.top1,
        "split": "val",
        "macs_expected": macs,
        "unit_rates": scores.rates,
    }
    network.recipe = replace(
        network.recipe, steps=(*earlier, replace(step, results={**step.results, **measured}))
    )
    return replace(pruned, rates=scores.rates, macs_expected=macs)


def _check(network: Network, how: How, round_to: int) -> None:
    if not network.gated_by:
        raise SettingError(
            "there are no gates to prune by: attach a method first (gatecli attach CHECKPOINT"
            " --method NAME)"
        )
    for name, value, high in (("--collapse", how.collapse, 0.5), ("--static", how.static, 1.0)):
        if value is not None and not 0 <= value <= high:
            raise SettingError(f"expected {name} to be between 0 and {high}, but got {value}")
    if not 1 <= round_to <= 65536:
        raise SettingError(f"expected --round-to to be between 1 and 65536, but got {round_to}")
    if how.threshold is not None and not math.isfinite(how.threshold):
        raise SettingError(f"expected --threshold to be a finite number, but got {how.threshold}")


def _set_threshold(network: Network, threshold: float, but: Collection[str]) -> None:
    """Let all gates decide by `threshold`, as their rates were measured.

    Those of the sites `but` and exits keep their own.
    """
    for site, gate in network.site_gates.items():
        if site not in but and not isinstance(gate, Exit):
            gate.threshold = torch.full_like(gate.threshold, threshold)
