"""Channels that are zero for good where their value meets another: in a sum, and in a product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx, nn

from gatecli.errors import SettingError
from gatecli.graph.ops import is_add
from gatecli.graph.patterns import is_product, tail_of
from gatecli.graph.prune_channels.constants import Cut
from gatecli.graph.prune_channels.naming import reader
from gatecli.graph.prune_channels.outputs import keep_outputs
from gatecli.traced.traced import NodeCost

__all__ = ["sum_of", "trim_factor"]


def sum_of(node: fx.Node, cuts: Sequence[Cut]) -> Cut:
    """What becomes of a node that reads several values with cuts: where all add the same zeros.

    Raises:
        SettingError: It is no addition of two values that have lost the same channels.
    """
    first, *others = cuts
    alike = all(first.is_like(other) for other in others)
    if not alike or not (is_add(node) or is_product(node)):
        raise SettingError(f"{reader(node)} reads it together with another")
    return first


def trim_factor(
    root: nn.Module, node: fx.Node, cut: Cut, costs: Mapping[str, NodeCost], *, dry: bool
) -> None:
    """Let what a value is multiplied by, as squeeze-and-excitation's scale, lose its channels too.

    Args:
        root: Where the graph's modules are.
        node: The product, of which one factor has been cut.
        cut: What has become of that.
        costs: The shapes of the graph's nodes, with all channels still in.
        dry: Only see if it can be done.

    Raises:
        SettingError: It cannot: the product would be of other channels.
    """
    width = len(cut.kept) + len(cut.gone)
    for factor in node.all_input_nodes:
        shape = costs[factor.name].shape
        tail = [] if len(factor.users) > 1 else tail_of(root, factor)
        is_whole = shape is not None and len(shape) > 2 and shape[cut.axis] == width
        if is_whole and tail and cut.zero and _scales(node, factor, tail):
            if not dry:
                keep_outputs(root, tail, cut.kept.tolist())
            return
    raise SettingError(f"{reader(node)} reads it together with another")


def _scales(node: fx.Node, factor: fx.Node, tail: Sequence[fx.Node]) -> bool:
    """Whether a factor is made from the other one."""
    (other,) = (source for source in node.all_input_nodes if source is not factor)
    seen, todo = set[fx.Node](), list(tail[0].all_input_nodes)
    while todo:
        each = todo.pop()
        if each is other:
            return True
        if each not in seen:
            seen.add(each)
            todo += each.all_input_nodes
    return False
