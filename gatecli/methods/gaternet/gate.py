"""The gates of GaterNet, which all hang on one network, the gater."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatecli.gates.gate import Gate

__all__ = ["FilterGate"]


class FilterGate(Gate):
    """Its share of what the gater says: no weights of its own.

    A threshold T is compared with sigmoid(g'), which ranks as P(on) does and has 1/2 at the same
    place: calibrated files hold such thresholds.
    """

    def __init__(self, site: str, units: int, first: int) -> None:
        super().__init__(site, units)
        self.outputs: Sequence[int] = range(first, first + units)

    def sampled(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: the gater's gates (N, c), in training."""
        return self._own(x), None

    def scores(self, x: Tensor) -> Tensor:
        odds = self._own(x)
        return torch.stack([torch.zeros_like(odds), odds], -1)

    def log_odds(self, x: Tensor) -> Tensor:
        """x: the gater's scores (N, c), in evaluation."""
        return self._own(x)

    def probability(self, odds: Tensor) -> Tensor:
        """The gater's noise is normal: P(g' + N(0, 1) > 0) = Phi(g').

        Reference:
            Section 3.2.2 of the paper, g_beta.
        """
        normal: Tensor = torch.special.ndtr(odds)
        return normal

    def _own(self, x: Tensor) -> Tensor:
        return x.narrow(1, self.outputs[0], self.units)

    def keep(self, units: Sequence[int]) -> None:
        """Decide these units alone."""
        super().keep(units)
        self.outputs = [self.outputs[unit] for unit in units]
