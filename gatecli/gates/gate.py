"""Gates: what decides whether a site's units run.

A gate's forward returns decisions z of shape (N, units), 1 = run, 0 = skip, as float tensor. In
training z is sampled and carries a straight-through gradient; in evaluation it is decided by the
gate's `strategy`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gatecli.gates.cache import Remembered
from gatecli.gates.decider import Decider
from gatecli.gates.estimators import gumbel_decision
from gatecli.gates.noise import coin

__all__ = ["Gate"]


class Gate(Decider):
    """Base of all gates: subclasses give `scores(x)`, its [off, on] logits.

    A unit runs where P(on) > threshold, 1/2 until calibrated.
    """

    def __init__(self, site: str, units: int) -> None:
        super().__init__(site, units)
        self._limit = Remembered()

    def scores(self, x: Tensor) -> Tensor:
        """Trainable [off, on] logits: (N, units, 2)."""
        raise NotImplementedError

    def sampled(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What training decides: z (N, units) with a gradient, and the log-odds.

        The log-odds are (N, units) too; None where there are none.
        """
        pair = self.scores(x)
        return gumbel_decision(pair), pair[..., 1] - pair[..., 0]

    def log_odds(self, x: Tensor) -> Tensor:
        """Log-odds of running in evaluation, (N, units).

        Subclasses may compute it in a folded, faster way.
        """
        pair = self.scores(x)
        return pair[..., 1] - pair[..., 0]

    def probability(self, odds: Tensor) -> Tensor:
        """P(on) as training draws, of log-odds in evaluation, both (N, units): for `stochastic`."""
        return odds.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        z, odds = self._decide(x)
        self.report(z, odds)
        return z

    def _decide(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.forced is not None:
            return self.obeyed(x), None
        if self.training:
            return self.sampled(x)
        if self.strategy == "always-on":
            return x.new_ones(x.shape[0], self.units), None
        # Entering no_grad takes as long as an operation, and gates are made of few of these.
        if not torch.is_grad_enabled():
            return self._evaluate(x)
        with torch.no_grad():
            return self._evaluate(x)

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        odds = self.log_odds(x)
        if self.strategy == "stochastic":
            return coin(self.probability(odds).nan_to_num(1.0)).to(x.dtype), odds
        closed = odds <= self._limit(self._compared, self.threshold)
        # Where sums over huge values have overflowed to NaN, units run.
        return closed.logical_not().to(x.dtype), odds

    def _compared(self) -> Tensor:
        """`limit` in the shape of the log-odds."""
        return self.limit()

    def limit(self) -> Tensor:
        """The log-odds above which units run: logit(T).

        It is -inf at T <= 0, where units always run, and +inf at T >= 1, where none does.
        """
        return torch.logit(self.threshold.clamp(0, 1))
