"""How batches come to where a network computes: who reads them, and where they are normalised."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from gatecli import together
from gatecli.data.prepare import normalised
from gatecli.data.walk import Walk
from gatecli.traced.recipe import InputSpec

__all__ = ["delivered", "is_pinned", "suitable_workers"]

MOST = 8  # worker processes that are started where nobody says how many


def suitable_workers(walk: Walk) -> int:
    """How many processes should read images for this one.

    None where the network computes on the CPU itself, whose cores are then busy. Else those cores
    that this one of the machine's processes has, as far as they help.
    """
    if not is_pinned(walk):
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", together.count()))
    return min(_cores() // max(1, here), MOST)


def _cores() -> int:
    """The processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_pinned(walk: Walk) -> bool:
    """Whether batches go through pinned memory, from which a GPU fetches them by itself."""
    return walk.device is not None and walk.device.type == "cuda"


def delivered(images: Tensor, input: InputSpec, walk: Walk) -> Tensor:
    """A batch's images, normalised, where the walk wants them.

    They travel as bytes, a fourth of the numbers that they become. On the way to a GPU nobody waits
    for them: what it computes next does.

    Args:
        images: uint8 (n, 1 or channels, H, W), on the CPU.
        input: what the network takes.
        walk: where they are wanted, and how they shall lie in memory.

    Returns:
        float32 (n, channels, H, W).
    """
    if is_pinned(walk):
        held = images if images.is_pinned() else images.pin_memory()
        images = held.to(walk.device, non_blocking=True)
    order = torch.channels_last if walk.channels_last else torch.contiguous_format
    return normalised(images, input, order)
