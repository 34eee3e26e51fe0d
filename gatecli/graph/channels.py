"""What a convolution with gated channels computes: the operations that gatecli.graph.convs puts into a graph.

`order` lists the input channels of the base path, those of each group of output channels in turn.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.graph.ops import take_channels

Channels = tuple[int, ...]


def others(count: int, channels: Sequence[int]) -> Channels:
    """Those of `count` channels that are not among `channels`."""
    return tuple(sorted(set(range(count)) - set(channels)))


def base_weight(weight: Tensor, order: Channels, groups: int) -> Tensor:
    """What the base path has of a convolution's weight: (Co, Ci, kh, kw) -> (Co, width, kh, kw).

    The g-th of `groups` equal parts of the output channels reads the input channels order[g * width : (g + 1) * width].
    """
    index = torch.tensor(order, device=weight.device).reshape(groups, 1, -1, 1, 1)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return grouped.take_along_dim(index, 2).flatten(0, 1)


def base_path(x: Tensor, weight: Tensor, order: Channels, groups: int, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """The base path's sums, without the convolution's bias: x (N, Ci, H, W), weight (Co, Ci, kh, kw) -> (N, Co, H', W')."""
    return F.conv2d(take_channels(x, order), base_weight(weight, order, groups), None, stride, padding, dilation, groups)


def choose(opened: Tensor, closed: Tensor, z: Tensor) -> Tensor:
    """`opened` where z = 1, `closed` where z = 0: both (N, C, H, W), z (N, C) or (N, C, H, W), with a gradient to z."""
    z = z.to(opened.dtype).reshape(*z.shape, *[1] * (opened.ndim - z.ndim))
    return z * opened + (1 - z) * closed


def keep_inputs(x: Tensor, z: Tensor, order: Channels) -> Tensor:
    """x (N, Ci, H, W) with zeros where a channel's decision is 0; z (N, k) decides, in turn, for the channels that are not in `order`."""
    gated = torch.tensor(others(x.shape[1], order), device=x.device)
    flags = torch.ones(x.shape[0], x.shape[1], dtype=x.dtype, device=x.device).index_copy(1, gated, z.to(x.dtype))
    return x * flags[:, :, None, None]


def merge(opened: Tensor, closed: Tensor, places: Channels) -> Tensor:
    """The channels of two values as one value: those of `opened` (N, k, H, W) go to `places`, those of `closed` to the others."""
    together = torch.cat((opened, closed), 1)
    origin = {place: index for index, place in enumerate([*places, *others(together.shape[1], places)])}
    return take_channels(together, tuple(origin[place] for place in range(together.shape[1])))


class BasePath(nn.Module):
    """The base path of those output channels alone that never open, and its BatchNorm.

    Args: weight (k, width, kh, kw) of the output channels `rows` of `conv`; base: the BatchNorm of these.
    """

    def __init__(self, weight: Tensor, base: nn.Module, conv: nn.Conv2d, rows: Sequence[int], order: Channels, groups: int) -> None:
        super().__init__()
        self.weight, self.base = nn.Parameter(weight, conv.weight.requires_grad), base
        self.how: Any = (conv.stride, conv.padding, conv.dilation)
        size, width = conv.out_channels // groups, len(order) // groups
        starts = [sum(row < group * size for row in rows) for group in range(groups + 1)]
        self.parts = [(starts[g], starts[g + 1], order[g * width : (g + 1) * width]) for g in range(groups) if starts[g] < starts[g + 1]]

    def forward(self, x: Tensor) -> Tensor:
        """x (N, Ci, H, W) -> (N, k, H', W')."""
        values = [F.conv2d(take_channels(x, channels), self.weight[first:end], None, *self.how) for first, end, channels in self.parts]
        result: Tensor = self.base(torch.cat(values, 1) if len(values) > 1 else values[0])
        return result
