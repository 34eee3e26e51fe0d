"""Estimators: how a decision is drawn in training so that a gradient reaches what decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatecli.gates.noise import drawn

__all__ = ["gumbel_decision", "log_odds_of_likeliest", "semantic_hash"]


def gumbel_decision(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Sample 0/1 decisions with the straight-through Gumbel-softmax.

    Args: logits (..., 2) for [off, on]. Returns (...): hard 0/1 forward, the soft sample's gradient
    backward.
    Source: Jang et al. 2017, as used by Herrmann et al. 2018, section 3, and Veit & Belongie 2018.
    """

    def exponential(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return torch.empty(shape, device=logits.device).exponential_(generator=generator)

    gumbel = -drawn(logits.shape, exponential).log()
    soft = ((logits.float() + gumbel) / temperature).softmax(-1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    return (hard - soft.detach() + soft)[..., 1]


def semantic_hash(scores: Tensor) -> Tensor:
    """Binarise with improved semantic hashing.

    Scores g' (N, c) -> gates g (N, c), noisy, half of the samples real-valued.

    g_eps = g' + N(0, 1);  g_alpha = max(0, min(1, 1.2 sigmoid(g_eps) - .1));  g_beta = [g_eps > 0],
        with g_alpha's gradient. Half of the
    samples, drawn at random, have g_alpha, the others g_beta.
    Source: Kaiser & Bengio 2018, as used by Chen et al. 2019, section 3.2.2.
    """

    def normal(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, device=scores.device)

    def every_second(shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        order = torch.randperm(shape[0], generator=generator, device=scores.device)
        return order < shape[0] // 2

    noisy = scores.float() + drawn(scores.shape, normal)
    alpha = (1.2 * noisy.sigmoid() - 0.1).clamp(0, 1)
    beta = (noisy > 0).to(alpha.dtype) + (alpha - alpha.detach())  # exactly 0 or 1
    real = drawn(scores.shape[:1], every_second)
    return torch.where(real[:, None], alpha, beta)


def log_odds_of_likeliest(logits: Tensor) -> Tensor:
    """The log-odds log P - log(1 - P) of the likeliest class: logits (N, K) -> (N, 1).

    From the logits themselves: a softmax is exactly 1 in float32 where 1 - P is below 6e-8.
    """
    likeliest = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, likeliest, -torch.inf).logsumexp(1, keepdim=True)
    return logits.gather(1, likeliest) - others
