"""Let branches read different sums, and take out branches that nobody reads.

From a boundary on the reader has one *stream* of maps a branch: (N, branches * channels, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from gatecli.graph.edit import place
from gatecli.graph.ops import mask, module_of, sum_branches
from gatecli.graph.prune_channels import keep_entries
from gatecli.graph.trace import remove_dead
from gatecli.kinds.branch.find import Boundary, BranchModule
from gatecli.kinds.branch.modules import FanOut, SharedNorm
from gatecli.kinds.branch.ops import (
    connect,
    fold_streams,
    mean_streams,
    unfold_streams,
)
from gatecli.traced.traced import Traced

__all__ = ["fix", "insert_connections", "insert_mask_on_branches", "with_streams"]


def with_streams(boundary: Boundary) -> tuple[set[str], set[str]]:
    """Where `insert_connections` makes streams.

    Returns:
        The convolutions that then read or give them, on the shortcut too, and the values that
        they are.
    """
    layers = {boundary.module.conv3, boundary.reader.conv1, *boundary.reader.way}
    return layers, {boundary.module.add, boundary.module.after}


def insert_mask_on_branches(net: Traced, site: str, boundary: Boundary, gate: nn.Module) -> None:
    """Every branch reads all of them: one stream, as it was; a gate may still silence a branch."""
    path, graph = f"gates.{site}", net.graph
    place(net.root, path, gate)
    entry, last = _entry(net, boundary.module), net.node(boundary.module.conv3)
    with graph.inserting_before(last):
        decision = graph.call_module(path, (entry,))
        last.args = (graph.call_function(mask, (last.args[0], decision)),)


def insert_connections(net: Traced, site: str, boundary: Boundary, gate: nn.Module) -> None:
    """Let each branch of the reader read what `gate` says.

    Args:
        net: The network.
        site: The site.
        boundary: Its boundary.
        gate: A module (entry) -> (connections (readers, branches), divisor).
    """
    path, graph = f"gates.{site}", net.graph
    place(net.root, path, gate)
    m, count = boundary.module, boundary.module.branches
    add, norm, conv = (net.node(name) for name in (m.add, m.norm, m.conv3))
    last: Any = module_of(net.root, conv)
    if last.groups == 1:
        place(net.root, str(conv.target), FanOut(last, count))
        place(net.root, str(norm.target), SharedNorm(module_of(net.root, norm), count))
    with graph.inserting_before(add):
        read = graph.call_module(path, (_entry(net, m),))
    add.op, add.target = "call_function", connect
    add.args, add.kwargs = (norm, _shortcut(add, norm), read), {}
    _read_streams(net, net.node(m.after), boundary.reader, count)
    remove_dead(graph)


def _entry(net: Traced, module: BranchModule) -> fx.Node:
    """What the module reads now: blocks before it may have gone."""
    (entry,) = net.node(module.conv1).all_input_nodes
    return entry


def _shortcut(add: fx.Node, norm: fx.Node) -> fx.Node:
    """The addition's other operand, with all its streams."""
    for arg in add.all_input_nodes:
        if arg is not norm and arg.target is not sum_branches:
            return arg.all_input_nodes[0] if arg.target is mean_streams else arg
    raise AssertionError(f"`{add.name}` adds nothing to the branches")


def _read_streams(net: Traced, after: fx.Node, reader: BranchModule, count: int) -> None:
    conv: Any = module_of(net.root, net.node(reader.conv1))
    conv.groups, conv.in_channels = count, count * conv.in_channels  # the weights are the same
    shortcut = _along_the_way(net, after, reader, count) if reader.way else after
    add = net.node(reader.add)
    if add.target is not connect:
        with net.graph.inserting_before(add):
            mean = net.graph.call_function(mean_streams, (shortcut, count))
        add.replace_input_with(shortcut, mean)


def _along_the_way(net: Traced, after: fx.Node, reader: BranchModule, count: int) -> fx.Node:
    """Let a projection shortcut see streams as samples; returns what it gives, as streams."""
    graph, way = net.graph, [net.node(name) for name in reader.way]
    with graph.inserting_after(after):
        folded = graph.call_function(fold_streams, (after, count))
    for node in way:
        node.replace_input_with(after, folded)
    with graph.inserting_after(way[-1]):
        shortcut = graph.call_function(unfold_streams, (way[-1], count))
    way[-1].replace_all_uses_with(shortcut, delete_user_cb=lambda user: user is not shortcut)
    return shortcut


# --- take branches out ---


def fix(
    net: Traced, site: str, boundary: Boundary, kept: Sequence[int], fixed: nn.Module | None
) -> None:
    """Let the boundary's module keep the branches `kept` alone.

    `fixed`, a module as the gate, takes the gate's place, None: all read all.
    """
    path = f"gates.{site}"
    if fixed is not None:
        place(net.root, path, fixed)
        _cut(net, boundary.module, kept)
        return
    gate = next(node for node in net.graph.nodes if node.target == path)
    (masked,) = gate.users
    masked.replace_all_uses_with(masked.args[0])
    remove_dead(net.graph)


def _cut(net: Traced, module: BranchModule, kept: Sequence[int]) -> None:
    """Let a module's layers, and what deals with its streams, have these branches alone."""
    for name in module.branch:
        node = net.find(name)
        part: Any = None if node is None else module_of(net.root, node)
        if name == module.conv1:
            _cut_first(part, module.branches, kept)
        elif isinstance(part, FanOut):
            width = part.weight.shape[1] // module.branches
            keep_entries(part, ("weight",), _places(kept, width), dim=1)
            part.branches = len(kept)
        elif isinstance(part, nn.Conv2d):
            _cut_grouped(part, module.branches, kept)
        elif isinstance(part, nn.BatchNorm2d):
            index = _places(kept, part.num_features // module.branches)
            keep_entries(part, ("weight", "bias", "running_mean", "running_var"), index)
            part.num_features = len(index)
    _recount_streams(net, module, len(kept))


def _cut_first(conv: Any, branches: int, kept: Sequence[int]) -> None:
    width = conv.out_channels // branches
    keep_entries(conv, ("weight", "bias"), _places(kept, width))
    conv.out_channels = width * len(kept)
    if conv.groups > 1:
        conv.in_channels = conv.in_channels // conv.groups * len(kept)
        conv.groups = len(kept)


def _cut_grouped(conv: Any, branches: int, kept: Sequence[int]) -> None:
    width = conv.out_channels // branches
    keep_entries(conv, ("weight", "bias"), _places(kept, width))
    conv.in_channels = conv.in_channels // branches * len(kept)
    conv.out_channels = width * len(kept)
    conv.groups = len(kept)


def _recount_streams(net: Traced, module: BranchModule, count: int) -> None:
    """As many streams come in as branches are left."""
    entry = _entry(net, module)
    for node in net.graph.nodes:
        if node.target is fold_streams and node.args[0] is entry:
            node.args = (entry, count)
        elif node.target is unfold_streams and node.all_input_nodes[0].name in module.way:
            node.args = (node.args[0], count)


def _places(kept: Sequence[int], width: int) -> torch.Tensor:
    channels: list[int] = []
    for branch in kept:
        channels += range(branch * width, (branch + 1) * width)
    return torch.tensor(channels)
