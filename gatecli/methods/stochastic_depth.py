"""Stochastic depth: a baseline whose gates learn nothing.

    x_l = x_{l-1} + z_l F_l(x_{l-1}),  z_l ~ Bernoulli(p_l),  p_l = 1 - (l / L) (1 - p_L)

Huang, Sun, Liu, Sedra, Weinberger, "Deep networks with stochastic depth" (2016), section 3, which
Herrmann et al. (2018) describe in section 2.1. Evaluation computes every branch, scaled by p_l: the
expected value. Here a branch that runs in training is divided by p_l instead, so that evaluation is
the network as it is: the same in expectation, with p_l F_l called F_l. So attach changes no
prediction, nothing is saved, and prune leaves the network without gates.

The paper draws z once for a mini-batch, here it is drawn for each image. Evaluation runs what has
P(on) > threshold, and the threshold starts at half of p_L: all. `--strategy stochastic` draws, and
does not divide; `prune --threshold T` above p_L removes the last branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gatecli.gates.gate import Gate
from gatecli.graph.prune_channels import keep_entries
from gatecli.kinds.base import MASK
from gatecli.methods.base import About, Method
from gatecli.methods.objective import Objective, Traits
from gatecli.methods.registry import register
from gatecli.methods.settings import Settings, setting
from gatecli.network import Network
from gatecli.traced.site import Site

__all__ = ["StochasticDepthGate", "StochasticDepthSettings"]


@dataclass(frozen=True)
class StochasticDepthSettings(Settings):
    """Settings of stochastic depth."""

    last_survival: float = setting(
        0.5,
        "how often the last branch runs in training, p_L in the paper (.5 there)",
        low=0.01,
        high=1,
        structural=True,
    )


class StochasticDepthGate(Gate):
    """Runs in training with a fixed probability, and what runs is divided by it.

    Attributes:
        logits: Buffer (units, 2): [off, on].
    """

    data_dependent = False
    logits: Tensor

    def __init__(self, site: str, units: int, last_survival: float) -> None:
        super().__init__(site, units)
        self.register_buffer("logits", torch.zeros(units, 2))
        self.threshold.fill_(last_survival / 2)

    def survive(self, probability: float) -> None:
        """Let the units run with this probability."""
        on = torch.logit(torch.tensor(probability), eps=1e-6)
        self.logits.copy_(torch.stack([torch.zeros(()), on]))

    def keep(self, units: Sequence[int]) -> None:
        super().keep(units)
        keep_entries(self, ("logits",), torch.tensor(units))

    def scores(self, x: Tensor) -> Tensor:
        """`x` (N, ...) -> (N, units, 2)."""
        return self.logits.expand(x.shape[0], self.units, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        if not self.training or self.forced is not None:
            return z
        return z / (self.logits[:, 1] - self.logits[:, 0]).sigmoid()


class NothingToLearn(Objective[StochasticDepthSettings]):
    """The gates are as they are: cross-entropy alone trains the network."""

    traits: ClassVar[Traits] = Traits(aims=False)

    def targets(
        self, settings: StochasticDepthSettings, sites: Iterable[str], epoch: int
    ) -> dict[str, float]:
        return {}

    def loss(
        self,
        decisions: Mapping[str, Tensor],
        settings: StochasticDepthSettings,
        targets: Mapping[str, float],
    ) -> Tensor:
        return torch.zeros((), device=next(iter(decisions.values())).device)


class StochasticDepth(Method[StochasticDepthSettings]):
    """Gates whose probabilities fall from the first branch to the last."""

    def gate(self, network: Network, site: Site, settings: StochasticDepthSettings) -> Gate:
        return StochasticDepthGate(site.name, site.units, settings.last_survival)

    def attach(
        self,
        network: Network,
        sites: Sequence[str],
        settings: StochasticDepthSettings,
        gater: Network | None = None,
    ) -> None:
        super().attach(network, sites, settings, gater)
        for number, site in enumerate(sites, 1):
            gate = network.site_gates[site]
            assert isinstance(gate, StochasticDepthGate)
            gate.survive(1 - number / len(sites) * (1 - settings.last_survival))


register(
    StochasticDepth(
        About(
            name="stochastic-depth",
            summary="baseline: branches are left out at random in training, and all run in"
            " evaluation",
            settings=StochasticDepthSettings,
            paper="Huang, Sun, Liu, Sedra, Weinberger: Deep networks with stochastic depth, 2016",
            needs="residual blocks (an addition of a shortcut and a branch)",
            requires=frozenset({MASK}),
            default_kinds=("block",),
        ),
        NothingToLearn(),
    )
)
