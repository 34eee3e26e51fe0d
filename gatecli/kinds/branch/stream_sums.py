"""What branches read, as products of matrices: see gatecli.kinds.branch.executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatecli.kinds.branch.modules import FanOut
from gatecli.lowering.norms import affine

__all__ = ["Folded", "Sources", "direct", "fold", "products", "spread_streams", "summed"]

SMALL = 64  # positions of a map, below which a batch's samples are better multiplied together


class Folded:
    """The weights of branches, and of the streams that were asked for last.

    Attributes:
        weight: of each branch, BatchNorm's scale in it, what is added behind: (C, out, w + 1).
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.rows: list[list[int]] = []

    def joint(self, rows: list[list[int]]) -> Tensor:
        """The weights of streams, each of the branches `rows[j]`: (streams, out, K * w + 1)."""
        if rows != self.rows:
            self.rows = rows
            self.joined = torch.stack([self._joined(row) for row in rows])
        return self.joined

    def _joined(self, row: list[int]) -> Tensor:
        parts = [self.weight[k, :, :-1] for k in row]
        added = torch.stack([self.weight[k, :, -1] for k in row]).sum(0)
        return torch.cat([*parts, added[:, None]], 1)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What streams are computed from.

    Attributes:
        h: what the branches' last convolutions read, (N, C, w, positions).
        carried: the shortcut, (N, 1 or its streams, out, positions).
        places: of each branch the stream of the shortcut that it belongs to.
        connections: how each stream reads the branches, 0 where not: (streams, C).
        divisor: of what is carried.
    """

    h: Tensor
    carried: Tensor
    places: Sequence[int]
    connections: Tensor
    divisor: int


def fold(conv: Any, norm: Any) -> Tensor:
    """Fold a BatchNorm into the convolution before it, branch by branch.

    Returns:
        The weights of each branch, and what is added: (C, out, w + 1).
    """
    scale, shift = affine(norm)
    if isinstance(conv, FanOut):
        count = conv.branches
        weight = conv.weight.reshape(len(scale), count, -1).transpose(0, 1)
        added = shift / norm.share
        if conv.bias is not None:
            added = added + conv.bias * scale / count
        return torch.cat([weight * scale[:, None], added[:, None].expand(count, -1, -1)], 2)
    added = shift if conv.bias is None else shift + conv.bias * scale
    folded = torch.cat([conv.weight.flatten(1) * scale[:, None], added[:, None]], 1)
    return folded.reshape(conv.groups, len(scale) // conv.groups, -1)


def products(weight: Tensor, x: Tensor) -> Tensor:
    """Multiply maps by weights that all samples share, without copies of these.

    Shape:
        weight (C, o, i), x (N, C, i, positions) -> (N, C, o, positions)
    """
    count = len(x)
    branches, out, _ = weight.shape
    positions = x.shape[3]
    if count == 1:
        return torch.bmm(weight, x[0])[None]
    if positions < SMALL and count > 1:
        together = torch.bmm(weight, x.permute(1, 2, 0, 3).reshape(branches, -1, count * positions))
        return together.reshape(branches, out, count, positions).permute(2, 0, 1, 3).contiguous()
    return torch.stack([torch.bmm(weight, each) for each in x])


def spread_streams(x: Tensor, places: Sequence[int], out: int) -> Tensor:
    """Give each branch k the stream `places[k]`.

    Shape:
        x (N, streams * out, H, W) -> (N, C * out, H, W)
    """
    streams = x.reshape(x.shape[0], x.shape[1] // out, out, *x.shape[2:])
    index = torch.tensor(places, device=x.device)
    return streams.index_select(1, index).reshape(x.shape[0], len(places) * out, *x.shape[2:])


def direct(joint: Tensor, read: Sources, rows: list[list[int]]) -> Tensor:
    """A product for each stream, into the sum of what it carries.

    Each stream is finished while it is at hand.

    Args:
        joint: the streams' weights, (streams, out, K * w + 1).
        read: what they are computed from.
        rows: the branches that each reads.

    Returns:
        (N, streams, out, positions).
    """
    h = read.h
    carried = read.carried
    found = h.new_empty(len(h), len(rows), *carried.shape[2:])
    ones = h.new_ones(len(h), 1, h.shape[3])
    for number, row in enumerate(rows):
        inside = torch.cat([*(h[:, k] for k in row), ones], 1)
        parts = [carried[:, 0]]
        if carried.shape[1] > 1:
            parts = [carried[:, read.places[k]] for k in row]
        x = found[:, number]
        start = parts[0]
        for part in parts[1:]:
            start = torch.add(start, part, out=x)
        share = len(row) / (read.divisor * len(parts))
        for sample in range(len(h)):  # a batched product would copy the weights for each
            torch.addmm(start[sample], joint[number], inside[sample], beta=share, out=x[sample])
        x.relu_()
    return found


def summed(weight: Tensor, read: Sources) -> Tensor:
    """All branches' values at once, and one product that adds them up.

    Args:
        weight: of the branches, (C, out, w + 1).
        read: what they are computed from.

    Returns:
        (N, streams, out * positions).
    """
    h = read.h
    carried = read.carried
    inside = torch.cat([h, h.new_ones(len(h), h.shape[1], 1, h.shape[3])], 2)
    values = products(weight, inside)
    if carried.shape[1] not in (1, len(read.places)):
        carried = carried.index_select(1, torch.tensor(read.places, device=h.device))
    values.add_(carried, alpha=1 / read.divisor)
    rows = values.reshape(len(h), len(weight), -1)
    return torch.matmul(read.connections.to(h.dtype), rows).relu_()
