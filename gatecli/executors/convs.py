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
from gatecli.graph.channels import Channels, base_weight, choose, others
from gatecli.graph.ops import take_channels


class SkipChannels(Forgetful):
    """`choose(norm(conv(x)), base(base_path(x)), z)`, the convolution computed for open output channels only, and on top of the base path.

    conv, norm, gate: paths; `reads_input`: the gate looks at x, not at the base path.
    """

    def __init__(self, root: nn.Module, conv: str, norm: str, gate: str, order: Channels, groups: int, reads_input: bool) -> None:
        super().__init__()
        self.root: Any
        self.__dict__["root"] = root  # not a child: the modules belong to the network itself
        self.paths, self.order, self.groups, self.reads_input = (conv, norm, gate), order, groups, reads_input
        self.folded, self.cut = Remembered(), Remembered()

    def forward(self, x: Tensor) -> Tensor:
        """x (N, Ci, H, W) -> (N, Co, H', W')."""
        conv, norm, gate = modules(self.root, self.paths)
        z = gate(x) if gate.settled or self.reads_input else None
        if gate.settled and z is not None and bool(z.all()):
            result: Tensor = norm(conv(x))
            return result
        base = self._base(conv, x)
        z = gate(base) if z is None else z
        open_ = z.any(0).nonzero().reshape(-1).tolist()
        closed: Tensor = gate.base(base)
        if not open_:
            return closed
        opened = self._opened(conv, norm, x, base, open_).to(closed.dtype)
        index = torch.tensor(open_, device=x.device)
        if x.shape[0] > 1:
            opened = choose(opened, closed.index_select(1, index), z.index_select(1, index))
        return closed.index_copy(1, index, opened) if torch.is_grad_enabled() else closed.index_copy_(1, index, opened)

    def _base(self, conv: Any, x: Tensor) -> Tensor:
        weight = _remembered(self.cut, lambda: base_weight(conv.weight, self.order, self.groups), conv.weight)
        return F.conv2d(take_channels(x, self.order), weight, None, conv.stride, conv.padding, conv.dilation, self.groups)

    def _opened(self, conv: Any, norm: Any, x: Tensor, base: Tensor, open_: Sequence[int]) -> Tensor:
        """The open channels (N, k, H', W') of norm(conv(x)): the base path's sums and those of the other input channels."""
        tensors = [tensor for tensor in (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var) if tensor is not None]
        parts, scale, shift = _remembered(self.folded, lambda: self._fold(conv, norm), *tensors)
        index, size, values = torch.tensor(open_, device=x.device), conv.out_channels // self.groups, []
        for group, (channels, weight) in enumerate(parts):
            rows = [row - group * size for row in open_ if group * size <= row < (group + 1) * size]
            if rows:
                rest = weight if len(rows) == size else weight.index_select(0, torch.tensor(rows, device=x.device))
                values.append(F.conv2d(take_channels(x, channels), rest, None, conv.stride, conv.padding, conv.dilation))
        rest = torch.cat(values, 1) if len(values) > 1 else values[0]
        scale, shift = (each.index_select(0, index).reshape(-1, 1, 1) for each in (scale, shift))
        return torch.addcmul(rest + shift, base.index_select(1, index), scale)

    def _fold(self, conv: Any, norm: Any) -> tuple[list[tuple[Channels, Tensor]], Tensor, Tensor]:
        """For each group the input channels that its base path lacks, and its weights for these times BatchNorm's scale; that scale, and the shift."""
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else norm.weight * scale
        shift = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
        shift = shift if norm.bias is None else shift + norm.bias
        weight, width = (conv.weight * scale.reshape(-1, 1, 1, 1)).reshape(self.groups, -1, *conv.weight.shape[1:]), len(self.order) // self.groups
        parts = []
        for group in range(self.groups):
            channels = others(conv.in_channels, self.order[group * width : (group + 1) * width])
            parts.append((channels, weight[group].index_select(1, torch.tensor(channels, device=scale.device))))
        return parts, scale, shift


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
