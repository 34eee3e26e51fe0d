"""A threshold of its own for each site: coordinate descent from the best single threshold.

A heuristic: it may stop short of the best.

A round proposes for each site to let all of its samples run and a few higher thresholds, in the
order of what these would save if nothing else changed; each is measured, and kept if it serves the
goal better: for a target, if that still holds and the cost falls. A site's units share one
threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.calibration.gates.goal import Goal
from gatecli.calibration.gates.grains import in_grains
from gatecli.calibration.gates.points import Measure, Point
from gatecli.calibration.gates.uniform import cuts, thin
from gatecli.network.costs import mean_rate

__all__ = ["Move", "descend"]

ROUNDS = 2
WIDTH = 4  # thresholds tried of a gate that depends on the image, besides the one that lets all run


@dataclass(frozen=True)
class Move:
    """Give all units of a site one threshold.

    Attributes:
        site: Which one.
        tau: The threshold.
        saving: Of the cost of one image, by what the last pass saw.
    """

    site: str
    tau: float
    saving: float


def descend(measure: Measure, best: Point, goal: Goal, rounds: int = ROUNDS) -> Point:
    """The best point found from `best` on, by changing one site's threshold at a time."""
    for number in range(rounds):
        before = best
        with measure.passes(f"gate by gate, round {number + 1}", 1):
            odds = measure.observe(best.thresholds)[1]
        moves = _moves(measure, best, odds)
        with measure.passes(f"gate by gate, round {number + 1}", len(moves)):
            best = _try(measure, odds, moves, best, goal)
        if best is before:
            break
    return best


def _try(
    measure: Measure, odds: dict[str, Tensor], moves: list[Move], best: Point, goal: Goal
) -> Point:
    """Measure the moves in turn and keep those that save, one a site at most."""
    moved: set[str] = set()
    for move in moves:
        if move.site in moved:
            continue
        units = len(best.thresholds[move.site])
        thresholds = {**best.thresholds, move.site: [move.tau] * units}
        trial = measure(in_grains(measure, thresholds, odds))
        if goal.choose([best, trial]) is trial:
            best = trial
            moved.add(move.site)
    return best


def _moves(measure: Measure, best: Point, odds: dict[str, Tensor]) -> list[Move]:
    """What may be worth a pass, what saves most first.

    Running more often saves nothing unless later gates look at what it changes.
    """
    network = measure.network
    moves: list[Move] = []
    for site, gate in network.site_gates.items():
        seen = odds.get(site, torch.empty(0)).flatten()
        for tau in (0.0, *thin(cuts(seen), WIDTH)):
            before = mean_rate(best.rates[site])
            saving = measure.price.saving(network, site, before, _rate_above(seen, tau))
            if saving > 0 or (saving < 0 and gate.data_dependent):
                moves.append(Move(site=site, tau=tau, saving=saving))
    return sorted(moves, key=lambda move: -move.saving)


def _rate_above(odds: Tensor, tau: float) -> float:
    """The share of log-odds (n,) above the threshold `tau`; 1 where there are none."""
    if not len(odds):
        return 1.0
    return (odds > torch.logit(torch.tensor(tau))).double().mean().item()
