"""Layers of dense blocks: computed for the samples whose gate is open, zeros for the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatecli.lowering.gather import Branch, add_rows, rows_last, take
from gatecli.lowering.inplace import Executor

__all__ = ["SkipLayer"]


class SkipLayer(Executor):
    """`z * branch(x)`, the branch computed where z = 1 only.

    What a layer of a dense block adds to the features.
    """

    def __init__(self, root: nn.Module, branch: Branch, channels: int) -> None:
        super().__init__(root)
        self.branch = branch
        self.channels = channels

    def for_export(self) -> nn.Module:
        return CondLayer(self)

    def forward(self, x: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """Compute the layer for the samples whose gate is open.

        Args:
            x: (N, C, H, W).
            z: (N, 1).
            others: What other gates in the branch have decided, (N, units).

        Returns:
            (N, channels, H, W), zeros where the gate is closed.
        """
        rows = z.reshape(-1).nonzero().reshape(-1)
        if rows.numel() == x.shape[0]:
            return self.branch(self.root, x, *others)
        zeros = self._zeros(x)
        if rows.numel() == 0:
            return zeros
        decided = [each.index_select(0, rows) for each in others]
        value = self.branch(self.root, take(x, rows), *decided)
        return add_rows(zeros, rows, value.to(x.dtype), in_place=True)

    def _zeros(self, x: Tensor) -> Tensor:
        layout = torch.channels_last if rows_last(x) else torch.contiguous_format
        zeros = torch.zeros(x.shape[0], self.channels, *x.shape[2:], dtype=x.dtype, device=x.device)
        return zeros.contiguous(memory_format=layout)


class CondLayer(Executor):
    """A SkipLayer for one image: `z * branch(x)`."""

    def __init__(self, layer: SkipLayer) -> None:
        super().__init__(layer.root)
        self.branch = layer.branch
        self.channels = layer.channels

    def forward(self, x: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        def run(x: Tensor, *others: Tensor) -> Tensor:
            return self.branch(self.root, x, *others).contiguous()

        def skip(x: Tensor, *others: Tensor) -> Tensor:
            return x.new_zeros(x.shape[0], self.channels, *x.shape[2:])

        result: Tensor = torch.cond(z.reshape(()) > 0.5, run, skip, (x, *others))
        return result
