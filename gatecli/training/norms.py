"""Re-estimate BatchNorm statistics after training.

Gates that are rarely open leave the running averages unsteady.

Herrmann et al. 2018, section 4.1.1: training mode with learning rate zero over about 200 large
batches, gates sampling.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.progress import Progress


def reestimate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], count: int, progress: Progress
) -> None:
    """Replace the running statistics of every BatchNorm that is in training mode by their plain
    averages over at most `count` batches.
    """
    norms: list[Any] = [
        part
        for part in network.modules()
        if hasattr(part, "reset_running_stats") and part.track_running_stats and part.training
    ]
    if not norms or not count:
        return
    momenta = [norm.momentum for norm in norms]
    device = next(network.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    with torch.no_grad(), progress.task("re-estimating BatchNorm", count) as task:
        for x, _ in islice(batches, count):
            network(x.to(device))
            task.advance()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
