"""Multi-branch modules (ResNeXt's): find them on the traced graph, let their branches read
different sums, and take out branches that nobody reads.

A module is a residual block whose branch is a dense convolution, a grouped one and a dense one,
with nothing between that mixes channels: each group is a branch of its own. Two modules in a row
with the same number of branches make a *boundary*, at which each branch of the second, the reader,
may read the sum of some branches of the first instead of all of them. From there on the reader has
one *stream* of maps a branch: (N, branches * channels, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import (
    connect,
    fold_streams,
    is_decision,
    mask,
    mean_streams,
    module_of,
    relu_after,
    sum_branches,
    unfold_streams,
)
from gatecli.graph.rewrite import node_named, place
from gatecli.graph.sites import Site, between
from gatecli.graph.slices import calls, is_channelwise, is_plain, keep_entries
from gatecli.graph.streams import FanOut, SharedNorm
from gatecli.graph.trace import remove_dead


@dataclass(frozen=True)
class BranchModule:
    """One module, by the names of its nodes.

    The three convolutions, the last BatchNorm, the addition and the ReLU `after` it, the nodes of
    the shortcut's `way`.
    """

    block: str
    entry: str
    conv1: str
    conv2: str
    conv3: str
    norm: str
    shortcut: str
    way: tuple[str, ...]
    add: str
    after: str
    branch: tuple[str, ...]
    branches: int


@dataclass(frozen=True)
class Boundary:
    """What lies between a module and the one that reads it.

    `reader_site`: the site of the reader's own branches, if it is one.
    """

    module: BranchModule
    reader: BranchModule
    reader_site: str | None


def find_boundaries(
    root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost], blocks: Sequence[Site]
) -> dict[str, Boundary]:
    """All boundaries by site, `MODULE.branches`, in the order of execution."""
    nodes = {node.name: node for node in graph.nodes}
    modules = [module for block in blocks if (module := _module_at(root, nodes, block)) is not None]
    by_entry = {module.entry: module for module in modules}
    pairs = {}
    for module in modules:
        reader = by_entry.get(module.after)
        own = set() if reader is None else {reader.conv1, reader.add, *reader.way}
        if (
            reader is not None
            and reader.branches == module.branches
            and {user.name for user in nodes[module.after].users} <= own
        ):
            pairs[f"{module.block}.branches"] = (module, reader)
    names = {module.block: site for site, (module, _) in pairs.items()}
    return {
        site: Boundary(module, reader, names.get(reader.block))
        for site, (module, reader) in pairs.items()
    }


def branch_sites(
    root: nn.Module,
    graph: fx.Graph,
    costs: Mapping[str, NodeCost],
    boundaries: Mapping[str, Boundary],
) -> dict[str, Site]:
    """The branches of each boundary's first module, as a site of so many units.

    Those of boundaries that the graph has as they were found.
    """
    found, nodes = {}, {node.name: node for node in graph.nodes}
    for name, boundary in boundaries.items():
        m = boundary.module
        if not _whole(root, nodes, boundary):
            continue
        (entry,) = nodes[m.conv1].all_input_nodes  # what was there at first may have gone
        shape = costs[entry.name].shape
        assert shape is not None
        macs = sum(costs[node].macs for node in m.branch)
        found[name] = Site(
            name,
            "branch",
            m.branches,
            macs,
            entry.name,
            m.norm,
            m.shortcut,
            m.add,
            m.branch,
            shape[1],
            (2, 3),
            0,
        )
    return found


def _whole(root: nn.Module, nodes: Mapping[str, fx.Node], boundary: Boundary) -> bool:
    """Whether both modules are still what they were.

    Gates may have come between their nodes, not what stands for channels that are gone.
    """
    m, reader = boundary.module, boundary.reader
    if (
        not {*m.branch, m.add, m.after, *reader.branch, *reader.way, reader.add} <= nodes.keys()
        or nodes[m.add].target is connect
    ):
        return False
    after, way = nodes[m.after], [nodes[name] for name in reader.way]
    own = {nodes[reader.conv1], nodes[reader.add], *way}
    read = all(
        user in own or is_decision(root, user) or str(user.target).startswith("exits.")
        for user in after.users
    )
    sums = (
        _reads(nodes[m.add], nodes[m.norm])
        and _reads(after, nodes[m.add])
        and _reads(nodes[reader.conv1], after)
    )
    carried = _reads(nodes[reader.add], way[-1] if way else after) and all(
        _reads(node, before) for before, node in pairwise([after, *way])
    )
    return (
        read
        and sums
        and (carried or nodes[reader.add].target is connect)
        and all(_untouched(root, nodes, module) for module in (m, reader))
    )


def _untouched(root: nn.Module, nodes: Mapping[str, fx.Node], module: BranchModule) -> bool:
    """Whether a module's branch is the chain of its nodes, of as many groups as there were
    branches.
    """
    conv = module_of(root, nodes[module.conv2])
    chain = all(_reads(nodes[node], nodes[before]) for before, node in pairwise(module.branch))
    return chain and isinstance(conv, nn.Conv2d) and conv.groups == module.branches


def _reads(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node reads a value, masks and sums of branches aside."""
    return any(_bare(each) is source for each in node.all_input_nodes)


