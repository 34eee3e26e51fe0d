"""Time two files that compute the same, single images one right after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from gatecli.exporting.registry import Logits
from gatecli.progress import Progress
from gatecli.stages.clock import milliseconds

__all__ = ["timed_pairs"]

WARM_UP = 3  # rounds


def timed_pairs(
    runs: tuple[Logits, Logits], images: Tensor, repeats: int, progress: Progress
) -> list[tuple[float, float]]:
    """Milliseconds of both for the same image, which of them comes first by turns.

    Args:
        runs: What is timed.
        images: (n, C, H, W), taken in turn.
        repeats: The rounds that count.
        progress: Is told of each.
    """
    singles = torch.split(images, 1)
    found = []
    with progress.task("timing", repeats) as task:
        for repeat in range(-WARM_UP, repeats):
            image = singles[repeat % len(singles)]
            order = (0, 1) if repeat % 2 else (1, 0)
            times = {which: milliseconds(runs[which], image) for which in order}
            if repeat >= 0:
                found.append((times[0], times[1]))
                task.advance()
    return found
