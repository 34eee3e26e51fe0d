"""Gates: what decides whether a site's units run, and the estimators that train such decisions.

A gate's forward returns decisions z of shape (N, units), 1 = run, 0 = skip, as float tensor. In training z is sampled and carries
a straight-through gradient; in evaluation it is decided by the gate's `strategy`.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRATEGIES = ("threshold", "stochastic", "always-on")
Observer = Callable[["Gate", Tensor, "Tensor | None"], None]


def gumbel_decision(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Sample 0/1 decisions with the straight-through Gumbel-softmax.

    Args: logits (..., 2) for [off, on]. Returns (...): hard 0/1 forward, the soft sample's gradient backward.
    Source: Jang et al. 2017, as used by Herrmann et al. 2018, section 3, and Veit & Belongie 2018.
    """
    return F.gumbel_softmax(logits.float(), tau=temperature, hard=True)[..., 1]


class Gate(nn.Module):
    """Base of all gates: subclasses give `scores(x)`, its [off, on] logits; this class decides, records and obeys `force`.

    Attributes:
        site: the name of the site gated. units: how many units it decides.
        threshold: buffer (units,), a unit runs where P(on) > threshold; .5 until calibrated.
        data_dependent: whether decisions depend on the input.
        strategy: how evaluation decides, one of STRATEGIES.
        observer: called with (gate, decisions, log-odds) at every forward, see gatecli.record.
        forced: decisions (units,) or (N, units) that override the gate's own, see gatecli.record.force.
    """

    threshold: Tensor
    data_dependent = True

    def __init__(self, site: str, units: int) -> None:
        super().__init__()
        self.site, self.units = site, units
        self.register_buffer("threshold", torch.full((units,), 0.5))
        self.strategy = "threshold"
        self.observer: Observer | None = None
        self.forced: Tensor | None = None

    def scores(self, x: Tensor) -> Tensor:
        """Trainable [off, on] logits: (N, units, 2)."""
        raise NotImplementedError

    def log_odds(self, x: Tensor) -> Tensor:
        """Log-odds of running in evaluation, (N, units). Subclasses may compute it in a folded, faster way."""
        pair = self.scores(x)
        return pair[..., 1] - pair[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        z, odds = self._decide(x)
        if self.observer is not None:
            self.observer(self, z, odds)
        return z

    def _decide(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.forced is not None:
            return self.forced.to(x.device, torch.float32).expand(x.shape[0], self.units), None
        if self.training:
            pair = self.scores(x)
            return gumbel_decision(pair), pair[..., 1] - pair[..., 0]
        if self.strategy == "always-on":
            return torch.ones(x.shape[0], self.units, device=x.device), None
        with torch.no_grad():
            odds = self.log_odds(x)
            if self.strategy == "stochastic":
                return torch.bernoulli(odds.sigmoid()), odds
            # logit(T) is -inf at T <= 0 and +inf at T >= 1: always, and never
            return (odds > torch.logit(self.threshold.clamp(0, 1))).float(), odds
