"""What leaving at each exit takes on this machine, in milliseconds.

A price for `calibrate --cost latency` beside MACs.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from gatecli.clock import milliseconds
from gatecli.network import Network
from gatecli.record import force

ROUNDS, WARMUP = 15, 3


def leaving_times(network: Network, images: Tensor) -> Tensor:
    """Milliseconds of a call with one image that leaves at each exit in turn, and nowhere.

    (E + 1,), float64, never falling.

    Medians over rounds in which the exits take turns, so that a slow spell of the machine hits all
    of them; layer gates decide as they do.

    Args: images (n, C, H, W), normalised, of which each round takes one.
    """
    exits = list(network.site_exits)
    decisions = [
        {site: [int(number == taken)] for number, site in enumerate(exits)}
        for taken in range(len(exits) + 1)
    ]
    times: list[list[float]] = [[] for _ in decisions]
    for turn in range(-WARMUP, ROUNDS):
        image = images[turn % len(images)][None].to(network.device)
        for taken, leave in enumerate(decisions):
            with force(network, leave), torch.inference_mode():
                elapsed = milliseconds(network, image)
            if turn >= 0:
                times[taken].append(elapsed)
    return (
        torch.tensor([statistics.median(each) for each in times], dtype=torch.float64)
        .cummax(0)
        .values
    )