def _bare(node: fx.Node) -> fx.Node:
    while node.target in (mask, sum_branches, mean_streams):
        node = node.all_input_nodes[0]
    return node


def _module_at(root: nn.Module, nodes: Mapping[str, fx.Node], block: Site) -> BranchModule | None:
    convolutions = [
        name for name in block.branch if isinstance(module_of(root, nodes[name]), nn.Conv2d)
    ]
    add = nodes[block.add]
    after = relu_after(root, add)
    if (
        len(convolutions) != 3
        or after is None
        or not _is_chain(root, [nodes[name] for name in block.branch], nodes[block.entry])
    ):
        return None
    one, two, three = (module_of(root, nodes[name]) for name in convolutions)
    assert (
        isinstance(one, nn.Conv2d) and isinstance(two, nn.Conv2d) and isinstance(three, nn.Conv2d)
    )
    branches = two.groups
    if (
        one.groups != 1
        or not 1 < branches < two.in_channels
        or three.groups not in (1, branches)
        or any(three.kernel_size[i] != 1 for i in (0, 1))
    ):
        return None
    norm = nodes[block.value]
    if norm.target is sum_branches:
        norm = norm.all_input_nodes[0]
    last = module_of(root, norm)
    if (
        not isinstance(last, nn.BatchNorm2d)
        or not is_plain(last, nn.BatchNorm2d)
        or last.running_mean is None
        or norm.all_input_nodes != [nodes[convolutions[2]]]
        or (three.groups == 1) != (norm is nodes[block.value])
    ):
        return None
    way = tuple(
        node.name
        for node in add.graph.nodes
        if node in between(nodes[block.entry], nodes[block.shortcut])
    )
    first, second, third = convolutions
    return BranchModule(
        block.name,
        block.entry,
        first,
        second,
        third,
        norm.name,
        block.shortcut,
        way,
        block.add,
        after.name,
        block.branch[: block.branch.index(norm.name) + 1],
        branches,
    )


def _is_chain(root: nn.Module, branch: Sequence[fx.Node], entry: fx.Node) -> bool:
    """Whether the branch's nodes follow one another, each a layer called once or something that
    treats channels apart.
    """
    before = entry
    for node in branch:
        module = module_of(root, node)
        known = (
            is_plain(module, nn.Conv2d)
            or is_plain(module, nn.BatchNorm2d)
            or node.target is sum_branches
            or is_channelwise(root, node)
        )
        if (
            node.all_input_nodes != [before]
            or not known
            or (
                module is not None
                and any(True for _ in module.parameters())
                and calls(node.graph, node) > 1
            )
        ):
            return False
        before = node
    return True


# --- let branches read different sums ---


def with_streams(boundary: Boundary) -> tuple[set[str], set[str]]:
    """Where `insert_connections` makes streams: the convolutions that then read or give them, on
    the shortcut too, and the values that they are.
    """
    return {boundary.module.conv3, boundary.reader.conv1, *boundary.reader.way}, {
        boundary.module.add,
        boundary.module.after,
    }


def insert_mask_on_branches(
    root: nn.Module, graph: fx.Graph, site: str, boundary: Boundary, gate: nn.Module
) -> None:
    """Every branch reads all of them: one stream, as it was.

    The gate's decisions may still silence a branch.
    """
    place(root, f"gates.{site}", gate)
    entry, last = _entry(graph, boundary.module), node_named(graph, boundary.module.conv3)
    with graph.inserting_before(last):
        decision = graph.call_module(f"gates.{site}", (entry,))
        last.args = (graph.call_function(mask, (last.args[0], decision)),)


def insert_connections(
    root: nn.Module, graph: fx.Graph, site: str, boundary: Boundary, gate: nn.Module
) -> None:
    """Let each branch of the reader read what `gate`, a module (entry) -> (connections (readers,
    branches), fan_in), says.
    """
    place(root, f"gates.{site}", gate)
    m, reader, count = boundary.module, boundary.reader, boundary.module.branches
    add, norm, conv = (node_named(graph, name) for name in (m.add, m.norm, m.conv3))
    if module_of(root, conv).groups == 1:  # type: ignore[union-attr]
        place(root, str(conv.target), FanOut(module_of(root, conv), count))
        place(root, str(norm.target), SharedNorm(module_of(root, norm), count))
    with graph.inserting_before(add):
        read = graph.call_module(f"gates.{site}", (_entry(graph, m),))
    add.op, add.target, add.args, add.kwargs = (
        "call_function",
        connect,
        (norm, _shortcut(add, norm), read),
        {},
    )
    _read_streams(root, graph, node_named(graph, m.after), reader, count)
    remove_dead(graph)


