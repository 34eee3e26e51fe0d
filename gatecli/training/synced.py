"""BatchNorms that normalise by the whole batch, wherever its images are.

    mean = sum of x / n,  var = sum of (x - mean)^2 / n      over all processes' images

torch's SyncBatchNorm is for GPUs alone; these run on any device, with torch's own modules: in
training mode inside `synced` their forward is another one, and nothing of them is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gatecli import together

__all__ = ["normalised", "synced"]


@contextmanager
def synced(network: nn.Module, *, on: bool = True) -> Iterator[None]:
    """Let the network's BatchNorms normalise by the whole batch inside the block.

    Args:
        network: Its BatchNorms in evaluation mode do as they do.
        on: Whether to do anything; with one process nothing is to be done.
    """
    changed: list[tuple[Any, str]] = []
    if on and together.count() > 1:
        for norm in network.modules():
            if type(norm).forward is _BatchNorm.forward:
                norm.__dict__["forward"] = partial(_forward, norm)
                changed.append((norm, "forward"))
            elif hasattr(norm, "moments"):  # a BatchNorm of a kind's own asks this for statistics
                norm.__dict__["moments"] = together.moments
                changed.append((norm, "moments"))
    try:
        yield
    finally:
        for norm, name in changed:
            del norm.__dict__[name]


def _forward(norm: Any, x: Tensor) -> Tensor:
    if not norm.training:
        return _BatchNorm.forward(norm, x)
    result, mean, variance, count = normalised(x, norm.weight, norm.bias, norm.eps)
    if norm.track_running_stats:
        _follow(norm, mean, variance * count / (count - 1))
    return result


def normalised(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Normalise by all processes' images.

    Args:
        x: (N, C, ...).
        weight: (C,); None: 1.
        bias: (C,); None: 0.
        eps: Added to the variance.

    Returns:
        The normalised x, the mean and the variance (C,), and of how many values these are.
    """
    over = [dim for dim in range(x.ndim) if dim != 1]
    wide = [1, -1, *[1] * (x.ndim - 2)]
    mean, variance, count = together.moments(x, over)
    scale = torch.rsqrt(variance + eps)
    result = (x.float() - mean.view(wide)) * (scale if weight is None else scale * weight).view(
        wide
    )
    if bias is not None:
        result = result + bias.view(wide)
    return result.to(x.dtype), mean.detach(), variance.detach(), count


@torch.no_grad()
def _follow(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as torch does."""
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
