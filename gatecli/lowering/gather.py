"""Samples of a batch, or channels of maps: gather them, add to them, in their memory format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Branch = Callable[..., Tensor]  # (root, x) -> value


def rows_last(x: Tensor) -> bool:
    """Whether x lies in memory as channels_last."""
    return (
        x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    )


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Samples `rows` (k,) of x (N, ...), in x's memory format.

    Index_select alone would turn channels_last into NCHW.
    """
    if rows_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def add_rows(x: Tensor, rows: Tensor, values: Tensor, in_place: bool) -> Tensor:
    """x (N, ...) with `values` (k, ...) added to its samples `rows` (k,).

    One pass, where adding and then copying back takes two.
    """
    if rows_last(x):
        return add_rows(x.permute(0, 2, 3, 1), rows, values.permute(0, 2, 3, 1), in_place).permute(
            0, 3, 1, 2
        )
    return x.index_add_(0, rows, values) if in_place else x.index_add(0, rows, values)


def add_channels(x: Tensor, channels: Tensor, values: Tensor, in_place: bool) -> Tensor:
    """x (N, C, ...) with `values` (N, k, ...) added to its channels (k,)."""
    if rows_last(x):  # ten times as fast as along dimension 1 of the same memory
        return _add_along(
            3, x.permute(0, 2, 3, 1), channels, values.permute(0, 2, 3, 1), in_place
        ).permute(0, 3, 1, 2)
    return _add_along(1, x, channels, values, in_place)


def _add_along(dim: int, x: Tensor, index: Tensor, values: Tensor, in_place: bool) -> Tensor:
    return x.index_add_(dim, index, values) if in_place else x.index_add(dim, index, values)


class Places:
    """Numbers of channels as an index, on each device that asks for it."""

    def __init__(self, channels: Sequence[int]) -> None:
        self.channels = channels
        self.tables: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device not in self.tables:
            with torch.inference_mode(
                False
            ):  # one made in inference mode could not take part in a later backward pass
                self.tables[device] = torch.tensor(self.channels, device=device)
        return self.tables[device]


def add_to(value: Tensor, shortcut: Tensor) -> Tensor:
    """Add into `value`, which nobody else holds, where autograd and the dtypes allow it."""
    if torch.is_grad_enabled() or value.dtype != shortcut.dtype:
        return value + shortcut
    return value.add_(shortcut)
