"""Gated filters: a convolution computes those that are open.

In a batch that is those that are open for any of its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.executors.blocks import SkipBlock, add_to
from gatecli.executors.rows import Branch, Places, add_channels, rows_last
from gatecli.graph.ops import Runs, add_at

FEW = 4  # runs of channels up to which slices are quicker than an index


@dataclass(frozen=True, kw_only=True)
class _Values:
    """What open filters give.

    Attributes:
        value: (N, k, H', W'); None: no filter is open.
        channels: which channels these are, (k,); None: all.
    """

    value: Tensor | None
    channels: Tensor | None = None


class OpenFilters:
    """The open filters of a convolution, with what follows it channel by channel.

    Attributes:
        tail: (root, x, channels) -> the values of these channels alone; of all, for None.
    """

    def __init__(self, tail: Branch) -> None:
        self.tail = tail

    def __call__(self, root: Any, x: Tensor, z: Tensor) -> _Values:
        """Compute filters of x (N, C, H, W) that are open for any sample, by z (N, width)."""
        if len(x) == 0:
            return _Values(value=self.tail(root, x, None))
        open_ = (z[0] if len(z) == 1 else z.amax(0)).nonzero().reshape(-1)
        if open_.numel() == 0:
            return _Values(value=None)
        if open_.numel() == z.shape[1]:
            value = self.tail(root, x, None)
            return _Values(value=value if bool(z.all()) else value * _as_maps(z, value))
        value = self.tail(root, x, open_)
        if len(z) > 1:
            value = value * _as_maps(z.index_select(1, open_), value)
        return _Values(value=value, channels=open_)


def _as_maps(z: Tensor, value: Tensor) -> Tensor:
    return z.to(value.dtype)[:, :, None, None]


class FilterBlock(SkipBlock):
    """`relu(shortcut + z * filters(x))`, the open filters' values added where they belong.

    Attributes:
        filters: the open filters.
        places: the shortcut's channels that the filters are; None: all.
    """

    def __init__(
        self,
        root: nn.Module,
        tail: Branch,
        places: Sequence[int] | None,
        rectify: bool,
        rectified: bool,
    ) -> None:
        super().__init__(root, tail, rectify, rectified)
        self.filters = OpenFilters(tail)
        self.places = None if places is None else Places(places)

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """x (N, C, H, W), shortcut (N, C', H', W'), z (N, width) -> the shape of the shortcut."""
        found = self.filters(self.root, x, z)
        if found.value is None:
            return self._closed(shortcut)
        channels = found.channels
        if self.places is not None:
            table = self.places.on(x.device)
            channels = table if channels is None else table.index_select(0, channels)
        if channels is None:
            return self._finish(add_to(found.value, shortcut))
        value = found.value.to(shortcut.dtype)
        return self._finish(add_channels(shortcut, channels, value, in_place=self._may_write()))


class AddAt(SkipBlock):
    """`relu(shortcut + value)`, where the value has lost channels for good.

    Attributes:
        runs: the shortcut's channels that the value still has.
        places: the same as an index.
    """

    def __init__(self, root: nn.Module, runs: Runs, rectify: bool, rectified: bool) -> None:
        super().__init__(root, lambda root, x: x, rectify, rectified)
        channels: list[int] = []
        for first, end in runs:
            channels.extend(range(first, end))
        self.runs = runs
        self.places = Places(channels)

    def forward(self, value: Tensor, shortcut: Tensor, *others: Tensor) -> Tensor:
        """value (N, k, H, W), shortcut (N, C, H, W) -> the shape of the shortcut."""
        value = value.to(shortcut.dtype)
        write = self._may_write()
        if len(self.runs) <= FEW:
            return self._finish(add_at(shortcut, value, self.runs, write))
        channels = self.places.on(value.device)
        return self._finish(add_channels(shortcut, channels, value, in_place=write))


class FilterLayer(nn.Module):
    """`z * filters(x)`: the values of the open filters, zeros in the others' places."""

    def __init__(self, root: nn.Module, tail: Branch) -> None:
        super().__init__()
        self.__dict__["root"] = root  # not a child: the convolution belongs to the network itself
        self.filters = OpenFilters(tail)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x (N, C, H, W), z (N, width) -> (N, width, H', W')."""
        found = self.filters(self.root, x, z)
        value = found.value
        channels = found.channels
        if value is None:  # one filter's, to know the size
            channels = torch.zeros(1, dtype=torch.long, device=x.device)
            value = self.filters.tail(self.root, x, channels) * 0
        if channels is None:
            return value
        whole = torch.empty(
            len(value),
            z.shape[1],
            *value.shape[2:],
            dtype=value.dtype,
            device=value.device,
            memory_format=torch.channels_last if rows_last(value) else torch.contiguous_format,
        )
        in_place = not torch.is_grad_enabled()
        return add_channels(whole.zero_(), channels, value, in_place=in_place)
