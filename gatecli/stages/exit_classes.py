"""Which classes exits know: by class, how many images each exit gets right, and surely so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MARGIN", "ByClass", "ExitClasses"]

MARGIN = 1.0


@dataclass(frozen=True, kw_only=True)
class ExitClasses:
    """What an exit says of all images, nobody leaving, by class.

    Attributes:
        images: How many there are.
        right: Of how many the exit's answer is right.
        sure: Of how many it is right with a score of at least MARGIN.

    Reference: Shafiee et al. 2018, figure 7.
    """

    images: list[int]
    right: list[int]
    sure: list[int]


class ByClass:
    """Counts batch by batch."""

    def __init__(self, exits: Iterable[str], classes: int) -> None:
        self.images = torch.zeros(classes, dtype=torch.long)
        self.right = {site: self.images.clone() for site in exits}
        self.sure = {site: self.images.clone() for site in exits}

    def add(
        self, answers: Mapping[str, Tensor], scores: Mapping[str, Tensor], labels: Tensor
    ) -> None:
        """Count what exits say: logits (N, K) and scores (N,), of images with labels (N,)."""
        self.images += self._of(labels)
        for site, logits in answers.items():
            right = logits.argmax(1).cpu() == labels
            is_sure = scores[site].cpu() >= MARGIN
            self.right[site] += self._of(labels[right])
            self.sure[site] += self._of(labels[right & is_sure])

    def _of(self, labels: Tensor) -> Tensor:
        return torch.bincount(labels, minlength=len(self.images))

    def counts(self) -> dict[str, ExitClasses]:
        """What has been counted, by exit."""
        images = self.images.tolist()
        counts = {}
        for site, right in self.right.items():
            sure = self.sure[site].tolist()
            counts[site] = ExitClasses(images=images, right=right.tolist(), sure=sure)
        return counts