def _entry(graph: fx.Graph, module: BranchModule) -> fx.Node:
    """What the module reads now: blocks before it may have gone."""
    (entry,) = node_named(graph, module.conv1).all_input_nodes
    return entry


def _shortcut(add: fx.Node, norm: fx.Node) -> fx.Node:
    """The addition's other operand, with all its streams."""
    other = next(
        arg for arg in add.all_input_nodes if arg is not norm and arg.target is not sum_branches
    )
    return other.all_input_nodes[0] if other.target is mean_streams else other


def _read_streams(
    root: nn.Module, graph: fx.Graph, after: fx.Node, reader: BranchModule, count: int
) -> None:
    conv: Any = module_of(root, node_named(graph, reader.conv1))
    conv.groups, conv.in_channels = count, count * conv.in_channels  # the weights are the same
    shortcut = after
    if reader.way:
        way = [node_named(graph, name) for name in reader.way]
        with graph.inserting_after(after):
            folded = graph.call_function(fold_streams, (after, count))
        for node in way:
            node.replace_input_with(after, folded)
        with graph.inserting_after(way[-1]):
            shortcut = graph.call_function(unfold_streams, (way[-1], count))
        way[-1].replace_all_uses_with(shortcut, delete_user_cb=lambda user: user is not shortcut)
    add = node_named(graph, reader.add)
    if add.target is not connect:
        with graph.inserting_before(add):
            add.replace_input_with(shortcut, graph.call_function(mean_streams, (shortcut, count)))


# --- take branches out ---


def fix(
    root: nn.Module,
    graph: fx.Graph,
    site: str,
    boundary: Boundary,
    kept: Sequence[int],
    fixed: nn.Module | None,
) -> None:
    """Let the boundary's module keep the branches `kept` alone.

    `fixed`, a module as the gate, takes the gate's place, None: all read all.
    """
    if fixed is None:
        (masked,) = (user for user in _gate_node(graph, site).users)
        masked.replace_all_uses_with(masked.args[0])  # type: ignore[arg-type]
        remove_dead(graph)
        return
    place(root, f"gates.{site}", fixed)
    _cut(root, graph, boundary.module, kept)


def _gate_node(graph: fx.Graph, site: str) -> fx.Node:
    found: fx.Node = next(
        node for node in graph.nodes if node.op == "call_module" and node.target == f"gates.{site}"
    )
    return found


def _cut(root: nn.Module, graph: fx.Graph, module: BranchModule, kept: Sequence[int]) -> None:
    nodes = [
        node
        for name in module.branch
        if (node := next((each for each in graph.nodes if each.name == name), None)) is not None
    ]
    for node in nodes:
        part: Any = module_of(root, node)
        if node.name == module.conv1:
            keep_entries(
                part, ("weight", "bias"), _places(kept, part.out_channels // module.branches)
            )
            per_branch = part.in_channels // part.groups
            part.out_channels = part.out_channels // module.branches * len(kept)
            if part.groups > 1:
                part.groups, part.in_channels = len(kept), per_branch * len(kept)
        elif isinstance(part, FanOut):
            keep_entries(
                part, ("weight",), _places(kept, part.weight.shape[1] // module.branches), dim=1
            )
            part.branches = len(kept)
        elif isinstance(part, nn.Conv2d):
            keep_entries(
                part, ("weight", "bias"), _places(kept, part.out_channels // module.branches)
            )
            part.in_channels, part.out_channels = (
                part.in_channels // module.branches * len(kept),
                part.out_channels // module.branches * len(kept),
            )
            part.groups = len(kept)
        elif isinstance(part, nn.BatchNorm2d):
            index = _places(kept, part.num_features // module.branches)
            keep_entries(part, ("weight", "bias", "running_mean", "running_var"), index)
            part.num_features = len(index)
    entry = _entry(graph, module)
    for node in graph.nodes:  # as many streams come in as branches are left
        if node.target is fold_streams and node.args[0] is entry:
            node.args = (entry, len(kept))
        elif node.target is unfold_streams and node.all_input_nodes[0].name in module.way:
            node.args = (node.args[0], len(kept))


def _places(kept: Sequence[int], width: int) -> torch.Tensor:
    return torch.tensor([branch * width + index for branch in kept for index in range(width)])
