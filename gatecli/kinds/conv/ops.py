"""What a convolution with gated channels computes.

The operations that gatecli.graph.convs puts into a graph.

`parts` describe a base path: for each group the output channels (rows of the weight), and the input
channels that they look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.graph.ops import describe, take_channels
from gatecli.graph.runs import others

__all__ = [
    "BasePath",
    "Channels",
    "Parts",
    "base_parts",
    "base_path",
    "base_weight",
    "choose",
    "geometry_of",
    "in_parts",
    "keep_inputs",
    "keep_rows",
    "merge",
    "places_of",
    "rest_weight",
    "rows_of",
    "take",
]

Channels = tuple[int, ...]
Parts = tuple[tuple[Channels, Channels], ...]
Geometry = tuple[Any, Any, Any]  # stride, padding, dilation


def geometry_of(conv: Any) -> Geometry:
    """A convolution's stride, padding and dilation."""
    return conv.stride, conv.padding, conv.dilation


def base_parts(rows: int, order: Channels, groups: int) -> Parts:
    """The base path of so many output channels in equal groups.

    `order` lists the input channels of each group in turn.
    """
    size, width = rows // groups, len(order) // groups
    return tuple(
        (tuple(range(g * size, (g + 1) * size)), order[g * width : (g + 1) * width])
        for g in range(groups)
    )


def rows_of(parts: Parts) -> Channels:
    """All output channels of a base path, part by part."""
    return tuple(row for rows, _ in parts for row in rows)


def places_of(wanted: Sequence[int], among: Channels) -> Channels:
    """Where the wanted channels are among others."""
    where = {channel: place for place, channel in enumerate(among)}
    return tuple(where[channel] for channel in wanted)


def keep_rows(parts: Parts, numbers: Mapping[int, int]) -> Parts:
    """The base path of some of its output channels alone, which get new numbers: old -> new."""
    kept = []
    for rows, inputs in parts:
        renumbered = tuple(numbers[row] for row in rows if row in numbers)
        if renumbered:
            kept.append((renumbered, inputs))
    return tuple(kept)


def base_weight(weight: Tensor, parts: Parts) -> Tensor:
    """What the base path has of a convolution's weight (Co, Ci, kh, kw).

    (rows in all, width, kh, kw).
    """
    cut = [take(take(weight, 0, rows), 1, inputs) for rows, inputs in parts]
    return torch.cat(cut) if len(cut) > 1 else cut[0]


def rest_weight(weight: Tensor, parts: Parts) -> Tensor:
    """What the base path lacks of a convolution's weight (Co, Ci, kh, kw).

    The rows are in the parts' order, and each has its own part's input channels left out:
    (rows in all, Ci - width, kh, kw).
    """
    cut = [
        take(take(weight, 0, rows), 1, others(weight.shape[1], inputs)) for rows, inputs in parts
    ]
    return torch.cat(cut) if len(cut) > 1 else cut[0]


def take(tensor: Tensor, dim: int, index: Channels) -> Tensor:
    """Entries `index` of a dimension; the tensor itself where these are all, in order."""
    return (
        tensor
        if index == tuple(range(tensor.shape[dim]))
        else tensor.index_select(dim, torch.tensor(index, device=tensor.device))
    )


def in_parts(x: Tensor, weight: Tensor, parts: Parts, geometry: Geometry) -> Tensor:
    """The sums of a base path.

    X (N, Ci, H, W), weight as `base_weight` gives it -> (N, rows in all, H', W').
    """
    sizes = [len(rows) for rows, _ in parts]
    if len(set(sizes)) == 1:
        channels = tuple(channel for _, inputs in parts for channel in inputs)
        return F.conv2d(take_channels(x, channels), weight, None, *geometry, len(parts))
    values = [
        F.conv2d(take_channels(x, inputs), rows, None, *geometry)
        for (_, inputs), rows in zip(parts, torch.split(weight, sizes), strict=True)
    ]
    return torch.cat(values, 1)


def base_path(x: Tensor, weight: Tensor, parts: Parts, geometry: Geometry) -> Tensor:
    """The base path's sums, without the convolution's bias.

    X (N, Ci, H, W), the convolution's weight (Co, Ci, kh, kw) -> (N, rows in all, H', W').
    """
    return in_parts(x, base_weight(weight, parts), parts, geometry)


def choose(opened: Tensor, closed: Tensor, z: Tensor, rows: Channels) -> Tensor:
    """`opened`, but of its channels `rows` those in which z = 0 are `closed`'s.

    `opened` (N, C, H, W), `closed` (N, k, H, W); z (N, k) or (N, k, H, W), which gets a gradient.
    """
    z = z.to(opened.dtype).reshape(*z.shape, *[1] * (opened.ndim - z.ndim))
    if len(rows) == opened.shape[1]:
        return z * opened + (1 - z) * closed
    index = torch.tensor(rows, device=opened.device)
    return opened.index_copy(1, index, z * opened.index_select(1, index) + (1 - z) * closed)


def keep_inputs(x: Tensor, z: Tensor, order: Channels) -> Tensor:
    """`x` (N, Ci, H, W) with zeros where a channel's decision is 0.

    `z` (N, k) decides, in turn, for the channels that are not in `order`.
    """
    gated = torch.tensor(others(x.shape[1], order), device=x.device)
    flags = torch.ones(x.shape[0], x.shape[1], dtype=x.dtype, device=x.device).index_copy(
        1, gated, z.to(x.dtype)
    )
    return x * flags[:, :, None, None]


def merge(opened: Tensor, closed: Tensor, places: Channels) -> Tensor:
    """The channels of two values as one value.

    Those of `opened` (N, k, H, W) go to `places`, those of `closed` to the others.
    """
    together = torch.cat((opened, closed), 1)
    origin = {
        place: index for index, place in enumerate([*places, *others(together.shape[1], places)])
    }
    return take_channels(together, tuple(origin[place] for place in range(together.shape[1])))


# A base path is a part of its convolution, and counted there.
describe(base_path, fresh=True, costs=lambda node: False)
for _operation in (choose, keep_inputs, merge):
    describe(_operation, fresh=True)


class BasePath(nn.Module):
    """The base path of those output channels alone that never open, and its BatchNorm.

    Args: weight as `base_weight` gives it for `parts` of `conv`; base: the BatchNorm of these
    output channels.
    """

    def __init__(self, weight: Tensor, base: nn.Module, conv: nn.Conv2d, parts: Parts) -> None:
        super().__init__()
        self.weight, self.base, self.parts = (
            nn.Parameter(weight, conv.weight.requires_grad),
            base,
            parts,
        )
        self.geometry = geometry_of(conv)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (N, Ci, H, W) -> (N, rows in all, H', W')."""
        result: Tensor = self.base(in_parts(x, self.weight, self.parts, self.geometry))
        return result
