"""What trains early exits: how many shall leave, and what the classifiers shall know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gatecli.methods.early_exit.exit import GumbelExit
from gatecli.methods.early_exit.settings import ALL, EarlyExitSettings
from gatecli.methods.losses import MIRRORED, distance
from gatecli.methods.objective import Losses, Objective, Traits, mean_of_units
from gatecli.network import Network
from gatecli.network.costs import Rates, mean_rate, reach

__all__ = ["Leaving"]

NOBODY = 1e-6  # a share of images that is none, but for rounding


def supervision(losses: Losses, end: Tensor, settings: EarlyExitSettings) -> Tensor | float:
    """The losses on all images, the exits' mean and the end's, each times its weight."""
    total: Tensor | float = 0.0
    if settings.supervise:
        total = settings.supervise * torch.stack(list(losses.values())).mean()
    return total + settings.supervise_end * end if settings.supervise_end else total


def achieved(
    network: Network, rates: Rates, sites: Sequence[str], settings: EarlyExitSettings
) -> float:
    """The exits' mean rate as the target means it; an exit that nobody comes to is left out."""
    if settings.rate_of == ALL:
        return mean_of_units(network, rates, sites, settings)
    found = []
    for site in sites:
        come = reach(network, site, rates)
        if come > NOBODY:
            found.append(min(1.0, rates[site][0] / come))
    return mean_rate(found) if found else 0.0


class Leaving(Objective[EarlyExitSettings]):
    """Each exit shall let a share of the images leave, at least, and know all of them."""

    traits: ClassVar[Traits] = Traits(
        at_least=True, achieved=achieved, supervision=supervision, by_image=True
    )

    def begin(self, network: Network, sites: Iterable[str], settings: EarlyExitSettings) -> None:
        for site in sites:
            exit_ = network.site_exits[site]
            assert isinstance(exit_, GumbelExit)
            exit_.let_leave()

    def targets(
        self, settings: EarlyExitSettings, sites: Iterable[str], epoch: int
    ) -> dict[str, float]:
        return dict.fromkeys(sites, settings.target_rate)

    def loss(
        self,
        decisions: Mapping[str, Tensor],
        settings: EarlyExitSettings,
        targets: Mapping[str, float],
    ) -> Tensor:
        """decisions: in the order in which the exits are come to."""
        left = torch.zeros_like(next(iter(decisions.values())))
        parts = []
        for site, z in decisions.items():
            come = 1 - left
            parts.append(_too_rare(z, come, targets[site], settings.rate_of))
            left = left + z * come
        return settings.loss_weight * torch.stack(parts).mean()


def _too_rare(z: Tensor, come: Tensor, target: float, rate_of: str) -> Tensor:
    """How far an exit's rate lies below its target, squared: a scalar.

    Shape:
        z, come: (N, 1), who leaves there if he comes by, and who does.
    """
    if rate_of == ALL:
        return distance((z * come).mean(), target, MIRRORED)
    come = come.detach()
    count = come.sum()
    rate = (z * come).sum() / count.clamp(min=1)
    return distance(rate, target, MIRRORED) * (count > 0)
