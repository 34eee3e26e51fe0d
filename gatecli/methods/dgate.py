"""Decision gates: a linear one-vs-all classifier after each stage.

Who is sure enough there, leaves.

    d = W x - b;  leave with argmax d where max(d) >= t

Shafiee, Shafiee, Wong, "Dynamic representations toward efficient inference on deep neural networks
by decision gates" (2018). x is the stage's value, averaged over its positions (ours). Each exit is
trained alone on all the training data with the network frozen, its BatchNorm statistics
too (ours), by the hinge loss  mean max(0, 1 - y d),  y = 1 for the sample's class and -1 for the
    others, and weight decay. Thresholds are
chosen afterwards, on a validation split: gatecli calibrate. Until then they are infinite.

With `loss=cross-entropy`, for comparison, a sample is as sure as the log-odds of its likeliest
class (ours): a softmax in float32 is exactly 1 from about 17 nats on, where the surest images would
tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.gates.estimators import log_odds_of_likeliest
from gatecli.gates.exit import LOG_ODDS, PROBABILITY, Exit
from gatecli.graph.prune_channels import drop_inputs
from gatecli.methods.exits import AboutExits, ExitMethod, ExitSettings
from gatecli.methods.objective import Objective, Traits
from gatecli.methods.registry import register
from gatecli.methods.settings import setting
from gatecli.network import Network
from gatecli.traced.site import Site

__all__ = ["DGate", "DGateSettings", "hinge"]

HINGE, CROSS_ENTROPY = "hinge", "cross-entropy"
MARGIN = "margin"
OWN_SCORE = {HINGE: MARGIN, CROSS_ENTROPY: LOG_ODDS}


@dataclass(frozen=True)
class DGateSettings(ExitSettings):
    """Settings of decision gates."""

    loss: str = setting(
        HINGE,
        "hinge, or cross-entropy for comparison",
        choices=(HINGE, CROSS_ENTROPY),
        structural=True,
    )
    score: str | None = setting(
        None,
        "what thresholds are compared with: margin (the largest logit), log-odds or probability of"
        " the likeliest class; none: margin with hinge, log-odds with cross-entropy",
        choices=(MARGIN, LOG_ODDS, PROBABILITY),
        structural=True,
        before=lambda stored: PROBABILITY if stored.get("loss") == CROSS_ENTROPY else None,
    )


class DGate(Exit):
    """A linear classifier of averaged features; weights and bias start at zero."""

    def __init__(
        self,
        site: str,
        channels: int,
        positions: tuple[int, ...],
        classes: int,
        trained_by: str = HINGE,
        scored: str | None = None,
    ) -> None:
        super().__init__(site)
        self.positions, self.trained_by = positions, trained_by
        self.scored = scored or OWN_SCORE[trained_by]
        self.linear = nn.Linear(channels, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def features(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W), or another layout with its positions -> (N, C)."""
        return x.mean(self.positions) if self.positions else x

    def classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x))
        return logits

    @property
    def trained(self) -> bool:
        return bool(self.linear.weight.any())

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        if self.scored == LOG_ODDS:
            return log_odds_of_likeliest(logits)
        return (logits.softmax(1) if self.scored == PROBABILITY else logits).amax(1, keepdim=True)

    def head(self) -> nn.Module:
        return Head(self.positions, self.linear)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of features (N, C) with labels (N,): a scalar."""
        loss = F.cross_entropy if self.trained_by == CROSS_ENTROPY else hinge
        return loss(self.linear(features), labels)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        drop_inputs(self.linear, kept, gone, constants)


class Head(nn.Module):
    """A linear classifier of averaged features."""

    def __init__(self, positions: tuple[int, ...], linear: nn.Linear) -> None:
        super().__init__()
        self.positions, self.linear = positions, linear

    def forward(self, x: Tensor) -> Tensor:
        """`x` (N, C, ...) -> logits (N, K)."""
        logits: Tensor = self.linear(x.mean(self.positions) if self.positions else x)
        return logits

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        """See Gate.drop_inputs."""
        drop_inputs(self.linear, kept, gone, constants)


def hinge(margins: Tensor, labels: Tensor) -> Tensor:
    """The mean over samples and classes of max(0, 1 - y d): a scalar.

    y = 1 for the sample's class, -1 for the others; d: the margins (N, K); labels: (N,).
    """
    signs = torch.full_like(margins, -1).scatter_(1, labels[:, None], 1)
    return (1 - signs * margins).clamp(min=0).mean()


class ExitsAlone(Objective[DGateSettings]):
    """Each exit has a loss of its own, see `DGate.loss`: there is no rate to aim at."""

    traits: ClassVar[Traits] = Traits(trains="exits", samples=False)


class DGates(ExitMethod[DGateSettings]):
    """Decision gates, as this file describes them."""

    def gate(self, network: Network, site: Site, settings: DGateSettings) -> DGate:
        return DGate(
            site.name,
            site.channels,
            site.positions,
            network.num_classes,
            settings.loss,
            settings.score,
        )


register(
    DGates(
        AboutExits(
            name="dgate",
            summary="a linear classifier after each stage; images of which it is sure leave there",
            settings=DGateSettings,
            paper="Shafiee, Shafiee, Wong: Dynamic representations toward efficient inference on"
            " deep neural networks by decision gates, 2018",
        ),
        ExitsAlone(),
    )
)
