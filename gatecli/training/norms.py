"""Re-estimate BatchNorm statistics after training.

Gates that are rarely open leave the running averages unsteady.

Reference: Herrmann et al. 2018, section 4.1.1: training mode with learning rate zero over about 200
large batches, gates sampling. Where evaluation decides otherwise than a sample would, the
statistics are of another network; so gates may decide as evaluation does.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.gates.observe import gates_of
from gatecli.progress import Progress

__all__ = ["decide_in_training", "reestimate"]


def decide_in_training(network: nn.Module) -> None:
    """Let gates decide as evaluation does, the rest of the network staying in training mode.

    The BatchNorms inside gates then keep their statistics, by which these decisions are made.
    """
    for gate in gates_of(network).values():
        gate.eval()


def reestimate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], count: int, progress: Progress
) -> None:
    """Replace the running statistics of BatchNorms by their plain averages over some batches.

    Only those of BatchNorms in training mode.

    Args:
        network: Called once a batch, without gradients.
        batches: Images (N, C, H, W) and labels (N,).
        count: How many batches at most.
        progress: Is told of each.
    """
    norms: list[Any] = [part for part in network.modules() if _updates_statistics(part)]
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


def _updates_statistics(part: Any) -> bool:
    is_norm = hasattr(part, "reset_running_stats")
    return is_norm and part.track_running_stats and part.training
