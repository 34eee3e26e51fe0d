"""Losses that pull the gates to a target rate. Decisions in, a scalar out.

`decisions` maps a site to its gate's decisions z (N, units) in {0, 1}, with a straight-through
gradient.

Reference: Herrmann et al. 2018, sections 3.1 and S2.2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = [
    "FORMS",
    "MIRRORED",
    "batch_rate",
    "distance",
    "mean_target",
    "per_batch",
    "per_gate",
]

FORMS = ("quadratic", "const-quad")
MIRRORED = "mirrored const-quad"  # for exits: no penalty at or above the target (section 5)


def batch_rate(decisions: Mapping[str, Tensor]) -> Tensor:
    """Mean of z over all gates and instances of the batch."""
    return torch.cat(list(decisions.values()), 1).mean()


def per_batch(
    decisions: Mapping[str, Tensor], targets: Mapping[str, float], form: str = "quadratic"
) -> Tensor:
    """(t - mean of z over all gates and instances)^2, t the gates' mean target.

    With `const-quad`, zero where that mean is at or below t (S2.2).
    """
    units = {site: z.shape[1] for site, z in decisions.items()}
    return distance(batch_rate(decisions), mean_target(targets, units), form)


def per_gate(
    decisions: Mapping[str, Tensor], targets: Mapping[str, float], form: str = "quadratic"
) -> Tensor:
    """Mean over the gates g of (t_g - mean of z_g over the batch)^2.

    With `const-quad`, a gate at or below its t adds nothing.
    """
    distances = [distance(z.mean(0), targets[site], form) for site, z in decisions.items()]
    return torch.cat(distances).mean()


def mean_target(targets: Mapping[str, float], units: Mapping[str, int]) -> float:
    """The mean target of all units, `units` of them at each site."""
    return sum(targets[site] * count for site, count in units.items()) / sum(units.values())


def distance(rate: Tensor, target: float, form: str) -> Tensor:
    """Squared distance of a rate from its target, elementwise.

    Above the target alone for `const-quad`, below it alone for its mirror image.
    """
    excess = rate - target
    if form == MIRRORED:
        excess = excess.clamp(max=0)
    elif form == "const-quad":
        excess = excess.clamp(min=0)
    return excess.square()
