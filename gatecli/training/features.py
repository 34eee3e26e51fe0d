"""What exits see of images: the input of their training, computed once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Seen", "joined"]


@dataclass(frozen=True)
class Seen:
    """What the exits see of N images, and what they are to learn of it.

    Attributes:
        features: By exit, (N, C).
        logits: Of the final classifier, (N, K).
        taught: The logits of who teaches the exits, (N, K).
        labels: (N,).
    """

    features: dict[str, Tensor]
    logits: Tensor
    taught: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> Seen:
        """The same on another device."""
        return Seen(
            features={site: each.to(device) for site, each in self.features.items()},
            logits=self.logits.to(device),
            taught=self.taught.to(device),
            labels=self.labels.to(device),
        )

    def take(self, rows: Tensor) -> Seen:
        """Some of the images, by index (n,)."""
        return Seen(
            features={site: each[rows] for site, each in self.features.items()},
            logits=self.logits[rows],
            taught=self.taught[rows],
            labels=self.labels[rows],
        )


def joined(parts: list[Seen]) -> Seen:
    """Several batches, at least one, as one."""
    features = {}
    for site in parts[0].features:
        features[site] = torch.cat([part.features[site] for part in parts])
    return Seen(
        features=features,
        logits=torch.cat([part.logits for part in parts]),
        taught=torch.cat([part.taught for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
    )
