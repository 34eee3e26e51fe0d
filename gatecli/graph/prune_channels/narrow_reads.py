"""Let convolutions read what is left of a value, where an addition beside them reads zeros too.

A value that goes into a sum keeps its width by zeros (`gatecli.graph.ops.widen`). What else reads
it can do without them: activations come before the zeros, and convolutions lose these inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import fx
from torch.fx.node import map_arg

from gatecli.graph.ops import is_mask, module_of, widen
from gatecli.graph.patterns import keeps_zero, reads_all_channels
from gatecli.graph.prune_channels.inputs import drop_inputs
from gatecli.graph.runs import Runs, numbers_of, others, part_of
from gatecli.graph.trace import remove_dead
from gatecli.traced.traced import Traced

__all__ = ["read_narrow"]


def read_narrow(net: Traced, wide: Sequence[fx.Node], apart: Sequence[str]) -> None:
    """Let readers of values that were widened with zeros read what was widened.

    Args:
        net: The network; its sites are kept true.
        wide: Values that `widen` has made, of maps.
        apart: The names of nodes that are to be left as they are.
    """
    narrowing = _Narrowing(net, frozenset(apart))
    for node in wide:
        narrowing.at(node)
    remove_dead(net.graph)


class _Narrowing:
    """A walk from zeros down to the convolutions that read them.

    Attributes:
        net: The network.
        apart: The names of nodes that are to be left as they are.
    """

    def __init__(self, net: Traced, apart: frozenset[str]) -> None:
        self.net = net
        self.apart = apart

    def at(self, wide: fx.Node) -> None:
        """Let who reads a widened value do without the zeros, where that saves something."""
        sites = self.net.sites.values()
        named = any(wide.name in (site.entry, site.value, site.shortcut) for site in sites)
        for user in list(wide.users):
            if user.target is widen:
                _widen_once(user, wide)
            elif not named and self._passes(user, wide) and self._saves(user):
                self._widen_behind(user, wide)
                self.at(user)
        for conv in self._convolutions(wide):
            self._read_less(conv, wide)

    def _saves(self, value: fx.Node) -> bool:
        """Whether a convolution reads a value, at once or behind what zeros pass."""
        behind = [user for user in value.users if self._passes(user, value)]
        return bool(self._convolutions(value)) or any(map(self._saves, behind))

    def _passes(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node makes a channel of each of its source's, and zeros of zeros."""
        if is_mask(node) or node.target is widen or list(node.args[:1]) != [source]:
            return False
        if len(node.all_input_nodes) != 1:
            return False
        return node.name not in self.apart and keeps_zero(self.net.root, node, source)

    def _convolutions(self, value: fx.Node) -> list[fx.Node]:
        """The convolutions that can do without some channels of a value.

        None that has readers of the value beside it in a branch, as that begins with one value.
        """
        found = {user for user in value.users if self._is_able(user)}
        readers = self._in_branches(value)
        while partly := [each for each in readers if each & found and not each <= found]:
            found.difference_update(*partly)
        return [user for user in value.users if user in found]

    def _in_branches(self, value: fx.Node) -> list[set[fx.Node]]:
        """What reads a value in each of the branches that begin with it."""
        begun = [site for site in self.net.sites.values() if site.entry == value.name]
        return [{user for user in value.users if user.name in site.branch} for site in begun]

    def _is_able(self, node: fx.Node) -> bool:
        return node.name not in self.apart and reads_all_channels(self.net.root, node)

    def _widen_behind(self, node: fx.Node, wide: fx.Node) -> None:
        """Let a node's work be done on what was widened; its name is the wide value's."""
        narrow, _, _ = _parts(wide)
        graph = self.net.graph
        with graph.inserting_before(node):
            done = graph.create_node(
                node.op,
                node.target,
                map_arg(node.args, lambda each: narrow if each is wide else each),
                node.kwargs,
            )
        node.op, node.target = "call_function", widen
        node.args, node.kwargs = (done, *wide.args[1:]), dict(wide.kwargs)
        self._belongs(done, node)

    def _belongs(self, new: fx.Node, old: fx.Node) -> None:
        """A new node computes in all sites in which an old one did."""
        for name, site in self.net.sites.items():
            if old.name in site.branch:
                self.net.sites[name] = replace(site, branch=(*site.branch, new.name))

    def _read_less(self, conv: fx.Node, wide: fx.Node) -> None:
        narrow, kept, width = _parts(wide)
        module = module_of(self.net.root, conv)
        drop_inputs(module, torch.tensor(kept), torch.tensor(others(width, kept)), None)
        conv.replace_input_with(wide, narrow)
        for name, site in self.net.sites.items():
            if site.entry == wide.name and conv.name in site.branch:
                self.net.sites[name] = replace(site, entry=narrow.name)


def _parts(wide: fx.Node) -> tuple[fx.Node, list[int], int]:
    """What was widened, where its channels are, and of how many."""
    narrow, runs, width = wide.args
    assert isinstance(narrow, fx.Node) and isinstance(width, int)
    return narrow, numbers_of(cast("Runs", runs)), width


def _widen_once(outer: fx.Node, inner: fx.Node) -> None:
    """One value among zeros, where it was put among zeros twice."""
    narrow, few, _ = _parts(inner)
    _, many, width = outer.args
    outer.args = (narrow, part_of(cast("Runs", many), few), width)
