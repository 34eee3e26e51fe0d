"""How long one call takes, by the clock of the device that computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["by_events", "milliseconds"]


def milliseconds(module: Callable[[Any], Any], x: Any) -> float:
    """Milliseconds of module(x): by an accelerator's own events, else by the host's clock."""
    device = getattr(x, "device", None)
    kind = getattr(device, "type", "cpu")
    if kind == "cuda":
        with torch.cuda.device(x.device):
            return by_events(module, x, torch.cuda.Event, torch.cuda.synchronize)
    if kind == "mps":
        return by_events(module, x, torch.mps.event.Event, torch.mps.synchronize)
    start = time.perf_counter()
    module(x)
    return (time.perf_counter() - start) * 1e3


def by_events(
    module: Callable[[Any], Any], x: Any, event: Callable[..., Any], wait: Callable[[], None]
) -> float:
    """Milliseconds between two events on the device, before and after module(x).

    It is idle at the first one, so what the host takes to start the work counts too.

    Args:
        module: What to call.
        x: With what; on the device.
        event: Makes an event of the device.
        wait: Returns when the device is idle.
    """
    wait()
    start = event(enable_timing=True)
    end = event(enable_timing=True)
    start.record()
    module(x)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
