"""What data-independent gates have decided."""

from __future__ import annotations

import torch

from gatecli.gates.decider import Decider
from gatecli.gates.gate import Gate

__all__ = ["always_runs"]


def always_runs(gate: Decider, threshold: float | None = None) -> list[bool] | None:
    """For each unit of a gate that does not look at the data, whether P(on) > threshold.

    Args:
        gate: The gate.
        threshold: None: the gate's own.

    Returns:
        None where it depends on the data.
    """
    if gate.data_dependent or not isinstance(gate, Gate):
        return None
    limit = gate.threshold if threshold is None else torch.full_like(gate.threshold, threshold)
    with torch.no_grad():
        odds = gate.log_odds(torch.empty(1, device=gate.threshold.device))[0]
    return [bool(flag) for flag in odds > torch.logit(limit.clamp(0, 1))]
