"""Residual blocks: a closed gate leaves the shortcut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import fx, nn

from gatecli.graph import additions
from gatecli.graph.ops import is_add, never_negative, relu_after, summands
from gatecli.graph.patterns import tail_of
from gatecli.kinds.base import MASK, VALUE
from gatecli.kinds.block.executor import SkipBlock, SkipGroups
from gatecli.kinds.block.find import find_blocks
from gatecli.kinds.masked import MaskedKind, output_of
from gatecli.kinds.units import split_tail
from gatecli.lowering.context import Lowering
from gatecli.lowering.region import skippable, tail_part, trunk_of
from gatecli.traced.site import Saving, Site
from gatecli.traced.traced import Traced

__all__ = ["BLOCK", "BlockKind"]


class BlockKind(MaskedKind):
    """Residual branches. Split in n units, each n-th part of the last filters is one."""

    name: ClassVar[str] = "block"
    offers: ClassVar[frozenset[str]] = frozenset({MASK, VALUE})
    listed: ClassVar[bool] = True
    in_line: ClassVar[bool] = True
    splits: ClassVar[bool] = True
    whole_only: ClassVar[bool] = True
    always_wide: ClassVar[bool] = True  # the shortcut has all channels

    def find(self, net: Traced) -> list[Site]:
        return find_blocks(net, self.name)

    def split(self, net: Traced, site: Site, units: int) -> Site:
        return split_tail(net, site, units)

    def refresh(self, net: Traced, site: Site) -> Site | None:
        if not net.has(site.value, site.entry):
            return None
        branch = tuple(node for node in site.branch if node in net.costs)
        return replace(site, branch=branch, macs=net.macs(branch))

    def savings(self, net: Traced, site: Site) -> tuple[Saving, ...]:
        return tuple(Saving(node=node, per_unit=node in site.tail) for node in site.branch)

    def why_not_removable(
        self, net: Traced, site: Site, replaced: dict[fx.Node, fx.Node]
    ) -> str | None:
        replaced[net.node(site.add)] = _beside(net, site)
        return None

    def remove(self, net: Traced, site: Site) -> dict[str, str]:
        add, shortcut = net.node(site.add), _beside(net, site)
        return additions.replace_addition(net.root, net.graph, add, shortcut)

    def why_wide(self, net: Traced, site: Site, kept: Sequence[int]) -> str | None:
        return "the shortcut has all channels"

    def lower(self, low: Lowering, node: fx.Node) -> bool:
        site = low.site_of(node)
        if site is None or site.kind != self.name:
            return False
        _lower(low, node)
        return True


def _beside(net: Traced, site: Site) -> fx.Node:
    """What the branch is added to, as the addition reads it: masked where that is gated too."""
    mine = output_of(net, site)
    others = [each for each in summands(net.node(site.add)) if each is not mine]
    return others[0] if len(others) == 1 else net.node(site.shortcut)


def _lower(low: Lowering, masked: fx.Node) -> None:
    """Skip the branch, its addition and the ReLU behind that, where it can be skipped."""
    add = next(iter(masked.users))
    found = skippable(low.root, masked) if len(masked.users) == 1 and is_add(add) else None
    if found is None:
        return
    shortcut = next(arg for arg in add.args if arg is not masked)
    assert isinstance(shortcut, fx.Node)
    relu = relu_after(low.root, add)
    executor = _executor(
        low, masked, rectify=relu is not None, rectified=never_negative(low.root, shortcut)
    )
    if executor is not None:
        inputs = (found.entry, shortcut, found.decision, *found.others)
        low.replace(relu or add, executor, inputs)


def _executor(
    low: Lowering, masked: fx.Node, *, rectify: bool, rectified: bool
) -> nn.Module | None:
    """What skips a branch; None where there is nothing for such a one."""
    found, gate = skippable(low.root, masked), low.gate_of(masked)
    assert found is not None
    is_split = gate is not None and gate.units > 1
    if is_split and found.others:
        return None
    tail = tail_of(low.root, found.value) if is_split else []
    if not tail:
        return SkipBlock(low.root, found.branch, rectify=rectify, rectified=rectified)
    return SkipGroups(
        low.root,
        found.branch,
        trunk=trunk_of(found.region, found.entry, tail),
        tail=tail_part(low.root, tail),
        rectify=rectify,
        rectified=rectified,
    )


BLOCK = BlockKind()
