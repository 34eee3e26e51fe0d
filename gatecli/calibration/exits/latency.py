"""What leaving at each exit takes on this machine: the cost of `calibrate --cost latency`."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from gatecli.gates.observe import force
from gatecli.network import Network
from gatecli.stages.clock import milliseconds

__all__ = ["leaving_times"]

ROUNDS = 15
WARMUP = 3  # rounds before these


def leaving_times(network: Network, images: Tensor) -> Tensor:
    """Milliseconds of a call with one image that leaves at each exit in turn, and nowhere.

    Medians over rounds in which the exits take turns, so that a slow spell of the machine hits all
    of them; layer gates decide as they do.

    Args:
        network: With E exits, in evaluation mode.
        images: (n, C, H, W), normalised, of which each round takes one.

    Returns:
        (E + 1,), float64, never falling.
    """
    decisions = [_leaving_at(taken, network) for taken in (*network.site_exits, None)]
    times: list[list[float]] = [[] for _ in decisions]
    for turn in range(-WARMUP, ROUNDS):
        image = images[turn % len(images)][None].to(network.device)
        for taken, leave in enumerate(decisions):
            with force(network, leave), torch.inference_mode():
                elapsed = milliseconds(network, image)
            if turn >= 0:
                times[taken].append(elapsed)
    medians = [statistics.median(each) for each in times]
    return torch.tensor(medians, dtype=torch.float64).cummax(0).values


def _leaving_at(taken: str | None, network: Network) -> dict[str, list[int]]:
    """Decisions by which everybody leaves at the exit `taken`; None: nowhere."""
    return {site: [int(site == taken)] for site in network.site_exits}
