"""The operations of modules whose branches read different sums."""

from __future__ import annotations

import torch
from torch import Tensor

from gatecli.graph.ops import describe

__all__ = ["connect", "fold_streams", "mean_streams", "unfold_streams"]


def connect(values: Tensor, shortcut: Tensor, read: tuple[Tensor, int]) -> Tensor:
    """What each branch of the next module reads.

    The sum of the branches that it is connected to, y_k = values_k + shortcut_k / divisor.

    Args: values (N, C * out, H, W), one part a branch; shortcut (N, out, H, W), or (N, C * out, H,
    W) where the branches have streams of their own;
    read: connections (readers, C), or (N, readers, C), and the divisor. Returns (N, readers * out,
        H, W).
    """
    connections, divisor = read
    batch, channels, height, width = values.shape
    count, readers, size = (
        connections.shape[-1],
        connections.shape[-2],
        channels // connections.shape[-1] * height * width,
    )
    carried = shortcut.reshape(
        batch, shortcut.shape[1] * count // channels, size
    )  # one, or one a branch
    each = connections.to(values.dtype).expand(
        batch, readers, count
    )  # a matmul of one matrix with all samples would copy what it multiplies
    found = torch.bmm(
        each, torch.add(values.reshape(batch, count, size), carried, alpha=1 / divisor)
    )
    return found.reshape(batch, channels // count * readers, height, width)


describe(connect, fresh=True, makes_streams=True, costs=lambda node: True)


def fold_streams(x: Tensor, count: int) -> Tensor:
    """(N, count * C, H, W) -> (N * count, C, H, W).

    Streams as samples, for layers that all of them share.
    """
    return x.reshape(x.shape[0] * count, x.shape[1] // count, *x.shape[2:])


def unfold_streams(x: Tensor, count: int) -> Tensor:
    """(N * count, C, H, W) -> (N, count * C, H, W)."""
    return x.reshape(x.shape[0] // count, x.shape[1] * count, *x.shape[2:])


def mean_streams(x: Tensor, count: int) -> Tensor:
    """(N, count * C, H, W) -> (N, C, H, W)."""
    return x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:]).mean(1)
