"""Units that come for nothing: a runtime computes them by so many at a time.

A site of which 33 units run takes as long as with 48 where they are computed by sixteens. So the
likeliest 15 of those closed run too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gatecli.calibration.gates.points import Measure, Thresholds

__all__ = ["filled", "in_grains"]


def in_grains(measure: Measure, thresholds: Thresholds, odds: Mapping[str, Tensor]) -> Thresholds:
    """Thresholds at which those units run too that the price has for nothing.

    Args:
        measure: Whose gates and price; gates that look at images stay as they are.
        thresholds: Of each unit, by site.
        odds: Log-odds, (N, units), by site.
    """
    found = dict(thresholds)
    for site, gate in measure.network.site_gates.items():
        grain = measure.price.grain(site)
        if grain > 1 and not gate.data_dependent and site in odds:
            found[site] = filled(thresholds[site], odds[site][0], grain)
    return found


def filled(thresholds: Sequence[float], odds: Tensor, grain: int) -> list[float]:
    """Thresholds at which the number of units that run is a multiple of `grain`, or all.

    Args:
        thresholds: Of a site's units.
        odds: Their log-odds, (units,): the likeliest of those that do not run are let run.
        grain: Of which a multiple.
    """
    runs = odds > torch.logit(torch.tensor(thresholds, dtype=odds.dtype).clamp(0, 1))
    lacking = -int(runs.sum()) % grain
    closed = (~runs).nonzero().flatten()
    likeliest = closed[odds[closed].argsort(descending=True, stable=True)]
    found = list(thresholds)
    for unit in likeliest[:lacking].tolist():
        found[unit] = 0.0
    return found
