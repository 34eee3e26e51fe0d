"""Gated filters: a convolution computes those that are open, for one image.

In a batch those that are open for any of its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.lowering.gather import Branch, Places, add_channels, add_to, rows_last, take_columns
from gatecli.lowering.inplace import Executor, WritingExecutor
from gatecli.lowering.region import convolved

__all__ = ["FilterBlock", "FilterLayer", "FilterReader", "OpenFilters"]


class OpenFilters:
    """The open filters of a convolution, with what follows it channel by channel.

    X -> their values, and which they are.

    tail: (root, x, channels) -> the values of these channels alone; of all, for None. Where x is
        made of gated filters itself, those that are closed are not looked at.
    width: how many channels there are.
    """

    def __init__(self, tail: Branch, width: int) -> None:
        self.tail = tail
        self.width = width

    def __call__(
        self, root: Any, x: Tensor, z: Tensor, fed: Sequence[Tensor] = ()
    ) -> tuple[Tensor | None, Tensor | None]:
        """`x` (N, C, H, W), `z` (N, units) -> value (N, k, H', W') and its channels (k,).

        Each unit is equally many of the channels. None for all channels, or where there is no
        value. `fed`: the decisions about x's channels, if there are any.
        """
        z = _each(z, self.width)
        if len(x) == 0:
            return self.tail(root, x, None), None
        open_ = _open(z)
        if open_.numel() == 0:
            return None, None
        x, *inputs = _open_inputs(x, fed)
        if open_.numel() == z.shape[1]:
            value = self.tail(root, x, None, *inputs)
            return value if bool(z.all()) else value * _as_maps(z, value), None
        value = self.tail(root, x, open_, *inputs)
        return value if len(z) == 1 else value * _as_maps(z.index_select(1, open_), value), open_


def _open(z: Tensor) -> Tensor:
    """The units (k,) that are open for any image, of decisions (N, units)."""
    return (z[0] if len(z) == 1 else z.amax(0)).nonzero().reshape(-1)


def _open_inputs(x: Tensor, fed: Sequence[Tensor]) -> Sequence[Tensor]:
    """The channels of x that are open for any image, and which they are; x alone where all are.

    With autograd it is x alone, too: the sources of zeros are to get their gradients.
    """
    if not fed or torch.is_grad_enabled():
        return (x,)
    open_ = _open(_each(fed[0], x.shape[1]))
    return (x,) if open_.numel() == x.shape[1] else (take_columns(x, open_), open_)


def _each(z: Tensor, width: int) -> Tensor:
    """Decisions about each of `width` channels, of z (N, units): a unit is equally many of them."""
    return z if z.shape[1] == width else z.repeat_interleave(width // z.shape[1], 1)


def _as_maps(z: Tensor, value: Tensor) -> Tensor:
    return z.to(value.dtype)[:, :, None, None]


class FilterBlock(WritingExecutor):
    """`relu(shortcut + z * filters(x))`.

    The values of the open filters are added where they belong.

    places: the shortcut's channels that the filters are, where not all are.
    """

    def __init__(
        self,
        root: nn.Module,
        filters: OpenFilters,
        places: Sequence[int] | None,
        *,
        rectify: bool,
        rectified: bool,
    ) -> None:
        super().__init__(root, rectify=rectify, rectified=rectified)
        self.filters = filters
        self.places = None if places is None else Places(places)

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *fed: Tensor) -> Tensor:
        """`x` (N, C, H, W), `shortcut` (N, C', H', W'), `z` (N, units) -> the shortcut's shape.

        `fed`: see OpenFilters.
        """
        value, open_ = self.filters(self.root, x, z, fed)
        if value is None:
            return self.closed(shortcut)
        if self.places is not None:
            table = self.places.on(x.device)
            open_ = table if open_ is None else table.index_select(0, open_)
        if open_ is None:
            return self.finish(add_to(value, shortcut))
        return self.finish(
            add_channels(shortcut, open_, value.to(shortcut.dtype), in_place=self.may_write())
        )


class FilterLayer(Executor):
    """`z * filters(x)`: the values of the open filters, zeros in the others' places."""

    def __init__(self, root: nn.Module, filters: OpenFilters) -> None:
        super().__init__(root)
        self.filters = filters

    def forward(self, x: Tensor, z: Tensor, *fed: Tensor) -> Tensor:
        """`x` (N, C, H, W), `z` (N, units) -> (N, width, H', W'); `fed`: see OpenFilters."""
        value, open_ = self.filters(self.root, x, z, fed)
        if value is None and torch.is_grad_enabled():  # one filter's: zeros that x has a share in
            open_ = torch.zeros(1, dtype=torch.long, device=x.device)
            value = self.filters.tail(self.root, x, open_) * 0
        if value is None:
            return self._nothing(x)
        if open_ is None:
            return value
        whole = torch.empty(
            len(value),
            self.filters.width,
            *value.shape[2:],
            dtype=value.dtype,
            device=value.device,
            memory_format=torch.channels_last if rows_last(value) else torch.contiguous_format,
        )
        return add_channels(whole.zero_(), open_, value, in_place=not torch.is_grad_enabled())

    def _nothing(self, x: Tensor) -> Tensor:
        """Zeros of the size that the filters of no image at all have: nothing is multiplied."""
        none = self.filters.tail(self.root, x[:0], None)
        layout = torch.channels_last if rows_last(x) else torch.contiguous_format
        size = (len(x), self.filters.width, *none.shape[2:])
        return torch.empty(size, dtype=none.dtype, device=x.device, memory_format=layout).zero_()


class FilterReader(Executor):
    """A convolution without gates of its own, of the filters before it that are open."""

    def __init__(self, root: nn.Module, conv: str) -> None:
        super().__init__(root)
        self.path = conv

    def forward(self, x: Tensor, *fed: Tensor) -> Tensor:
        """`x` (N, C, H, W), `fed` (N, C), the decisions about its channels -> (N, C', H', W')."""
        conv: Any = self.root.get_submodule(self.path)
        x, *inputs = _open_inputs(x, fed)
        result: Tensor = convolved(conv, x, None, *inputs) if inputs else conv(x)
        return result
