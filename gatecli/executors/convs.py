"""Convolutions with gated channels: what a gate leaves closed is sliced out of the weights before
they are used.

For one image that is what this image needs; in a batch it is the union of what its images need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class SkipChannels(Forgetful):
    """`choose(norm(conv(x)), base(base_path(x)), z, rows)`, the convolution computed for open
    output channels only.

    conv, norm, gate: paths; parts, shared: the base path's, see gatecli.graph.channels; rows: the
        output channels that are gated, the others are always open;
    reads_input: the gate looks at x, not at the base path.
    """

    def __init__(
        self,
        root: nn.Module,
        conv: str,
        norm: str,
        gate: str,
        parts: Parts,
        shared: bool,
        rows: Channels,
        reads_input: bool,
    ) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the modules belong to the network itself
        self.paths, self.parts, self.shared, self.rows, self.reads_input = (
            (conv, norm, gate),
            parts,
            shared,
            rows,
            reads_input,
        )
        self.places = places_of(rows, rows_of(parts))
        self.folded, self.cut = Remembered(), Remembered()

    def forward(self, x: Tensor) -> Tensor:
        """x (N, Ci, H, W) -> (N, Co, H', W')."""
        conv, norm, gate = modules(self.root, self.paths)
        unasked = gate.unasked
        z = None if unasked or not (gate.settled or self.reads_input) else gate(x)
        if unasked or (gate.settled and z is not None and bool(z.all())):
            result: Tensor = norm(conv(x))
            return result
        base = self._base(conv, x)
        gated = take_channels(base, self.places)
        base, z = self._widened(conv, base, gate(gated) if z is None else z)
        weight, *folded = _remembered(
            self.folded,
            lambda: self._fold(conv, norm, gate.base),
            *self._tensors(conv, norm, gate.base),
        )
        on = z > 0
        scale, shift = (
            torch.where(on, opened, closed)[:, :, None, None]
            for opened, closed in zip(folded[:2], folded[2:], strict=True)
        )
        out = torch.addcmul(shift, base, scale)
        open_ = tuple(on.any(0).nonzero().reshape(-1).tolist())
        if open_:
            inside = (
                take_channels(x, others(conv.in_channels, self.parts[0][1])) if self.shared else x
            )
            sums = F.conv2d(
                inside, take(weight, 0, open_), None, conv.stride, conv.padding, conv.dilation
            ).to(out.dtype)
            sums = (
                sums * take(z, 1, open_)[:, :, None, None].to(sums.dtype)
                if x.shape[0] > 1
                else sums
            )
            out.index_add_(1, torch.tensor(open_, device=x.device), sums)
        return out

    def _widened(self, conv: Any, base: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The base path's sums and the decisions, with places for the output channels that are
        always open.
        """
        rows, covered = self.rows, rows_of(self.parts)
        if len(covered) < conv.out_channels:
            wide = base.new_zeros(base.shape[0], conv.out_channels, *base.shape[2:])
            base = wide.index_copy(1, torch.tensor(covered, device=base.device), base)
        if len(rows) < conv.out_channels:
            z = z.new_ones(z.shape[0], conv.out_channels).index_copy(
                1, torch.tensor(rows, device=z.device), z
            )
        return base, z

    def _base(self, conv: Any, x: Tensor) -> Tensor:
        weight = _remembered(self.cut, lambda: base_weight(conv.weight, self.parts), conv.weight)
        return in_parts(x, weight, self.parts, conv.stride, conv.padding, conv.dilation)

    @staticmethod
    def _tensors(conv: Any, *norms: Any) -> list[Tensor]:
        named = [
            conv.weight,
            conv.bias,
            *(
                each
                for norm in norms
                for each in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            ),
        ]
        return [tensor for tensor in named if tensor is not None]

    def _fold(
        self, conv: Any, norm: Any, low: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The weights times BatchNorm's scale, of those input channels that must still be looked
        at; then what the base path's sums are multiplied by
        where open, what is added there, and both where closed: (Co,) each.
        """
        scale, shift = _affine(norm)
        shift = shift if conv.bias is None else shift + conv.bias * scale
        weight = conv.weight * scale.reshape(-1, 1, 1, 1)
        closed = [
            each.new_zeros(conv.out_channels).index_copy(
                0, torch.tensor(self.rows, device=each.device), each
            )
            for each in _affine(low)
        ]
        if self.shared:
            return (
                take(weight, 1, others(conv.in_channels, self.parts[0][1])),
                scale,
                shift,
                *closed,
            )  # type: ignore[return-value]
        return weight, torch.zeros_like(scale), shift, *closed


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in evaluation multiplies by, and adds: (C,) each."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    return scale, (
        -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
    )


class SkipInputs(nn.Module):
    """`conv(keep_inputs(x, z))`, computed from the open input channels only."""

    def __init__(self, root: nn.Module, conv: str, order: Channels) -> None:
        super().__init__()
        self.__dict__["root"] = root
        self.path, self.order = conv, order

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (N, Ci, H, W), z (N, Ci - those of `order`) -> (N, Co, H', W')."""
        (conv,) = modules(self.root, (self.path,))
        if bool(z.all()):
            result: Tensor = conv(x)
            return result
        gated = others(x.shape[1], self.order)
        open_ = [gated[unit] for unit in z.any(0).nonzero().reshape(-1).tolist()]
        channels = tuple(sorted([*self.order, *open_]))
        inside = take_channels(x, channels)
        if x.shape[0] > 1:
            flags = torch.ones_like(x[:, :, 0, 0]).index_copy_(
                1, torch.tensor(gated, device=x.device), z.to(x.dtype)
            )
            inside = inside * take_channels(flags, channels)[:, :, None, None]
        weight = conv.weight.index_select(1, torch.tensor(channels, device=x.device))
        return F.conv2d(inside, weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def modules(root: Any, paths: Sequence[str]) -> list[Any]:
    return [root.get_submodule(path) for path in paths]


def _remembered(memory: Remembered, compute: Any, *tensors: Tensor) -> Any:
    """Evaluation without autograd remembers; with it, gradients must reach the tensors."""
    return compute() if torch.is_grad_enabled() else memory(compute, *tensors)
