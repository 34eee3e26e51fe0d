"""What channels that are constant become behind layers and operations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import SettingError
from gatecli.graph.normalize import DROPOUTS
from gatecli.graph.patterns import as_function, is_channelwise, zero_stays_zero
from gatecli.graph.prune_channels.entries import on_one_device
from gatecli.graph.prune_channels.naming import reader

__all__ = ["Cut", "after_norm", "after_operation", "concatenated"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Of a value's channels those that stay, those that go, and the constants of these.

    A constant is what the channel has had at every position; `zero`: all of them are 0, whatever
    the weights. `axis`: the dimension that the channels are.
    """

    kept: Tensor
    gone: Tensor
    constants: Tensor
    zero: bool = False
    axis: int = 1

    def is_like(self, other: Cut) -> bool:
        """Whether the same channels have gone of two values, and both are zero there."""
        zero = self.zero and other.zero and self.axis == other.axis
        return zero and torch.equal(self.gone, other.gone)


def concatenated(parts: Sequence[tuple[int, Cut | None]]) -> Cut:
    """What becomes of a concatenation of values of these widths, and with these cuts."""
    kept, gone, constants, start = [], [], [], 0
    cuts = [cut for _, cut in parts if cut is not None]
    for width, cut in parts:
        if cut is None:
            kept.append(torch.arange(start, start + width))
        else:
            kept.append(cut.kept + start)
            gone.append(cut.gone + start)
            constants.append(cut.constants)
        start += width
    return Cut(
        kept=torch.cat(kept),
        gone=torch.cat(gone),
        constants=torch.cat(on_one_device(constants)),
        zero=all(cut.zero for cut in cuts),
    )


def after_norm(node: fx.Node, norm: Any, cut: Cut, shape: Sequence[int] | None) -> Cut:
    """Through a BatchNorm in evaluation, and an activation where it holds one.

    Args:
        node: the call of the BatchNorm.
        norm: the BatchNorm.
        cut: what has become of the value that it reads.
        shape: this value's shape, with all channels still in.

    Raises:
        SettingError: the constants differ from one position to another behind it.
    """
    assert shape is not None
    if cut.constants.is_meta or norm.running_mean.is_meta:  # a replay: the values are in the file
        return replace(cut, constants=cut.constants.to("meta"), zero=False)
    device = norm.running_mean.device
    image, gone = torch.zeros(1, *shape[1:], device=device), cut.gone.to(device)
    image[:, gone] = cut.constants.to(device).reshape(1, -1, *[1] * (len(shape) - 2))
    with torch.no_grad():
        constants = _same_everywhere(node, copy.deepcopy(norm).eval()(image)[:, gone])
    return replace(cut, constants=constants, zero=False)


def after_operation(root: nn.Module, node: fx.Node, cut: Cut, shape: Sequence[int] | None) -> Cut:
    """Through an operation without weights: the constants' images, where these are constant too.

    Args:
        root: where the graph's modules are.
        node: the operation.
        cut: what has become of the value that it reads.
        shape: this value's shape, with all channels still in.

    Raises:
        SettingError: it mixes channels, or makes different things of a constant at the border.
    """
    if node.target in DROPOUTS:
        return cut
    if shape is None or not is_channelwise(root, node, shape, cut.axis):
        raise SettingError(f"{reader(node)} reads it")
    apply = as_function(root, node)
    assert apply is not None
    size = shape[2:] if cut.axis == 1 else (*shape[2:-1], 1)
    if cut.zero and zero_stays_zero(apply, size):
        return cut
    if cut.axis != 1:
        raise SettingError(f"{reader(node)} reads it, and makes more of zero")
    if cut.constants.is_meta:  # a replay: the values come from the file
        return replace(cut, zero=False)
    flat = cut.constants.cpu().reshape(1, -1, *[1] * (len(shape) - 2))
    with torch.no_grad():
        image = apply(flat.expand(1, -1, *shape[2:]).contiguous())
    return replace(cut, constants=_same_everywhere(node, image), zero=False)


def _same_everywhere(node: fx.Node, image: Tensor) -> Tensor:
    """The channels' values (k,) of an image (1, k, ...) that has one at all positions.

    Raises SettingError where it has several.
    """
    flat = image.reshape(image.shape[1], -1)
    if not flat.is_meta and not torch.allclose(flat, flat[:, :1].expand_as(flat)):
        raise SettingError(f"{reader(node)} reads it, and is different at the border")
    return flat[:, 0]
