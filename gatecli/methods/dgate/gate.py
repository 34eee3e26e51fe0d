"""The exits of decision gates: pooled features, a linear classifier, and how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.gates.estimators import log_odds_of_likeliest
from gatecli.gates.exit import LOG_ODDS, PROBABILITY, Exit
from gatecli.graph.prune_channels import drop_inputs

__all__ = [
    "CROSS_ENTROPY",
    "HINGE",
    "MARGIN",
    "MEAN",
    "SUM",
    "DGate",
    "Lesson",
    "hinge",
    "pooled",
]

HINGE, CROSS_ENTROPY = "hinge", "cross-entropy"
MARGIN = "margin"
SUM, MEAN = "sum", "mean"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How an exit is trained.

    Attributes:
        loss: HINGE or CROSS_ENTROPY.
        over_classes: Whether the classes' hinge losses are added (SUM) or averaged (MEAN).
        standardise: Whether it is trained on standardised features.
        decay_bias: Whether weight decay is for the bias too.
    """

    loss: str = HINGE
    over_classes: str = SUM
    standardise: bool = True
    decay_bias: bool = False


class DGate(Exit):
    """A linear classifier of pooled features; weights and bias start at zero.

    Attributes:
        positions: The dimensions of the value that are positions.
        pool: Features of a channel: pool x pool averages over parts of the map, 1 over all of it.
        scored: What thresholds are compared with.
        lesson: How it is trained.
        undecayed: See gatecli.gates.decider.Decider.
    """

    def __init__(  # noqa: PLR0913  what it looks at, what it knows, how it decides
        self,
        site: str,
        channels: int,
        positions: tuple[int, ...],
        classes: int,
        *,
        pool: int = 1,
        scored: str = MARGIN,
        lesson: Lesson = Lesson(),
    ) -> None:
        super().__init__(site)
        self.positions, self.pool = positions, pool
        self.scored, self.lesson = scored, lesson
        self.undecayed = () if lesson.decay_bias else ("linear.bias",)
        self.linear = nn.Linear(channels * pool**2, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def features(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W), or another layout with its positions -> (N, C * pool^2)."""
        return pooled(x, self.positions, self.pool)

    def classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x))
        return logits

    @property
    def trained(self) -> bool:
        return bool(self.linear.weight.any())

    @property
    def standardises(self) -> bool:
        """Whether it is trained on standardised features, see gatecli.training.standard."""
        return self.lesson.standardise

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        if self.scored == LOG_ODDS:
            return log_odds_of_likeliest(logits)
        return (logits.softmax(1) if self.scored == PROBABILITY else logits).amax(1, keepdim=True)

    def head(self) -> nn.Module:
        return Head(self.positions, self.pool, self.linear)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of its logits (N, K) with labels (N,): a scalar."""
        if self.lesson.loss == CROSS_ENTROPY:
            return F.cross_entropy(logits, labels)
        return hinge(logits, labels, self.lesson.over_classes)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        _drop_channels(self.linear, self.pool**2, kept, gone, constants)


class Head(nn.Module):
    """A linear classifier of pooled features."""

    def __init__(self, positions: tuple[int, ...], pool: int, linear: nn.Linear) -> None:
        super().__init__()
        self.positions, self.pool, self.linear = positions, pool, linear

    def forward(self, x: Tensor) -> Tensor:
        """`x` (N, C, ...) -> logits (N, K)."""
        logits: Tensor = self.linear(pooled(x, self.positions, self.pool))
        return logits

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        """See Gate.drop_inputs."""
        _drop_channels(self.linear, self.pool**2, kept, gone, constants)


def pooled(x: Tensor, positions: Sequence[int], pool: int) -> Tensor:
    """Average a value over pool x pool parts of its map, a channel's features side by side.

    Args:
        x: (N, C, H, W), or another layout.
        positions: Its dimensions that are positions; two of them where `pool` is above 1.
        pool: How many parts a side; 1 averages over all positions, however many dimensions.

    Returns:
        (N, C * pool^2).
    """
    if pool == 1:
        return x.mean(tuple(positions)) if positions else x
    (channel,) = {1, 2, 3} - set(positions)
    return F.adaptive_avg_pool2d(x.movedim(channel, 1), pool).flatten(1)


def _drop_channels(
    linear: nn.Linear, cells: int, kept: Tensor, gone: Tensor, constants: Tensor
) -> None:
    """Let a classifier of `cells` features a channel read the channels `kept` alone.

    The average over part of a constant map is that constant.
    """
    drop_inputs(
        linear, _each_cell(kept, cells), _each_cell(gone, cells), constants.repeat_interleave(cells)
    )


def _each_cell(channels: Tensor, cells: int) -> Tensor:
    """The features of these channels, in order: (n,) -> (n * cells,)."""
    features: Tensor = channels[:, None] * cells + torch.arange(cells, device=channels.device)
    return features.flatten()


def hinge(margins: Tensor, labels: Tensor, over_classes: str = SUM) -> Tensor:
    """max(0, 1 - y d), the sum or mean over classes, the mean over samples: a scalar.

    The sum is K problems of one class against the others, each with the paper's loss; of their mean
    weight decay would weigh K times as much.

    Args:
        margins: d, (N, K); y = 1 for the sample's class, -1 for the others.
        labels: (N,).
        over_classes: SUM or MEAN.

    Reference: Shafiee et al. 2018, equation 1 and section 2.2.
    """
    signs = torch.full_like(margins, -1).scatter_(1, labels[:, None], 1)
    losses = (1 - signs * margins).clamp(min=0)
    return losses.sum(1).mean() if over_classes == SUM else losses.mean()
