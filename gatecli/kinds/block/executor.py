"""Residual branches: a plain `if` for one image, gathered samples in a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatecli.graph.runs import runs_of
from gatecli.lowering.gather import Branch, add_rows, add_to, take
from gatecli.lowering.inplace import Executor, WritingExecutor

__all__ = ["SkipBlock", "SkipGroups"]


class SkipBlock(WritingExecutor):
    """`relu(shortcut + z * branch(x))`, the branch computed where z = 1 only."""

    def __init__(self, root: nn.Module, branch: Branch, *, rectify: bool, rectified: bool) -> None:
        super().__init__(root, rectify=rectify, rectified=rectified)
        self.branch = branch

    def for_export(self) -> nn.Module:
        return CondBlock(self)

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """Add the branch's value for the samples whose gate is open.

        Args:
            x: (N, ...).
            shortcut: (N, ...).
            z: (N, 1).
            others: What other gates in the branch have decided, (N, units).

        Returns:
            The shape of the shortcut.
        """
        if x.shape[0] == 1:
            return self._full(x, shortcut, *others) if z.item() else self.closed(shortcut)
        rows = z.reshape(-1).nonzero().reshape(-1)
        if rows.numel() == x.shape[0]:
            return self._full(x, shortcut, *others)
        if rows.numel() == 0:
            return self.closed(shortcut)
        return self._some(x, shortcut, rows, *others)

    def _full(self, x: Tensor, shortcut: Tensor, *others: Tensor) -> Tensor:
        return self.finish(add_to(self.branch(self.root, x, *others), shortcut))

    def _some(self, x: Tensor, shortcut: Tensor, rows: Tensor, *others: Tensor) -> Tensor:
        decided = [z.index_select(0, rows) for z in others]
        value = self.branch(self.root, take(x, rows), *decided).to(shortcut.dtype)
        return self.finish(add_rows(shortcut, rows, value, in_place=self.may_write()))


class SkipGroups(SkipBlock):
    """The same for a branch whose output channels are several units.

    `trunk` runs where any unit does, `tail`, a function (root, what the trunk returns, slice) ->
    the branch's channels of the slice, for the units alone.
    """

    def __init__(
        self,
        root: nn.Module,
        branch: Branch,
        *,
        trunk: Branch,
        tail: Callable[..., Tensor],
        rectify: bool,
        rectified: bool,
    ) -> None:
        super().__init__(root, branch, rectify=rectify, rectified=rectified)
        self.trunk = trunk
        self.tail = tail

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """`x` (N, ...), `shortcut` (N, C, H, W), `z` (N, units) -> the shape of the shortcut."""
        if bool((z == z[:1]).all()):  # one image, or all decided alike
            runs = [bool(unit) for unit in z[0].tolist()] if len(z) else []
            return self._alike(x, shortcut, runs)
        rows = z.any(1).nonzero().reshape(-1)
        inside = self.trunk(self.root, take(x, rows))
        decided = z.index_select(0, rows)
        out, width = self._own(shortcut), shortcut.shape[1] // z.shape[1]
        for unit in range(z.shape[1]):
            some = decided[:, unit].nonzero().reshape(-1)
            if some.numel():
                part = slice(unit * width, (unit + 1) * width)
                value = self.tail(self.root, take(inside, some), part)
                out.narrow(1, unit * width, width).index_add_(0, rows[some], value.to(out.dtype))
        return self.finish(out)

    def _alike(self, x: Tensor, shortcut: Tensor, runs: list[bool]) -> Tensor:
        if all(runs):
            return self._full(x, shortcut)
        if not any(runs):
            return self.closed(shortcut)
        inside = self.trunk(self.root, x)
        out, width = self._own(shortcut), shortcut.shape[1] // len(runs)
        for first, end in runs_of([unit for unit, flag in enumerate(runs) if flag]):
            part = slice(first * width, end * width)
            out[:, part] += self.tail(self.root, inside, part)
        return self.finish(out)

    def _own(self, shortcut: Tensor) -> Tensor:
        return shortcut if self.may_write() else shortcut.clone()


class CondBlock(Executor):
    """A SkipBlock for one image: `relu(shortcut + z * branch(x))`."""

    def __init__(self, block: SkipBlock) -> None:
        super().__init__(block.root)
        self.branch = block.branch
        self.rectify = block.rectify

    def forward(self, x: Tensor, shortcut: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        def run(x: Tensor, shortcut: Tensor, *others: Tensor) -> Tensor:
            value = self.branch(self.root, x, *others) + shortcut
            value = torch.relu(value) if self.rectify else value
            return value.flatten().clone()  # both ways must agree in memory, too

        def skip(x: Tensor, shortcut: Tensor, *others: Tensor) -> Tensor:
            value = shortcut.flatten().clone()  # nor may a way return an alias of what it was given
            return torch.relu(value) if self.rectify else value

        result: Tensor = torch.cond(z.reshape(()) > 0.5, run, skip, (x, shortcut, *others))
        return result.reshape(shortcut.shape)
