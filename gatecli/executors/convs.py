"""Convolutions with gated channels: only what a gate leaves open is taken from the weights.

For one image that is what this image needs; in a batch it is the union of what its images need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.executors.norms import affine, tensors_of
from gatecli.gates import Forgetful, Remembered
from gatecli.graph.channels import (
    Channels,
    Parts,
    base_weight,
    in_parts,
    others,
    places_of,
    rows_of,
    take,
)
from gatecli.graph.ops import take_channels

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class GatedOutputs:
    """A convolution whose output channels are gated.

    Attributes:
        conv: path of the convolution.
        norm: path of the BatchNorm behind it.
        gate: path of the gate, which has the BatchNorm of closed channels.
        parts: the base path, see gatecli.graph.channels.
        shared: what an open channel needs is added to the base path's sums.
        rows: the output channels that are gated; the others are always open.
        reads_input: the gate looks at the convolution's input, not at the base path.
    """

    conv: str
    norm: str
    gate: str
    parts: Parts
    shared: bool
    rows: Channels
    reads_input: bool


@dataclass(frozen=True, kw_only=True)
class _Folded:
    """What a convolution's weights and its two BatchNorms come to.

    Attributes:
        weight: times BatchNorm's scale, of the input channels that must still be looked at.
        scale: what the base path's sums are multiplied by in open channels, (Co,).
        shift: what is added there.
        closed_scale: what they are multiplied by in closed channels, (Co,).
        closed_shift: what is added there.
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor
    closed_scale: Tensor
    closed_shift: Tensor


class SkipChannels(Forgetful):
    """`choose(norm(conv(x)), base(base_path(x)), z, rows)`.

    The convolution is computed for open output channels only.
    """

    def __init__(self, root: nn.Module, gated: GatedOutputs) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the modules belong to the network itself
        self.gated = gated
        self.places = places_of(gated.rows, rows_of(gated.parts))
        self.folded = Remembered()
        self.cut = Remembered()

    def forward(self, x: Tensor) -> Tensor:
        """x (N, Ci, H, W) -> (N, Co, H', W')."""
        conv = self.root.get_submodule(self.gated.conv)
        norm = self.root.get_submodule(self.gated.norm)
        gate = self.root.get_submodule(self.gated.gate)
        asked_first = gate.settled or self.gated.reads_input
        z = gate(x) if asked_first and not gate.unasked else None
        all_open = gate.settled and z is not None and bool(z.all())
        if gate.unasked or all_open:
            result: Tensor = norm(conv(x))
            return result
        base = self._base(conv, x)
        if z is None:
            z = gate(take_channels(base, self.places))
        base, z = self._widened(conv, base, z)
        tensors = tensors_of(conv, norm, gate.base)
        folded = _remembered(self.folded, lambda: self._fold(conv, norm, gate.base), *tensors)
        on = z > 0
        scale = torch.where(on, folded.scale, folded.closed_scale)
        shift = torch.where(on, folded.shift, folded.closed_shift)
        out = torch.addcmul(shift[:, :, None, None], base, scale[:, :, None, None])
        channels = tuple(on.any(0).nonzero().reshape(-1).tolist())
        if channels:
            sums = self._open_sums(conv, x, folded.weight, channels).to(out.dtype)
            if x.shape[0] > 1:
                sums = sums * take(z, 1, channels)[:, :, None, None].to(sums.dtype)
            out.index_add_(1, torch.tensor(channels, device=x.device), sums)
        return out

    def _base(self, conv: Any, x: Tensor) -> Tensor:
        """The base path's sums, (N, rows in all, H', W')."""
        parts = self.gated.parts
        weight = _remembered(self.cut, lambda: base_weight(conv.weight, parts), conv.weight)
        return in_parts(x, weight, parts, conv.stride, conv.padding, conv.dilation)

    def _widened(self, conv: Any, base: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The base path's sums and the decisions, with places for channels that are always open."""
        covered = rows_of(self.gated.parts)
        if len(covered) < conv.out_channels:
            wide = base.new_zeros(base.shape[0], conv.out_channels, *base.shape[2:])
            base = wide.index_copy(1, torch.tensor(covered, device=base.device), base)
        rows = self.gated.rows
        if len(rows) < conv.out_channels:
            ones = z.new_ones(z.shape[0], conv.out_channels)
            z = ones.index_copy(1, torch.tensor(rows, device=z.device), z)
        return base, z

    def _open_sums(self, conv: Any, x: Tensor, weight: Tensor, channels: Channels) -> Tensor:
        """What open channels need beside the base path's sums, (N, channels, H', W')."""
        if self.gated.shared:
            x = take_channels(x, self._unseen(conv))
        own = take(weight, 0, channels)
        return F.conv2d(x, own, None, conv.stride, conv.padding, conv.dilation)

    def _unseen(self, conv: Any) -> Channels:
        """The input channels that the base path does not look at."""
        return others(conv.in_channels, self.gated.parts[0][1])

    def _fold(self, conv: Any, norm: Any, low: Any) -> _Folded:
        """Fold the BatchNorms of open channels (`norm`) and of closed ones (`low`)."""
        scale, shift = affine(norm)
        shift = shift if conv.bias is None else shift + conv.bias * scale
        weight = conv.weight * scale.reshape(-1, 1, 1, 1)
        if self.gated.shared:
            weight = take(weight, 1, self._unseen(conv))
        low_scale, low_shift = affine(low)
        return _Folded(
            weight=weight,
            scale=scale if self.gated.shared else torch.zeros_like(scale),
            shift=shift,
            closed_scale=self._spread(conv, low_scale),
            closed_shift=self._spread(conv, low_shift),
        )

    def _spread(self, conv: Any, values: Tensor) -> Tensor:
        """Values of the gated channels in their places among all, zeros in the others'."""
        index = torch.tensor(self.gated.rows, device=values.device)
        return values.new_zeros(conv.out_channels).index_copy(0, index, values)


class SkipInputs(nn.Module):
    """`conv(keep_inputs(x, z))`, computed from the open input channels only.

    Attributes:
        path: of the convolution.
        order: the input channels that are not gated.
    """

    def __init__(self, root: nn.Module, conv: str, order: Channels) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the convolution belongs to the network itself
        self.path = conv
        self.order = order

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (N, Ci, H, W), z (N, Ci - those of `order`) -> (N, Co, H', W')."""
        conv = self.root.get_submodule(self.path)
        if bool(z.all()):
            result: Tensor = conv(x)
            return result
        gated = others(x.shape[1], self.order)
        open_ = [gated[unit] for unit in z.any(0).nonzero().reshape(-1).tolist()]
        channels = tuple(sorted([*self.order, *open_]))
        inside = take_channels(x, channels)
        if x.shape[0] > 1:
            index = torch.tensor(gated, device=x.device)
            flags = torch.ones_like(x[:, :, 0, 0]).index_copy_(1, index, z.to(x.dtype))
            inside = inside * take_channels(flags, channels)[:, :, None, None]
        weight = conv.weight.index_select(1, torch.tensor(channels, device=x.device))
        return F.conv2d(inside, weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def _remembered(memory: Remembered, compute: Callable[[], T], *tensors: Tensor) -> T:
    """Evaluation without autograd remembers; with it, gradients must reach the tensors."""
    if torch.is_grad_enabled():
        return compute()
    found: T = memory(compute, *tensors)
    return found
