"""Thresholds at which gates decide, on given images, as often as their recorded rates say.

A runtime other than PyTorch decides by itself: its decisions cannot be drawn from rates, as those
of the native one are. So thresholds are put where the rates say, on images made up for it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gatecli.gates.decider import Decider
from gatecli.gates.exit import Exit
from gatecli.gates.observe import record_gates
from gatecli.network import Network
from gatecli.network.costs import Rates, reach

__all__ = ["among_comers", "at_rates", "varied_images"]

COARSE = 4  # cells a side of what varies most in an image


def varied_images(network: Network, count: int) -> Tensor:
    """The same random images (count, C, H, W) every time, each of its own contrast and pattern.

    Standard-normal noise looks alike to everything that averages.
    """
    draw = torch.Generator().manual_seed(0)
    channels = network.input.channels
    coarse = torch.randn(count, channels, COARSE, COARSE, generator=draw)
    smooth = F.interpolate(coarse, network.input.size, mode="bilinear")
    fine = torch.randn(count, channels, *network.input.size, generator=draw)
    contrast = torch.rand(count, 1, 1, 1, generator=draw) + 0.5
    return contrast * (smooth + 0.3 * fine)


def at_rates(network: Network, rates: Rates, images: Tensor) -> Network:
    """A copy of a network whose gates let units run, on these images, at these rates.

    Gates are set one after the other, as what an earlier one skips changes what later ones see.
    Those whose scores a threshold cannot part stay as they are.

    Args:
        network: In evaluation mode.
        rates: Shares of all images, by site and unit.
        images: (N, C, H, W): rates come out to 1/N.
    """
    twin = network.copy().eval()
    for site, gate in twin.site_gates.items():
        scores = _scores(twin, site, images)
        if scores is None or site not in rates:
            continue
        _part(gate, scores, among_comers(network, site, rates))
    return twin


def among_comers(network: Network, site: str, rates: Rates) -> list[float]:
    """How often a site's units run for the images that come to it: rates are shares of all."""
    come = max(reach(network, site, rates), 1e-9)
    return [min(1.0, rate / come) for rate in rates[site]]


def _scores(network: Network, site: str, images: Tensor) -> Tensor | None:
    """What a gate's threshold is compared with, for the images that come to it: (n, units)."""
    with torch.no_grad(), record_gates(network) as record:
        network(images.to(network.device))
    seen = record.odds.get(site)
    return seen[-1].float() if seen and len(seen[-1]) else None


def _part(gate: Decider, scores: Tensor, shares: list[float]) -> None:
    """Put a gate's threshold between the scores (n, units) of which these shares run."""
    before = gate.threshold.clone()
    limits = torch.stack([_between(scores[:, unit], share) for unit, share in enumerate(shares)])
    wanted = limits if isinstance(gate, Exit) else limits.double().sigmoid().float()
    gate.threshold.copy_(wanted)
    runs = (scores > gate.limit()).float().mean(0)
    off = (runs - torch.tensor(shares, device=runs.device)).abs()
    missed = off > 0.5 / len(scores) + 1e-6
    gate.threshold.copy_(torch.where(missed, before, gate.threshold))


def _between(scores: Tensor, share: float) -> Tensor:
    """A value that about this share of scores (n,) lies above."""
    ordered = scores.sort(descending=True).values
    above = round(share * len(scores))
    if above == 0:
        return ordered[0] + 1 + ordered[0].abs()
    if above == len(scores):
        return ordered[-1] - 1 - ordered[-1].abs()
    return (ordered[above - 1] + ordered[above]) / 2
