"""Samples of a batch: gather them, add to them, in their memory format."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Branch = Callable[..., Tensor]  # (root, x) -> value


def rows_last(x: Tensor) -> bool:
    """Whether x lies in memory as channels_last."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Samples `rows` (k,) of x (N, ...), in x's memory format: index_select alone would turn channels_last into NCHW."""
    if rows_last(x):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def add_rows(x: Tensor, rows: Tensor, values: Tensor, in_place: bool) -> Tensor:
    """x (N, ...) with `values` (k, ...) added to its samples `rows` (k,): one pass, where adding and then copying back takes two."""
    if rows_last(x):
        return add_rows(x.permute(0, 2, 3, 1), rows, values.permute(0, 2, 3, 1), in_place).permute(0, 3, 1, 2)
    return x.index_add_(0, rows, values) if in_place else x.index_add(0, rows, values)
