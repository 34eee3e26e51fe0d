"""How often each site runs for the images of each class: the map that shows layers specialise.

Reference: Herrmann et al. 2018, figure 8: each stripe is a layer, each row a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gatecli.stages.analyse import Use

__all__ = ["ClassRates", "class_rates"]


@dataclass(frozen=True, kw_only=True)
class ClassRates:
    """Mean decisions by class and site.

    Attributes:
        classes: The classes that there are images of, by number.
        images: How many of each.
        sites: The sites.
        rates: Share of a class's images and a site's units that were on, (classes, sites).
    """

    classes: list[int]
    images: list[int]
    sites: list[str]
    rates: Tensor

    def most_varied(self, count: int) -> list[int]:
        """The sites whose rates differ most between classes, at most `count`, in their order."""
        spread = self.rates.amax(0) - self.rates.amin(0)
        ranked = spread.argsort(descending=True, stable=True)[:count]
        return sorted(ranked[spread[ranked] > 0].tolist())


def class_rates(use: Use) -> ClassRates:
    """The map of what the gates were seen to do."""
    classes, place = torch.unique(use.labels, return_inverse=True)
    counts = torch.bincount(place)
    sums = torch.zeros(len(classes), use.vectors.shape[1], dtype=torch.float64)
    sums.index_add_(0, place, use.vectors.double())
    by_site = torch.split(sums / counts[:, None], [site.units for site in use.sites], 1)
    return ClassRates(
        classes=classes.tolist(),
        images=counts.tolist(),
        sites=[site.name for site in use.sites],
        rates=torch.stack([units.mean(1) for units in by_site], 1),
    )
