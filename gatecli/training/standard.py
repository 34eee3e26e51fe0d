"""Standardised features: a linear classifier learns sooner, and decays alike, where these are.

    W x + b = V (x - m) / s + c,     W = V / s,     b = c - W m

V and c are trained, W and b are what a network holds. Beyond their deviation, s divides features so
that an image's squared norm is NORM on average, however many there are: then one learning rate and
one weight decay suit them all. NORM was chosen so that these are finetune's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["IMAGES", "Standard"]

NORM = 32
IMAGES = 10_000  # by which a training standardises, at most, about
LEAST = 1e-5  # of the features' mean variance: how little one may vary to be scaled up


@dataclass(frozen=True, kw_only=True)
class Standard:
    """How features are standardised.

    Attributes:
        mean: m, (F,).
        scale: s, (F,).
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standard:
        """The standard by which these features (N, F) have mean 0, and all the same deviation.

        A feature that hardly varies, or not at all, is scaled up by a limit.
        """
        double = features.double()
        variance = double.var(0, correction=0)
        scale = (variance + LEAST * variance.mean()).sqrt()
        scale = scale.where(scale > 0, 1.0) * math.sqrt(features.shape[1] / NORM)
        return cls(mean=double.mean(0).to(features.dtype), scale=scale.to(features.dtype))

    def to(self, device: torch.device | str) -> Standard:
        """The same on another device."""
        return Standard(mean=self.mean.to(device), scale=self.scale.to(device))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardised features: (N, F) -> (N, F)."""
        return (features - self.mean) / self.scale

    @torch.no_grad()
    def unfold(self, linear: nn.Linear) -> None:
        """Let a classifier of features be one of standardised features that says the same."""
        linear.bias.add_(linear.weight @ self.mean)
        linear.weight.mul_(self.scale)

    @torch.no_grad()
    def fold(self, linear: nn.Linear) -> None:
        """Let a classifier of standardised features be one of features that says the same."""
        linear.weight.div_(self.scale)
        linear.bias.sub_(linear.weight @ self.mean)

    @contextmanager
    def folded(self, linear: nn.Linear) -> Iterator[None]:
        """Inside, a classifier is folded; behind, it is what it was, to the bit."""
        before = [each.detach().clone() for each in linear.parameters()]
        self.fold(linear)
        try:
            yield
        finally:
            with torch.no_grad():
                for each, value in zip(linear.parameters(), before, strict=True):
                    each.copy_(value)
