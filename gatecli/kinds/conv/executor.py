"""Convolutions with gated channels.

What a gate leaves closed is sliced out of the weights before they are used.

For one image that is what this image needs; in a batch it is the union of what its images need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.gates.cache import Forgetful, Remembered
from gatecli.graph.ops import take_channels
from gatecli.graph.runs import others
from gatecli.kinds.conv.ops import (
    Channels,
    Parts,
    base_weight,
    geometry_of,
    in_parts,
    rest_weight,
    take,
)
from gatecli.lowering.inplace import Executor

__all__ = ["SkipChannels", "SkipInputs", "modules"]


class SkipChannels(Forgetful):
    """`choose(norm(conv(x)), base(base_path(x)), z, rows)` for what is open.

    The convolution is computed for open output channels only.

    Attributes:
        paths: Of the convolution, the BatchNorm and the gate.
        parts: The base path's, see gatecli.kinds.conv.ops; they have all output channels in order.
        rows: The output channels that are gated; the others are always open.
        reads_input: The gate looks at x, not at the base path.
    """

    fresh = True

    def __init__(
        self,
        root: nn.Module,
        paths: tuple[str, str, str],
        parts: Parts,
        rows: Channels,
        *,
        reads_input: bool,
    ) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the modules belong to the network itself
        self.paths = paths
        self.parts = parts
        self.rows = rows
        self.reads_input = reads_input
        self.folded, self.cut = Remembered(), Remembered()

    def forward(self, x: Tensor) -> Tensor:
        """`x` (N, Ci, H, W) -> (N, Co, H', W')."""
        conv, norm, gate = modules(self.root, self.paths)
        unasked = gate.unasked
        z = None if unasked or not (gate.settled or self.reads_input) else gate(x)
        if unasked or (gate.settled and z is not None and bool(z.all())):
            result: Tensor = norm(conv(x))
            return result
        base = self._base(conv, x)
        z = self._widened(conv, gate(take_channels(base, self.rows)) if z is None else z)
        tensors = self._tensors(conv, norm, gate.base)
        weight, *folded = _remembered(
            self.folded, lambda: self._fold(conv, norm, gate.base), *tensors
        )
        out = _affinely(base, z > 0, folded)
        self._add_rest(out, conv, x, z, weight)
        return out

    def _add_rest(self, out: Tensor, conv: Any, x: Tensor, z: Tensor, weight: Tensor) -> None:
        """Add to `out` what open channels have beyond their base path, part by part."""
        opened = set((z > 0).any(0).nonzero().reshape(-1).tolist())
        for part, inputs in self.parts:
            rows = tuple(row for row in part if row in opened)
            if not rows:
                continue
            rest = take_channels(x, others(conv.in_channels, inputs))
            sums = F.conv2d(rest, take(weight, 0, rows), None, *geometry_of(conv)).to(out.dtype)
            if x.shape[0] > 1:
                sums = sums * take(z, 1, rows)[:, :, None, None].to(sums.dtype)
            out.index_add_(1, torch.tensor(rows, device=x.device), sums)

    def _widened(self, conv: Any, z: Tensor) -> Tensor:
        """The decisions for all output channels: those without a gate are always open."""
        if len(self.rows) == conv.out_channels:
            return z
        rows = torch.tensor(self.rows, device=z.device)
        return z.new_ones(z.shape[0], conv.out_channels).index_copy(1, rows, z)

    def _base(self, conv: Any, x: Tensor) -> Tensor:
        weight = _remembered(self.cut, lambda: base_weight(conv.weight, self.parts), conv.weight)
        return in_parts(x, weight, self.parts, geometry_of(conv))

    @staticmethod
    def _tensors(conv: Any, *norms: Any) -> list[Tensor]:
        named = [conv.weight, conv.bias]
        for norm in norms:
            named += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return [tensor for tensor in named if tensor is not None]

    def _fold(
        self, conv: Any, norm: Any, low: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The weights, and what the base path's sums are multiplied by and what is added.

        The weights are times BatchNorm's scale, of those input channels that the row's base path
        has not looked at; then come what the base path's sums are multiplied by where open, what is
        added there, and both where closed: (Co,) each.
        """
        scale, shift = _affine(norm)
        shift = shift if conv.bias is None else shift + conv.bias * scale
        weight = rest_weight(conv.weight * scale.reshape(-1, 1, 1, 1), self.parts)
        low_scale, low_shift = (self._placed(each, conv.out_channels) for each in _affine(low))
        return weight, scale, shift, low_scale, low_shift

    def _placed(self, each: Tensor, channels: int) -> Tensor:
        """Values of the gated channels among all channels, zeros elsewhere."""
        rows = torch.tensor(self.rows, device=each.device)
        return each.new_zeros(channels).index_copy(0, rows, each)


def _affinely(base: Tensor, on: Tensor, folded: Sequence[Tensor]) -> Tensor:
    """The base path's sums, scaled and shifted as each channel's decision says."""
    scale = torch.where(on, folded[0], folded[2])[:, :, None, None]
    shift = torch.where(on, folded[1], folded[3])[:, :, None, None]
    return torch.addcmul(shift, base, scale)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in evaluation multiplies by, and adds: (C,) each."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    return scale, (
        -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
    )


class SkipInputs(Executor):
    """`conv(keep_inputs(x, z))`, computed from the open input channels only."""

    def __init__(self, root: nn.Module, conv: str, order: Channels) -> None:
        super().__init__(root)
        self.path, self.order = conv, order

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """`x` (N, Ci, H, W), `z` (N, Ci - those of `order`) -> (N, Co, H', W')."""
        (conv,) = modules(self.root, (self.path,))
        if bool(z.all()):
            result: Tensor = conv(x)
            return result
        gated = others(x.shape[1], self.order)
        open_ = [gated[unit] for unit in z.any(0).nonzero().reshape(-1).tolist()]
        channels = tuple(sorted([*self.order, *open_]))
        if not channels:
            return self._nothing(conv, x)
        inside = take_channels(x, channels)
        if x.shape[0] > 1:
            flags = torch.ones_like(x[:, :, 0, 0]).index_copy_(
                1, torch.tensor(gated, device=x.device), z.to(x.dtype)
            )
            inside = inside * take_channels(flags, channels)[:, :, None, None]
        weight = conv.weight.index_select(1, torch.tensor(channels, device=x.device))
        return F.conv2d(inside, weight, conv.bias, *geometry_of(conv))

    @staticmethod
    def _nothing(conv: Any, x: Tensor) -> Tensor:
        """What the convolution gives for no input channel at all: nothing is multiplied."""
        if torch.is_grad_enabled():  # x is to get its gradient of zero
            result: Tensor = conv(x * 0)
            return result
        none = conv(x[:0])
        out: Tensor = none.new_zeros(len(x), *none.shape[1:])
        return out if conv.bias is None else out + conv.bias[:, None, None]


def modules(root: Any, paths: Sequence[str]) -> list[Any]:
    """The modules at these paths under `root`, in their order."""
    return [root.get_submodule(path) for path in paths]


def _remembered(memory: Remembered, compute: Any, *tensors: Tensor) -> Any:
    """Evaluation without autograd remembers; with it, gradients must reach the tensors."""
    return compute() if torch.is_grad_enabled() else memory(compute, *tensors)
