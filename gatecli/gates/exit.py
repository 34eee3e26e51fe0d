"""Exits: a classifier in the middle of the network, and who leaves there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatecli.gates.decider import Decider

__all__ = ["LOG_ODDS", "PROBABILITY", "Exit"]

LOG_ODDS, PROBABILITY = "log-odds", "probability"  # what an exit's score may be


class Exit(Decider):
    """A classifier in the middle of the network, and whether to leave there.

    Subclasses give `classify(x)` and `score(x, logits)`.

    Its one unit is on where a sample leaves: where its score >= threshold, which is infinite, so
    that nobody leaves, until trained or calibrated. Called, it returns logits (N, K) and decisions
    (N, 1).

    Attributes: positions: the dimensions of x over which the channels extend. trained: whether it
    has left its neutral start.
    """

    fresh_rate = 0.0
    positions: tuple[int, ...]

    def __init__(self, site: str) -> None:
        super().__init__(site, 1, threshold=torch.inf)

    def limit(self) -> Tensor:
        """The score from which on samples leave: the threshold itself."""
        return self.threshold

    @property
    def trained(self) -> bool:
        """Whether its classifier has learned anything yet."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the values x at which the exit stands."""
        raise NotImplementedError

    def head(self) -> nn.Module:
        """The classifier alone, sharing its tensors and their names.

        For a network in which everybody leaves here.
        """
        raise NotImplementedError

    def score(self, x: Tensor, logits: Tensor) -> Tensor:
        """How sure the exit is of values x and the logits (N, K) that it made of them: (N, 1)."""
        raise NotImplementedError

    def finite_score(self, x: Tensor, logits: Tensor) -> Tensor:
        """The score, below infinity: where it overflows, an exit that nobody can take stays so."""
        score = self.score(x, logits)
        return score.clamp(max=torch.finfo(score.dtype).max)

    def sample(self, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Decisions and scores in training.

        Nobody leaves, unless a method trains with those who do.
        """
        score = self.score(x, logits)
        return torch.zeros_like(score), score

    def draw(self, score: Tensor) -> Tensor:
        """Decisions of the `stochastic` strategy.

        Scores that are no probabilities are decided by the threshold.
        """
        return (score >= self.threshold).to(score.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classify(x)
        if self.training and self.forced is None:
            z, score = self.sample(x, logits)
        else:
            score = self.finite_score(x, logits)
            z = self._settled(x, score)
        self.report(z, score)
        return logits, z

    def _settled(self, x: Tensor, score: Tensor) -> Tensor:
        if self.forced is not None:
            return self.obeyed(x)
        if self.strategy == "always-on":
            return torch.zeros_like(score)
        return (
            self.draw(score)
            if self.strategy == "stochastic"
            else (score >= self.threshold).to(score.dtype)
        )
