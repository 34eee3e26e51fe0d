"""Let those who read channels that are zero for good lose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gatecli.errors import SettingError
from gatecli.graph.ops import is_cat, module_of
from gatecli.graph.patterns import calls, has_weights, is_product, keeps_zero
from gatecli.graph.prune_channels.constants import (
    Cut,
    after_norm,
    after_operation,
    concatenated,
)
from gatecli.graph.prune_channels.entries import NORM, keep_entries
from gatecli.graph.prune_channels.inputs import absorbs, check_reader, read_less
from gatecli.graph.prune_channels.naming import is_own, reader
from gatecli.graph.prune_channels.together import sum_of, trim_factor
from gatecli.traced.traced import NodeCost, has_channels_last

__all__ = ["Gone", "fold", "foldable"]

Gone = Mapping[fx.Node, Sequence[int]]  # value -> the channels of it that are zero for good


def foldable(
    root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], values: Gone
) -> str | None:
    """Why `values` could not be folded into what reads them; None where they could."""
    try:
        _Fold(root, graph, costs, values, dry=True).run()
    except SettingError as error:
        return str(error)
    return None


def fold(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], values: Gone) -> None:
    """Let those who read `values` lose the channels that are zero for good.

    A value of which nothing is left goes out of all concatenations.

    Args:
        root: where the graph's modules are.
        graph: what is changed.
        costs: the shapes of the graph's nodes, with all channels still in.
        values: what is zero.

    Raises:
        SettingError: one cannot be folded, see `foldable`.
    """
    walk = _Fold(root, graph, costs, values, dry=False)
    walk.run()
    for cat in [node for node in graph.nodes if is_cat(node)]:
        parts = [part for part in cat.args[0] if part not in walk.empty]
        cat.args = (parts, *cat.args[1:])


class _Fold:
    """One walk down the graph, from zeros to the layers that absorb what they have become.

    Attributes:
        cuts: What has become of values so far.
        values: Those with which it began.
        empty: Those of which nothing is left.
        dry: Whether to see only if it can be done.
        starved: A gate that would have nothing left to look at. It is the reason only where there
            is no other, as it stands before what it gates.
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        costs: Mapping[str, NodeCost],
        values: Gone,
        *,
        dry: bool,
    ) -> None:
        self.root = root
        self.graph = graph
        self.costs = costs
        self.dry = dry
        self.cuts = {node: self._zeros(node, gone) for node, gone in values.items()}
        self.values = set(values)
        self.empty = {node for node, cut in self.cuts.items() if not len(cut.kept)}
        self.starved: fx.Node | None = None

    def _zeros(self, node: fx.Node, gone: Sequence[int]) -> Cut:
        axis = -1 if has_channels_last(self.root, self.costs, node) else 1
        left = sorted(set(range(self._width(node, axis))) - set(gone))
        device = next(self.root.parameters()).device
        return Cut(
            kept=torch.tensor(left, dtype=torch.long),
            gone=torch.tensor(sorted(gone)),
            constants=torch.zeros(len(gone), device=device),
            zero=True,
            axis=axis,
        )

    def run(self) -> None:
        dead = self._dead()
        for node in self.graph.nodes:
            if node in dead or self._is_settled(node):
                continue
            nothing = [source for source in node.all_input_nodes if source in self.empty]
            if nothing and not is_cat(node):
                self._empty(node, nothing[0])
            elif any(source in self.cuts for source in node.all_input_nodes):
                self._pass(node)
        if self.starved is not None:
            raise _nothing_for(self.starved)

    def _is_settled(self, node: fx.Node) -> bool:
        """Whether a node has nothing to lose but what it has lost at the beginning.

        A convolution that loses outputs may lose inputs as well.
        """
        is_conv = isinstance(module_of(self.root, node), nn.Conv2d)
        return node in self.values and not is_conv

    def _empty(self, node: fx.Node, source: fx.Node) -> None:
        """Nothing is left of a value whose source is gone, where zeros stay zeros."""
        if is_own(node):
            self.starved = self.starved or node
            return
        same = self._width(node) == self._width(source)
        if not same or not keeps_zero(self.root, node, source):
            raise _nothing_for(node)
        self.cuts[node] = self.cuts[source]
        self.empty.add(node)

    def _dead(self) -> set[fx.Node]:
        """The values of which nothing is left, and what only they need."""
        dead = set(self.empty)
        for node in reversed(self.graph.nodes):
            if node.users and all(user in dead for user in node.users):
                dead.add(node)
        return dead

    def _pass(self, node: fx.Node) -> None:
        """Let a node read what its source has become, and note what has become of its value."""
        if is_cat(node):
            self.cuts[node] = self._concatenated(node)
            return
        source, *others = (each for each in node.all_input_nodes if each in self.cuts)
        if others:
            self.cuts[node] = sum_of(node, [self.cuts[each] for each in (source, *others)])
        else:
            self._follow(node, source)

    def _follow(self, node: fx.Node, source: fx.Node) -> None:
        """The same for a node that has one source that is cut."""
        module: Any = module_of(self.root, node)
        if module is not None and has_weights(module) and calls(self.graph, node) > 1:
            raise SettingError(f"{reader(node)} reads it, which is called more than once")
        cut, shape = self.cuts[source], self.costs[source.name].shape
        if is_product(node):
            trim_factor(self.root, node, cut, self.costs, dry=self.dry)
            self.cuts[node] = cut
        elif _normalises_apart(module):
            self.cuts[node] = after_norm(node, module, cut, shape)
            if not self.dry:
                keep_entries(module, NORM, cut.kept)
                module.num_features = len(cut.kept)
        elif absorbs(module):
            check_reader(node, module, cut)
            if not self.dry:
                read_less(module, cut)
        else:
            self.cuts[node] = after_operation(self.root, node, cut, shape)

    def _width(self, node: fx.Node, axis: int = 1) -> int:
        shape = self.costs[node.name].shape
        assert shape is not None
        return shape[axis]

    def _concatenated(self, cat: fx.Node) -> Cut:
        parts: Any = cat.args[0]
        cut = concatenated([(self._width(part), self.cuts.get(part)) for part in parts])
        if not len(cut.kept):
            raise SettingError(f"{reader(cat)} would have nothing left to concatenate")
        return cut


def _nothing_for(node: fx.Node) -> SettingError:
    return SettingError(f"{reader(node)} would have nothing left to read")


def _normalises_apart(module: nn.Module | None) -> bool:
    """Whether a module is a BatchNorm with statistics, and at most a plain activation."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None:
        return False
    return not any(has_weights(child) for child in module.children())
