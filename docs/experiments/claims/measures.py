"""What is measured of a trained network, on the images that are reported on."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import gatecli
from claims.problem import NEW, Problem
from claims.training import Run, Trained
from gatecli.network import Network
from gatecli.stages.evaluate import Evaluation

__all__ = ["decided", "in_all_ways", "on_folds", "simple", "with_thresholds"]

STRATEGIES = ("threshold", "stochastic", "ensemble", "always-on")


def simple(trained: Trained, problem: Problem) -> dict[str, Any]:
    """Accuracy and MACs as the network decides, by fold, and on the split with new fonts."""
    network = trained.network
    seen = on_folds(network, problem)
    new = gatecli.evaluate(network, problem.data, split=NEW)
    return {
        "top1": [each.top1 for each in seen],
        "top1_new": new.top1,
        "macs": statistics.fmean(each.macs_expected for each in seen),
        "macs_dense": network.macs_dense,
        "params": network.params,
        "rate": _rate(seen),
        "spread": _spread(seen),
        "val_top1": gatecli.evaluate(network, problem.data, split="val").top1,
        **trained.learning(),
    }


def decided(run: Run) -> dict[str, Any]:
    """Train, and measure accuracy and MACs as the network decides."""
    return simple(run.train(), run.problem)


def in_all_ways(run: Run) -> dict[str, Any]:
    """The same by each way of deciding, and how often the first and last third of sites run."""
    trained, problem = run.train(), run.problem
    found = simple(trained, problem)
    for strategy in STRATEGIES[1:]:
        found[f"top1_{strategy}"] = found["top1"]  # without gates all are alike
        found[f"rate_{strategy}"] = found["rate"]
        if trained.network.gated_by:
            seen = on_folds(trained.network, problem, strategy)
            found[f"top1_{strategy}"] = [each.top1 for each in seen]
            found[f"rate_{strategy}"] = _rate(seen)
    rates = _site_rates(on_folds(trained.network, problem))
    third = len(rates) // 3
    if third:
        found["rate_first"] = statistics.fmean(rates[:third])
        found["rate_last"] = statistics.fmean(rates[-third:])
    return found


def on_folds(network: Network, problem: Problem, strategy: str = "threshold") -> list[Evaluation]:
    """The network on each fold of the images reported on."""
    return [
        gatecli.evaluate(network, problem.data, split=fold, strategy=strategy)
        for fold in problem.folds
    ]


def with_thresholds(network: Network, value: float) -> Network:
    """A copy whose exits all have this threshold; infinity: nobody leaves."""
    copy = network.copy().eval()
    for gate in copy.site_exits.values():
        gate.threshold.fill_(value)
    return copy


def _rate(seen: Sequence[Evaluation]) -> float:
    """Mean rate over all units; 1 without gates."""
    units = [unit for each in seen for rates in each.rates.values() for unit in rates]
    return statistics.fmean(units) if units else 1.0


def _site_rates(seen: Sequence[Evaluation]) -> list[float]:
    """Each site's mean rate, in their order in the network."""
    found = []
    for site in seen[0].rates:
        found.append(statistics.fmean(unit for each in seen for unit in each.rates[site]))
    return found


def _spread(seen: Sequence[Evaluation]) -> float:
    """How many times the cheapest image's MACs the dearest one takes."""
    least = min((each.macs_spread["min"] for each in seen if each.macs_spread), default=1.0)
    most = max((each.macs_spread["max"] for each in seen if each.macs_spread), default=1.0)
    return most / least
