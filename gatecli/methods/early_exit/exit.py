"""An exit that a gate lets images take: the gate and the classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from gatecli.gates.estimators import gumbel_decision
from gatecli.gates.exit import LOG_ODDS, PROBABILITY, Exit
from gatecli.gates.noise import coin
from gatecli.graph.prune_channels import drop_inputs

__all__ = ["GumbelExit", "Head"]


class GumbelExit(Exit):
    """A gate and a classifier for maps (N, channels, *size)."""

    positions = (2, 3)
    pads = True

    def __init__(
        self,
        site: str,
        channels: int,
        size: Sequence[int],
        classes: int,
        width: int,
        scored: str = LOG_ODDS,
    ) -> None:
        super().__init__(site)
        self.scored = scored
        self.gate = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            _pool(4, size),
            nn.Flatten(),
        )
        self.decide = nn.Linear(width * _windows(4, size), 2)
        half = [-(-side // 4) for side in size]  # after two strides of 2
        self.classifier = nn.Sequential(
            *_convolution(channels, width),
            *_convolution(width, width),
            _pool(2, half),
            nn.Flatten(),
            nn.Linear(width * _windows(2, half), classes),
        )
        nn.init.zeros_(self.decide.weight)
        with torch.no_grad():
            self.decide.bias.copy_(torch.tensor([2.0, 0.1]))

    @property
    def trained(self) -> bool:
        return bool(self.decide.weight.any())

    def classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits

    def scores(self, x: Tensor) -> Tensor:
        """`x` (N, C, H, W) -> [stay, leave] logits (N, 1, 2)."""
        pair: Tensor = self.decide(self.gate(x))
        return pair[:, None]

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        """The log-odds of leaving, or P(leave)."""
        return self._scored(self.scores(x))

    def sample(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        pair = self.scores(x)
        return gumbel_decision(pair), self._scored(pair.detach())

    def _scored(self, pair: Tensor) -> Tensor:
        if self.scored == PROBABILITY:
            return pair.softmax(2)[..., 1]
        return pair[..., 1] - pair[..., 0]

    def draw(self, score: Tensor) -> Tensor:
        chance = score if self.scored == PROBABILITY else score.sigmoid()
        return coin(chance.nan_to_num(0.0)) * (self.threshold < torch.inf)

    def let_leave(self) -> None:
        """Open an exit that nobody can take: who leaves is who does so with P(leave) >= 1/2."""
        if bool(self.threshold.isposinf()):
            self.threshold.fill_(0.5 if self.scored == PROBABILITY else 0.0)

    def head(self) -> nn.Module:
        return Head(self.classifier)

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        _drop_zeros((self.gate, self.classifier), kept, gone)


class Head(nn.Module):
    """The classifier under the name that it has in an exit."""

    pads = True

    def __init__(self, classifier: nn.Sequential) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        return logits

    def drop_inputs(self, kept: Tensor, gone: Tensor, constants: Tensor) -> None:
        """See Gate.drop_inputs."""
        _drop_zeros((self.classifier,), kept, gone)


def _drop_zeros(stacks: Iterable[nn.Sequential], kept: Tensor, gone: Tensor) -> None:
    """Let the first convolution of each read the channels `kept` alone.

    It pads, so those `gone` have always been zero, and nothing of them is left in a bias.
    """
    for stack in stacks:
        drop_inputs(stack[0], kept, gone, None)


def _convolution(channels: int, width: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _pool(window: int, size: Sequence[int]) -> nn.Module:
    return nn.AvgPool2d((min(window, size[0]), min(window, size[1])))


def _windows(window: int, size: Sequence[int]) -> int:
    return (size[0] // min(window, size[0])) * (size[1] // min(window, size[1]))
