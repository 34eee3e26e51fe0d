"""The last layers of a multi-branch module whose branches are not summed at once.

A module's own tensors, used branch by branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FanOut", "SharedNorm", "distinct"]


def distinct(connections: Tensor) -> tuple[list[int], list[int]]:
    """Connections (readers, branches) -> who reads the same.

    Of readers that read the same the first one, and for each reader the number of its like.
    """
    rows = [tuple(row) for row in connections.tolist()]
    first: dict[tuple[float, ...], int] = {}
    for number, row in enumerate(rows):
        first.setdefault(row, number)
    order = {row: place for place, row in enumerate(first)}
    return list(first.values()), [order[row] for row in rows]


class FanOut(nn.Module):
    """A dense 1x1 convolution, its sum over the branches left undone.

    The convolution: (N, branches * w, H, W) -> (N, out, H, W); left undone: (N, branches * out,
    H, W).

    It has the convolution's own weight, (out, branches * w, 1, 1).
    """

    def __init__(self, conv: Any, branches: int) -> None:
        super().__init__()
        self.weight, self.stride, self.branches = conv.weight, conv.stride, branches
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        out, width = self.weight.shape[0], self.weight.shape[1] // self.branches
        each = (
            self.weight.reshape(out, self.branches, width)
            .transpose(0, 1)
            .reshape(self.branches * out, width, 1, 1)
        )
        bias = None if self.bias is None else (self.bias / self.branches).repeat(self.branches)
        return F.conv2d(x, each, bias, self.stride, groups=self.branches)


class SharedNorm(nn.Module):
    """A BatchNorm of a sum, dealt out to its parts: x (N, branches * C, H, W) -> the same shape.

    The parts of all branches add up to what the BatchNorm gives of the sum.

    In training the statistics are those of the sum; each part has 1 / `share` of the shift, where
    `share` is the number of branches that there were at first.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: Any, branches: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum, self.share = (
            norm.weight,
            norm.bias,
            norm.eps,
            norm.momentum,
            branches,
        )
        self.track_running_stats = norm.track_running_stats
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self._statistics(x) if self.training else (self.running_mean, self.running_var)
        scale = (
            torch.rsqrt(var + self.eps)
            if self.weight is None
            else self.weight * torch.rsqrt(var + self.eps)
        )
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        count = x.shape[1] // len(scale)
        return (
            x * scale.repeat(count)[:, None, None]
            + (shift / self.share).repeat(count)[:, None, None]
        )

    def moments(self, x: Tensor, over: Sequence[int]) -> tuple[Tensor, Tensor, float]:
        """Mean, variance, and of how many values: of the images here (see together.moments)."""
        var, mean = torch.var_mean(x, list(over), correction=0)
        return mean, var, x.numel() / mean.numel()

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.reshape(
            x.shape[0], x.shape[1] // len(self.running_mean), len(self.running_mean), *x.shape[2:]
        ).sum(1)
        mean, var, many = self.moments(total, (0, 2, 3))
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), rate)
            self.running_var.lerp_(var.detach() * many / max(many - 1, 1), rate)
        return mean, var

    def reset_running_stats(self) -> None:
        """Begin the running statistics anew, as BatchNorm does."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()
