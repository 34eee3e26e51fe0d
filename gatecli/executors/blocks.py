"""Residual branches and layers of dense blocks.

A plain `if` for one image, gathered samples in a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatecli.executors.rows import Branch, add_rows, rows_last, take
from gatecli.graph.ops import runs_of


class SkipBlock(nn.Module):
    """`relu(shortcut + z * branch(x))`, the branch computed where z = 1 only.

    `write`: the shortcut's storage may be overwritten, as nothing else reads it. `rectify`: a ReLU
    follows the addition;
    `rectified`: the shortcut is never negative, so a closed gate need not touch it.
    """

    def __init__(self, root: nn.Module, branch: Branch, rectify: bool, rectified: bool) -> None:
        super().__init__()
        self.__dict__["root"] = (
            root  # not a child: the branch's modules belong to the network itself
        )
        self.branch, self.rectify, self.rectified, self.write = branch, rectify, rectified, False
        self.never_negative = rectify

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """x (N, ...), shortcut (N, ...), z (N, 1), what other gates in the branch have decided (N,
        units) -> the shape of the shortcut.
        """
        if x.shape[0] == 1:
            return self._full(x, shortcut, *others) if z.item() else self._closed(shortcut)
        open_ = z.reshape(-1).nonzero().reshape(-1)
        if open_.numel() == x.shape[0]:
            return self._full(x, shortcut, *others)
        if open_.numel() == 0:
            return self._closed(shortcut)
        return self._some(x, shortcut, open_, *others)

    def _full(self, x: Tensor, shortcut: Tensor, *others: Tensor) -> Tensor:
        return self._finish(add_to(self.branch(self.root, x, *others), shortcut))

    def _closed(self, shortcut: Tensor) -> Tensor:
        if self.rectified or not self.rectify:
            return shortcut
        return torch.relu_(shortcut) if self._may_write() else torch.relu(shortcut)

    def _some(self, x: Tensor, shortcut: Tensor, open_: Tensor, *others: Tensor) -> Tensor:
        value = self.branch(
            self.root, take(x, open_), *(z.index_select(0, open_) for z in others)
        ).to(shortcut.dtype)
        return self._finish(add_rows(shortcut, open_, value, in_place=self._may_write()))

    def _finish(self, value: Tensor) -> Tensor:
        if not self.rectify:
            return value
        return torch.relu(value) if torch.is_grad_enabled() else torch.relu_(value)

    def _may_write(self) -> bool:
        return self.write and not torch.is_grad_enabled()


class SkipGroups(SkipBlock):
    """The same for a branch whose output channels are several units.

    `trunk` runs where any unit does, `tail` for the units alone.

    tail: (root, what the trunk returns, slice) -> the branch's channels of the slice.
    """

    def __init__(
        self,
        root: nn.Module,
        branch: Branch,
        trunk: Branch,
        tail: Callable[..., Tensor],
        rectify: bool,
        rectified: bool,
    ) -> None:
        super().__init__(root, branch, rectify, rectified)
        self.trunk, self.tail = trunk, tail

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """x (N, ...), shortcut (N, C, H, W), z (N, units) -> the shape of the shortcut."""
        if bool((z == z[:1]).all()):  # one image, or all decided alike
            return self._alike(
                x, shortcut, [bool(unit) for unit in z[0].tolist()] if len(z) else []
            )
        rows = z.any(1).nonzero().reshape(-1)
        inside, decided = self.trunk(self.root, take(x, rows)), z.index_select(0, rows)
        out, width = self._own(shortcut), shortcut.shape[1] // z.shape[1]
        for unit in range(z.shape[1]):
            open_ = decided[:, unit].nonzero().reshape(-1)
            if open_.numel():
                value = self.tail(
                    self.root, take(inside, open_), slice(unit * width, (unit + 1) * width)
                )
                out.narrow(1, unit * width, width).index_add_(0, rows[open_], value.to(out.dtype))
        return self._finish(out)

    def _alike(self, x: Tensor, shortcut: Tensor, open_: list[bool]) -> Tensor:
        if all(open_):
            return self._full(x, shortcut)
        if not any(open_):
            return self._closed(shortcut)
        inside, out, width = (
            self.trunk(self.root, x),
            self._own(shortcut),
            shortcut.shape[1] // len(open_),
        )
        for first, end in runs_of([unit for unit, flag in enumerate(open_) if flag]):
            out[:, first * width : end * width] += self.tail(
                self.root, inside, slice(first * width, end * width)
            )
        return self._finish(out)

    def _own(self, shortcut: Tensor) -> Tensor:
        return shortcut if self._may_write() else shortcut.clone()


class SkipLayer(nn.Module):
    """`z * branch(x)`, the branch computed where z = 1 only, zeros elsewhere.

    What a layer of a dense block adds to the features.
    """

    def __init__(self, root: nn.Module, branch: Branch, channels: int) -> None:
        super().__init__()
        self.__dict__["root"] = (
            root  # not a child: the branch's modules belong to the network itself
        )
        self.branch, self.channels = branch, channels

    def forward(self, x: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """x (N, C, H, W), z (N, 1), what other gates in the branch have decided (N, units) -> (N,
        channels, H, W).
        """
        open_ = z.reshape(-1).nonzero().reshape(-1)
        if open_.numel() == x.shape[0]:
            return self.branch(self.root, x, *others)
        layout = torch.channels_last if rows_last(x) else torch.contiguous_format
        zeros = torch.zeros(
            x.shape[0], self.channels, *x.shape[2:], dtype=x.dtype, device=x.device
        ).contiguous(memory_format=layout)
        if open_.numel() == 0:
            return zeros
        value = self.branch(
            self.root, take(x, open_), *(each.index_select(0, open_) for each in others)
        )
        return add_rows(zeros, open_, value.to(x.dtype), in_place=True)


def add_to(value: Tensor, shortcut: Tensor) -> Tensor:
    """Add into `value`, which nobody else holds, where autograd and the dtypes allow it."""
    return (
        value + shortcut
        if torch.is_grad_enabled() or value.dtype != shortcut.dtype
        else value.add_(shortcut)
    )
