"""Where a value has lost channels for good: add it at its places, rather than widen it first."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from gatecli.graph.ops import add_at, never_negative, relu_after, widen
from gatecli.graph.runs import Runs, are_few, numbers_of
from gatecli.lowering.context import Lowering
from gatecli.lowering.gather import Places, add_channels
from gatecli.lowering.inplace import WritingExecutor

__all__ = ["AddAt", "lower_addition"]


class AddAt(WritingExecutor):
    """`relu(shortcut + value)`, where the value has lost channels for good.

    It is added to those that it still has, at `runs` of the shortcut's.
    """

    def __init__(self, root: nn.Module, runs: Runs, *, rectify: bool, rectified: bool) -> None:
        super().__init__(root, rectify=rectify, rectified=rectified)
        self.runs = runs
        self.places = Places(numbers_of(runs))

    def forward(self, value: Tensor, shortcut: Tensor, *others: Tensor) -> Tensor:
        """`value` (N, k, H, W), `shortcut` (N, C, H, W) -> the shape of the shortcut."""
        value = value.to(shortcut.dtype)
        if are_few(self.runs):
            return self.finish(add_at(shortcut, value, self.runs, in_place=self.may_write()))
        return self.finish(
            add_channels(shortcut, self.places.on(value.device), value, in_place=self.may_write())
        )


def lower_addition(low: Lowering, add: fx.Node) -> None:
    """Let `AddAt` take the place of an addition of a value that was widened with zeros."""
    for wide, other in (add.args, add.args[::-1]):
        if isinstance(other, fx.Node) and _is_widened(wide):
            lost: Any = wide
            value, runs, _ = lost.args
            relu = relu_after(low.root, add)
            rectified = never_negative(low.root, other)
            executor = AddAt(low.root, runs, rectify=relu is not None, rectified=rectified)
            low.replace(relu or add, executor, (value, other))
            return


def _is_widened(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is widen and len(value.users) == 1
