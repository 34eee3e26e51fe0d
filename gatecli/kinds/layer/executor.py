"""Layers of dense blocks: computed for the samples whose gate is open, zeros for the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatecli.lowering.gather import Branch, add_rows, rows_last, take
from gatecli.lowering.inplace import Executor

__all__ = ["SkipLayer", "SkipParts"]


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


class SkipParts(SkipLayer):
    """The same for a layer whose new channels are several units.

    `trunk` runs where any unit does; `tail`, a function (root, what the trunk returns, slice) ->
    the layer's channels of the slice, for the units alone.
    """

    def __init__(
        self,
        root: nn.Module,
        branch: Branch,
        channels: int,
        *,
        trunk: Branch,
        tail: Callable[..., Tensor],
    ) -> None:
        super().__init__(root, branch, channels)
        self.trunk = trunk
        self.tail = tail

    def forward(self, x: Tensor, z: Tensor, *others: Tensor) -> Tensor:
        """`x` (N, C, H, W), `z` (N, units) -> (N, channels, H, W), zeros of closed units."""
        if bool(z.all()):
            return self.branch(self.root, x)
        out = self._zeros(x)
        some = z.any(1).nonzero().reshape(-1)
        if some.numel() == 0:
            return out
        inside = self.trunk(self.root, take(x, some))
        z = z.index_select(0, some)
        for first, end, rows in _together(z):
            each = self.channels // z.shape[1]
            part = slice(first * each, end * each)
            value = self.tail(self.root, take(inside, rows), part).to(out.dtype)
            out[:, part].index_add_(0, some[rows], value)
        return out


def _together(z: Tensor) -> list[tuple[int, int, Tensor]]:
    """Neighbouring units that run for the same samples, with these.

    Args:
        z: Decisions (N, units).

    Returns:
        Runs of units, as (first, one past the last, samples (k,)).
    """
    found: list[tuple[int, int, Tensor]] = []
    columns = [z[:, unit] for unit in range(z.shape[1])]
    first = 0
    for unit in range(1, len(columns) + 1):
        if unit < len(columns) and torch.equal(columns[unit], columns[first]):
            continue
        rows = columns[first].nonzero().reshape(-1)
        if rows.numel():
            found.append((first, unit, rows))
        first = unit
    return found


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
