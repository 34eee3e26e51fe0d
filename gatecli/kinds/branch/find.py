"""Find multi-branch modules (ResNeXt's) on the traced graph.

A module is a residual block whose branch is a dense convolution, a grouped one and a dense one,
with nothing between that mixes channels: each group is a branch of its own. Two modules in a row
with the same number of branches make a *boundary*, at which each branch of the second, the reader,
may read the sum of some branches of the first instead of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx, nn

from gatecli.graph.dominators import between
from gatecli.graph.ops import is_decision, mask, module_of, relu_after, sum_branches
from gatecli.graph.patterns import calls, is_channelwise, is_plain
from gatecli.kinds.branch.ops import connect, mean_streams
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["Boundary", "BranchModule", "branch_sites", "find_boundaries"]

SUFFIX = ".branches"


@dataclass(frozen=True, kw_only=True)
class BranchModule:
    """One module, by the names of its nodes.

    Attributes:
        block: The site that it is.
        entry: The value that it starts from.
        conv1: The first convolution; `conv2` and `conv3` follow.
        conv2: The grouped one.
        conv3: The last one.
        norm: The last BatchNorm.
        shortcut: What the branch is added to.
        way: The nodes on the shortcut.
        add: The addition.
        after: The ReLU behind it.
        branch: The branch's nodes up to `norm`.
        branches: How many branches there are.
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

    @property
    def nodes(self) -> set[str]:
        """All nodes from the branch's first to the one behind the addition."""
        return {*self.branch, *self.way, self.add, self.after}


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """What lies between a module and the one that reads it.

    Attributes:
        module: The first.
        reader: The second.
        reader_site: The site of the reader's own branches, if it is one.
    """

    module: BranchModule
    reader: BranchModule
    reader_site: str | None


def find_boundaries(net: Traced, blocks: Sequence[Site]) -> dict[str, Boundary]:
    """All boundaries by site, `MODULE.branches`, in the order of execution."""
    modules = [_module_at(net, block) for block in blocks]
    by_entry = {module.entry: module for module in modules if module is not None}
    pairs = {}
    for module in modules:
        reader = None if module is None else by_entry.get(module.after)
        if module is not None and reader is not None and _reads_alone(net, module, reader):
            pairs[f"{module.block}{SUFFIX}"] = (module, reader)
    names = {module.block: site for site, (module, _) in pairs.items()}
    found = {}
    for site, (module, reader) in pairs.items():
        reader_site = names.get(reader.block)
        found[site] = Boundary(module=module, reader=reader, reader_site=reader_site)
    return found


def _reads_alone(net: Traced, module: BranchModule, reader: BranchModule) -> bool:
    """Whether a module of as many branches, and nothing else, reads what another gives."""
    own = {reader.conv1, reader.add, *reader.way}
    users = {user.name for user in net.node(module.after).users}
    return reader.branches == module.branches and users <= own


def branch_sites(net: Traced, kind: str, boundaries: dict[str, Boundary]) -> dict[str, Site]:
    """The branches of each boundary's first module, as a site of so many units.

    Those of boundaries that the graph has as they were found.
    """
    found = {}
    for name, boundary in boundaries.items():
        m = boundary.module
        if not _is_whole(net, boundary):
            continue
        (entry,) = net.node(m.conv1).all_input_nodes  # what was there at first may have gone
        found[name] = Site(
            name=name,
            kind=kind,
            units=m.branches,
            macs=net.macs(m.branch),
            entry=entry.name,
            value=m.norm,
            branch=m.branch,
            channels=net.channels(entry),
            positions=(2, 3),
            shortcut=m.shortcut,
            add=m.add,
        )
    return found


def _is_whole(net: Traced, boundary: Boundary) -> bool:
    """Whether both modules are still what they were.

    Gates may have come between their nodes, not what stands for channels that are gone.
    """
    m, reader = boundary.module, boundary.reader
    if not net.has(*m.branch, m.add, m.after, *reader.branch, *reader.way, reader.add):
        return False
    if net.node(m.add).target is connect or not _is_read_by(net, m, reader):
        return False
    after = net.node(m.after)
    sums = [(m.add, m.norm), (m.after, m.add), (reader.conv1, m.after)]
    if not all(_reads(net.node(node), net.node(source)) for node, source in sums):
        return False
    if not _is_carried(net, after, reader):
        return False
    return all(_is_untouched(net, module) for module in (m, reader))


