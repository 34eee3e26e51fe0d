"""Convolutions with gated channels: what a gate leaves closed is sliced out of the weights before they are used.

For one image that is what this image needs; in a batch it is the union of what its images need.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.gates import Forgetful, Remembered
from gatecli.graph.channels import Channels, Parts, base_weight, choose, in_parts, others, places_of, rows_of, take
from gatecli.graph.ops import take_channels


class SkipChannels(Forgetful):
    """`choose(norm(conv(x)), base(base_path(x)), z, rows)`, the convolution computed for open output channels only.

    conv, norm, gate: paths; parts, shared: the base path's, see gatecli.graph.channels; rows: the output channels that are gated, the others are always open;
    reads_input: the gate looks at x, not at the base path.
    """

    def __init__(self, root: nn.Module, conv: str, norm: str, gate: str, parts: Parts, shared: bool, rows: Channels, reads_input: bool) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the modules belong to the network itself
        self.paths, self.parts, self.shared, self.rows, self.reads_input = (conv, norm, gate), parts, shared, rows, reads_input
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
        z = gate(gated) if z is None else z
        out, z = self._widened(conv, gate.base(gated), z)
        open_ = tuple(z.any(0).nonzero().reshape(-1).tolist())
        if not open_:
            return out
        opened = self._opened(conv, norm, x, base, open_).to(out.dtype)
        index = torch.tensor(open_, device=x.device)
        if x.shape[0] > 1:
            opened = choose(opened, out.index_select(1, index), z.index_select(1, index), tuple(range(len(open_))))
        return out.index_copy(1, index, opened) if torch.is_grad_enabled() else out.index_copy_(1, index, opened)

    def _widened(self, conv: Any, closed: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What is closed, and the decisions, with places for the output channels that are always open."""
        if len(self.rows) == conv.out_channels:
            return closed, z
        index = torch.tensor(self.rows, device=closed.device)
        wide = closed.new_zeros(closed.shape[0], conv.out_channels, *closed.shape[2:]).index_copy(1, index, closed)
        return wide, z.new_ones(z.shape[0], conv.out_channels).index_copy(1, index, z)

    def _base(self, conv: Any, x: Tensor) -> Tensor:
        weight = _remembered(self.cut, lambda: base_weight(conv.weight, self.parts), conv.weight)
        return in_parts(x, weight, self.parts, conv.stride, conv.padding, conv.dilation)

    def _opened(self, conv: Any, norm: Any, x: Tensor, base: Tensor, open_: Channels) -> Tensor:
        """The open channels (N, k, H', W') of norm(conv(x)): the base path's sums and those of the other input channels, or all sums anew."""
        tensors = [tensor for tensor in (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var) if tensor is not None]
        weight, scale, shift = _remembered(self.folded, lambda: self._fold(conv, norm), *tensors)
        inside = take_channels(x, others(conv.in_channels, self.parts[0][1])) if self.shared else x
        sums = F.conv2d(inside, take(weight, 0, open_), take(shift, 0, open_), conv.stride, conv.padding, conv.dilation)
        return torch.addcmul(sums, take(base, 1, open_), take(scale, 0, open_).reshape(-1, 1, 1)) if self.shared else sums

    def _fold(self, conv: Any, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The weights times BatchNorm's scale, of those input channels that must still be looked at; that scale, and the shift."""
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else norm.weight * scale
        shift = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
        shift = shift if norm.bias is None else shift + norm.bias
        weight = conv.weight * scale.reshape(-1, 1, 1, 1)
        return (take(weight, 1, others(conv.in_channels, self.parts[0][1])) if self.shared else weight), scale, shift


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
            flags = torch.ones_like(x[:, :, 0, 0]).index_copy_(1, torch.tensor(gated, device=x.device), z.to(x.dtype))
            inside = inside * take_channels(flags, channels)[:, :, None, None]
        weight = conv.weight.index_select(1, torch.tensor(channels, device=x.device))
        return F.conv2d(inside, weight, conv.bias, conv.stride, conv.padding, conv.dilation)


def modules(root: Any, paths: Sequence[str]) -> list[Any]:
    return [root.get_submodule(path) for path in paths]


def _remembered(memory: Remembered, compute: Any, *tensors: Tensor) -> Any:
    """Evaluation without autograd remembers; with it, gradients must reach the tensors."""
    return compute() if torch.is_grad_enabled() else memory(compute, *tensors)
