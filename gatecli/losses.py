"""Losses that pull the gates to a target rate. Decisions in, a scalar out.

`decisions` maps a site to its gate's decisions z (N, units) in {0, 1}, with a straight-through gradient.
Source: Herrmann et al. 2018, sections 3.1 and S2.2.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FORMS = ("quadratic", "const-quad")


def batch_rate(decisions: Mapping[str, Tensor]) -> Tensor:
    """Mean of z over all gates and instances of the batch."""
    return torch.cat(list(decisions.values()), 1).mean()


def per_batch(decisions: Mapping[str, Tensor], target: float, form: str = "quadratic") -> Tensor:
    """(t - mean of z over all gates and instances)^2; with `const-quad`, zero where that mean is at or below t (S2.2)."""
    return distance(batch_rate(decisions), target, form)


def distance(rate: Tensor, target: float, form: str) -> Tensor:
    """Squared distance of a rate from its target, one-sided for `const-quad`."""
    excess = rate - target
    return (excess.clamp(min=0) if form == "const-quad" else excess).square()