def _is_read_by(net: Traced, m: BranchModule, reader: BranchModule) -> bool:
    """Whether gates and exits aside the reader alone reads what the module gives."""
    own = {net.node(name) for name in (reader.conv1, reader.add, *reader.way)}
    others = [user for user in net.node(m.after).users if user not in own]
    return all(_only_looks(net, user) for user in others)


def _only_looks(net: Traced, user: fx.Node) -> bool:
    return is_decision(net.root, user) or str(user.target).startswith("exits.")


def _is_carried(net: Traced, after: fx.Node, reader: BranchModule) -> bool:
    """Whether the reader's shortcut still comes from the module."""
    add, way = net.node(reader.add), [net.node(name) for name in reader.way]
    steps = pairwise([after, *way])
    if not all(_reads(node, before) for before, node in steps):
        return False
    return _reads(add, way[-1] if way else after) or add.target is connect


def _is_untouched(net: Traced, module: BranchModule) -> bool:
    """Whether a module's branch is the chain of its nodes, of as many groups as branches."""
    conv = module_of(net.root, net.node(module.conv2))
    chain = pairwise(module.branch)
    if not all(_reads(net.node(node), net.node(before)) for before, node in chain):
        return False
    return isinstance(conv, nn.Conv2d) and conv.groups == module.branches


def _reads(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node reads a value, masks and sums of branches aside."""
    return any(_bare(each) is source for each in node.all_input_nodes)


def _bare(node: fx.Node) -> fx.Node:
    while node.target in (mask, sum_branches, mean_streams):
        node = node.all_input_nodes[0]
    return node


def _module_at(net: Traced, block: Site) -> BranchModule | None:
    """The multi-branch module that a block is; None where it is none."""
    if not block.add:
        return None
    add = net.node(block.add)
    after = relu_after(net.root, add)
    names = [name for name in block.branch if _is_conv(net, name)]
    if len(names) != 3 or after is None or not _is_chain(net, block):
        return None
    branches = _branches(net, names)
    norm = None if branches is None else _norm_of(net, block, names)
    if branches is None or norm is None:
        return None
    way = between(net.node(block.entry), net.node(block.shortcut))
    return BranchModule(
        block=block.name,
        entry=block.entry,
        conv1=names[0],
        conv2=names[1],
        conv3=names[2],
        norm=norm.name,
        shortcut=block.shortcut,
        way=tuple(node.name for node in net.graph.nodes if node in way),
        add=block.add,
        after=after.name,
        branch=block.branch[: block.branch.index(norm.name) + 1],
        branches=branches,
    )


def _is_conv(net: Traced, name: str) -> bool:
    return isinstance(module_of(net.root, net.node(name)), nn.Conv2d)


def _branches(net: Traced, names: Sequence[str]) -> int | None:
    """How many branches three convolutions in a row have; None where these are no branches."""
    one, two, three = (_conv(net, name) for name in names)
    branches: int = two.groups
    if one.groups != 1 or not 1 < branches < two.in_channels:
        return None
    pointwise = three.kernel_size[0] == three.kernel_size[1] == 1
    return branches if three.groups in (1, branches) and pointwise else None


def _conv(net: Traced, name: str) -> Any:
    return module_of(net.root, net.node(name))


def _norm_of(net: Traced, block: Site, names: Sequence[str]) -> fx.Node | None:
    """The last BatchNorm of a module; None where there is none as there should be.

    What the last convolution gives is either one value, or one a branch, which are summed up.
    """
    value = net.node(block.value)
    is_summed = value.target is sum_branches
    node = value.all_input_nodes[0] if is_summed else value
    norm = module_of(net.root, node)
    if not isinstance(norm, nn.BatchNorm2d) or not is_plain(norm, nn.BatchNorm2d):
        return None
    if norm.running_mean is None or node.all_input_nodes != [net.node(names[2])]:
        return None
    return node if is_summed == (_conv(net, names[2]).groups != 1) else None


def _is_chain(net: Traced, block: Site) -> bool:
    """Whether the branch's nodes follow one another.

    Each a layer called once, or something that treats channels apart.
    """
    before = net.node(block.entry)
    for name in block.branch:
        node = net.node(name)
        if node.all_input_nodes != [before] or not _is_known(net, node):
            return False
        before = node
    return True


def _is_known(net: Traced, node: fx.Node) -> bool:
    module = module_of(net.root, node)
    if module is not None and any(True for _ in module.parameters()):
        if calls(node.graph, node) > 1:
            return False
        return is_plain(module, nn.Conv2d) or is_plain(module, nn.BatchNorm2d)
    plain_norm = is_plain(module, nn.BatchNorm2d)
    return plain_norm or node.target is sum_branches or is_channelwise(net.root, node)
