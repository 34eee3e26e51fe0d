"""The two gates of the layer gates: one looks at what enters the branch, one at nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.gates.cache import Remembered
from gatecli.gates.gate import Gate
from gatecli.graph.prune_channels import drop_inputs, keep_entries

__all__ = ["DataDependentGate", "DataIndependentGate"]


class DataDependentGate(Gate):
    """AIG's gate.

    Global average pool -> linear C -> hidden -> BatchNorm -> ReLU -> linear -> [off, on] logits.

    The last layer starts with zero weights and bias [0.1, 2]: P(on) = sigmoid(1.9) = .87 for every
    input (the authors' code draws the weights from N(0, .001), which closes some gates of a deep
    network before any training).
    """

    by_unit = ("decide.weight", "decide.bias")
    in_float32 = True

    def __init__(
        self, site: str, channels: int, positions: tuple[int, ...], hidden: int, units: int = 1
    ) -> None:
        super().__init__(site, units)
        self.positions = positions
        self.reduce = nn.Linear(channels, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.decide = nn.Linear(hidden, 2 * units)
        nn.init.kaiming_normal_(self.reduce.weight)
        nn.init.zeros_(self.reduce.bias)
        nn.init.zeros_(self.decide.weight)
        with torch.no_grad():
            self.decide.bias.copy_(torch.tensor([0.1, 2.0]).repeat(units))
        self._folded = Remembered()

    def scores(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W), or another shape -> (N, units, 2).

        Another shape has one dimension of C channels besides `positions`.
        """
        total, share = self._total(x)
        hidden = F.relu(self.norm(self.reduce(total * share)))
        pair: Tensor = self.decide(hidden)
        return pair.reshape(-1, self.units, 2)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        drop_inputs(self.reduce, kept, gone, constants)

    def keep(self, units: Sequence[int]) -> None:
        super().keep(units)
        pairs = torch.tensor(units)[:, None] * 2 + torch.tensor([0, 1])
        keep_entries(self.decide, ("weight", "bias"), pairs.flatten())
        self.decide.out_features = 2 * len(units)

    def log_odds(self, x: Tensor) -> Tensor:
        """The same with the BatchNorm folded into the first layer and one difference of logits.

        (N, units).

        Each operation counts here: between convolutions of a single image it costs what it takes to
        start it, not to run it.
        """
        reduce, norm, decide = self.reduce, self.norm, self.decide
        assert norm.running_mean is not None and norm.running_var is not None
        weights = (
            reduce.weight,
            reduce.bias,
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            decide.weight,
            decide.bias,
        )
        weight, bias, difference, offset = self._folded(self._fold, *weights)
        total, share = self._total(x)  # the division by the count is left to the product
        return F.linear(
            torch.addmm(bias, total, weight.t(), alpha=share).relu_(), difference, offset
        )

    def _total(self, x: Tensor) -> tuple[Tensor, float]:
        """`x` summed over `positions`, (N, C), and what makes the sum the mean.

        `mean` would divide a whole gradient of x's size.
        """
        total = x.sum(self.positions) if self.positions else x
        total = total.to(self.reduce.weight.dtype)
        return total, 1 / math.prod([x.shape[place] for place in self.positions])

    def _fold(self) -> tuple[Tensor, ...]:
        norm, decide = self.norm, self.decide
        assert norm.running_var is not None and norm.running_mean is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = (self.reduce.bias - norm.running_mean) * scale + norm.bias
        difference = decide.weight[1::2] - decide.weight[::2]
        return (
            self.reduce.weight * scale[:, None],
            bias,
            difference,
            decide.bias[1::2] - decide.bias[::2],
        )


class DataIndependentGate(Gate):
    """Two logits for all inputs, starting at [0.1, 4] (P(on) = .98).

    Sampled for each instance in training.
    """

    data_dependent = False
    by_unit = ("logits",)
    in_float32 = True

    def __init__(self, site: str, units: int = 1) -> None:
        super().__init__(site, units)
        self.logits = nn.Parameter(torch.tensor([[0.1, 4.0]]).repeat(units, 1))
        self._odds = Remembered()

    def keep(self, units: Sequence[int]) -> None:
        super().keep(units)
        keep_entries(self, ("logits",), torch.tensor(units))

    def scores(self, x: Tensor) -> Tensor:
        """`x` (N, ...) -> (N, units, 2)."""
        return self.logits.expand(x.shape[0], self.units, 2)

    def log_odds(self, x: Tensor) -> Tensor:
        odds: Tensor = self._odds(lambda: self.logits[:, 1] - self.logits[:, 0], self.logits)
        return odds.expand(x.shape[0], self.units)
