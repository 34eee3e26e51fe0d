"""Residual branches and layers of dense blocks: computed for the samples that need them.

That is a plain `if` for one image, and gathered samples in a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatecli.executors.rows import Branch, add_rows, rows_last, take
from gatecli.graph.ops import runs_of


class SkipBlock(nn.Module):
    """`relu(shortcut + z * branch(x))`, the branch computed where z = 1 only.

    Attributes:
        branch: computes the branch, from the network and x.
        rectify: a ReLU follows the addition.
        rectified: the shortcut is never negative, so a closed gate need not touch it.
        write: the shortcut's storage may be overwritten, as nothing else reads it.
        never_negative: what this returns is not.
    """

    def __init__(self, root: nn.Module, branch: Branch, rectify: bool, rectified: bool) -> None:
        super().__init__()
        self.__dict__["root"] = root  # not a child: the branch's modules belong to the network
        self.branch = branch
        self.rectify = rectify
        self.rectified = rectified
        self.write = False
        self.never_negative = rectify

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x: what the branch reads, (N, ...).
            shortcut: (N, ...).
            z: the decisions, (N, 1).
            others: what other gates in the branch have decided, (N, units) each.

        Returns:
            The shape of the shortcut.
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
        decided = [z.index_select(0, open_) for z in others]
        value = self.branch(self.root, take(x, open_), *decided).to(shortcut.dtype)
        return self._finish(add_rows(shortcut, open_, value, in_place=self._may_write()))

    def _finish(self, value: Tensor) -> Tensor:
        if not self.rectify:
            return value
        return torch.relu(value) if torch.is_grad_enabled() else torch.relu_(value)

    def _may_write(self) -> bool:
        return self.write and not torch.is_grad_enabled()


class SkipGroups(SkipBlock):
    """A SkipBlock of a branch whose output channels are several units.

    Attributes:
        trunk: computes, from the network and x, what all units need; runs where any unit does.
        tail: computes, from the network, what the trunk returns and a slice, the branch's channels
            of that slice.
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
        self.trunk = trunk
        self.tail = tail

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """x (N, ...), shortcut (N, C, H, W), z (N, units) -> the shape of the shortcut."""
        if bool((z == z[:1]).all()):  # one image, or all decided alike
            alike = [bool(unit) for unit in z[0].tolist()] if len(z) else []
            return self._alike(x, shortcut, alike)
        rows = z.any(1).nonzero().reshape(-1)
        inside = self.trunk(self.root, take(x, rows))
        decided = z.index_select(0, rows)
        out = self._own(shortcut)
        width = shortcut.shape[1] // z.shape[1]
        for unit in range(z.shape[1]):
            open_ = decided[:, unit].nonzero().reshape(-1)
            if open_.numel() == 0:
                continue
            first = unit * width
            value = self.tail(self.root, take(inside, open_), slice(first, first + width))
            out.narrow(1, first, width).index_add_(0, rows[open_], value.to(out.dtype))
        return self._finish(out)

    def _alike(self, x: Tensor, shortcut: Tensor, open_: list[bool]) -> Tensor:
        """All samples have the same units open."""
        if all(open_):
            return self._full(x, shortcut)
        if not any(open_):
            return self._closed(shortcut)
        inside = self.trunk(self.root, x)
        out = self._own(shortcut)
        width = shortcut.shape[1] // len(open_)
        for first, end in runs_of([unit for unit, flag in enumerate(open_) if flag]):
            channels = slice(first * width, end * width)
            out[:, channels] += self.tail(self.root, inside, channels)
        return self._finish(out)

    def _own(self, shortcut: Tensor) -> Tensor:
        return shortcut if self._may_write() else shortcut.clone()


class SkipLayer(nn.Module):
    """`z * branch(x)`, the branch computed where z = 1 only, zeros elsewhere.

    This is what a layer of a dense block adds to the features.

    Attributes:
        branch: computes the layer, from the network and x.
        channels: how many it adds.
    """

    def __init__(self, root: nn.Module, branch: Branch, channels: int) -> None:
        super().__init__()
        self.__dict__["root"] = root  # not a child: the branch's modules belong to the network
        self.branch = branch
        self.channels = channels

    def forward(self, x: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """Compute the layer.

        Args:
            x: (N, C, H, W).
            z: the decisions, (N, 1).
            others: what other gates in the branch have decided, (N, units) each.

        Returns:
            (N, channels, H, W).
        """
        open_ = z.reshape(-1).nonzero().reshape(-1)
        if open_.numel() == x.shape[0]:
            return self.branch(self.root, x, *others)
        shape = (x.shape[0], self.channels, *x.shape[2:])
        layout = torch.channels_last if rows_last(x) else torch.contiguous_format
        zeros = torch.zeros(shape, dtype=x.dtype, device=x.device).contiguous(memory_format=layout)
        if open_.numel() == 0:
            return zeros
        decided = [each.index_select(0, open_) for each in others]
        value = self.branch(self.root, take(x, open_), *decided)
        return add_rows(zeros, open_, value.to(x.dtype), in_place=True)


def add_to(value: Tensor, shortcut: Tensor) -> Tensor:
    """Add into `value`, which nobody else holds, where autograd and the dtypes allow it."""
    if torch.is_grad_enabled() or value.dtype != shortcut.dtype:
        return value + shortcut
    return value.add_(shortcut)
