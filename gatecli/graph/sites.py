"""Find what can be gated, on the traced graph: no class names, only how values flow.

A *block* is a residual branch: an addition whose two operands come from one common value by
disjoint ways, of equal shape, where one way (the branch) computes and the other (the shortcut)
carries the value on. Skipping the branch then leaves the shortcut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import is_add, is_linear, module_of


@dataclass(frozen=True)
class Site:
    """A named place that can be gated.

    Nodes are named, not held, so that a site outlives copies of the graph.

    `branch`: the nodes whose work a closed gate saves; `entry`: the value they start from; `value`:
    the last of them;
    `add`: the addition that `value` and the `shortcut` go into; `macs` of the branch for one image;
    `channels` of the entry and the
    dimensions of its `positions`, over which a gate may average: (2, 3) of (N, C, H, W), (1,) of
    tokens (N, L, C).
    A site of several units is split: the nodes of its `tail` work for each unit apart, `unit_macs`
    each; the others' work is saved only where no unit runs. A `layer` has neither shortcut nor
    addition: a closed gate leaves zeros in its place of the concatenations. A `filter` site's units
    are the filters of a convolution, `role` says where it stands (see gatecli.graph.filters). Where
    `places` names the channels of the value that the units are, the others always run. A `conv` is
    a convolution with the BatchNorm behind it; `always` is the share of its MACs that no gate
    saves, and no part of `macs`.
    """

    name: str
    kind: str
    units: int
    macs: int
    entry: str
    value: str
    shortcut: str
    add: str
    branch: tuple[str, ...]
    channels: int
    positions: tuple[int, ...]
    unit_macs: int
    tail: tuple[str, ...] = ()
    always: float = 0.0
    role: str = ""
    places: tuple[int, ...] = ()

    @property
    def shared_macs(self) -> int:
        """MACs of what all units need, saved where none of them runs."""
        return 0 if self.places else self.macs - self.units * self.unit_macs


def find_blocks(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]) -> list[Site]:
    """All residual branches, in the order of execution.

    A site is offered only where it is clear which operand is the shortcut: it computes nothing that
    has weights, or at most one convolution or linear layer where the branch has at least two. Of
    branches within branches the innermost are offered: with a long shortcut around whole stages, it
    is their blocks that one wants to skip.
    """
    dominators = immediate_dominators(graph)
    found = []
    for node in graph.nodes:
        if is_add(node):
            site = _block_at(node, root, dominators, costs)
            if site is not None:
                found.append(site)
    return [site for site in found if not any(other.add in site.branch for other in found)]


def _block_at(
    add: fx.Node,
    root: nn.Module,
    dominators: Mapping[fx.Node, fx.Node | None],
    costs: Mapping[str, NodeCost],
) -> Site | None:
    entry = dominators[add]
    a, b = (arg for arg in add.args if isinstance(arg, fx.Node))
    if (
        entry is None
        or a is b
        or costs[a.name].shape is None
        or costs[a.name].shape != costs[b.name].shape
    ):
        return None
    ways = {a: between(entry, a), b: between(entry, b)}
    if ways[a] & ways[b]:
        return None
    weights = {end: sum(costs[node.name].macs > 0 for node in way) for end, way in ways.items()}
    value, shortcut = (a, b) if weights[a] >= weights[b] else (b, a)
    if (
        weights[value] < 1
        or weights[shortcut] > 1
        or (weights[shortcut] == 1 and weights[value] < 2)
    ):
        return None
    branch = ways[value]
    if _only_normalises(ways[shortcut], root, weights[shortcut]) or _parallel_layers(
        branch, entry, root, costs
    ):
        return None
    if not any(
        entry in node.all_input_nodes for node in branch
    ):  # computed from constants, as relative positions are
        return None
    if any(user not in branch and user is not add for node in branch for user in node.users):
        return None
    shape, image = costs[entry.name].shape, costs[value.name].shape
    if shape is None or len(shape) < 2 or image is None or len(image) < 2:
        return None
    order = [node for node in add.graph.nodes if node in branch]
    names = tuple(node.name for node in order)
    axis = len(shape) - 1 if _channels_last(order, root, shape) else 1
    positions = tuple(other for other in range(1, len(shape)) if other != axis)
    macs = sum(costs[name].macs for name in names)
    return Site(
        module_path(add, branch, root),
        "block",
        1,
        macs,
        entry.name,
        value.name,
        shortcut.name,
        add.name,
        names,
        shape[axis],
        positions,
        macs,
    )


def _only_normalises(way: set[fx.Node], root: nn.Module, weights: int) -> bool:
    """Whether a shortcut is a BatchNorm alone.

    One of several parallel layers that a RepVGG merges into one, none of which is the shortcut.
    """
    return weights == 0 and any(
        isinstance(module_of(root, node), nn.modules.batchnorm._BatchNorm) for node in way
    )


def _parallel_layers(
    branch: set[fx.Node], entry: fx.Node, root: nn.Module, costs: Mapping[str, NodeCost]
) -> bool:
    """Whether a branch is a sum of convolutions side by side, and so one convolution in the guise
    that it has in training.
    """
    readers = [
        node for node in branch if costs[node.name].macs > 0 and entry in node.all_input_nodes
    ]
    return len(readers) > 1 and all(is_linear(root, node) for node in branch)


def _channels_last(branch: Sequence[fx.Node], root: nn.Module, shape: Sequence[int]) -> bool:
    """Whether the last dimension holds the channels, as in transformers, whose values are (N, ...,
    C), or the second.

    The first layer says so whose width is that of one of them; in a module that was kept whole, its
    own layers do.
    """
    modules = (module for node in branch if (module := module_of(root, node)) is not None)
    for part in (part for module in modules for part in module.modules()):
        if isinstance(part, (nn.Linear, nn.LayerNorm)):
            if shape[-1] == (
                part.in_features if isinstance(part, nn.Linear) else part.normalized_shape[-1]
            ):
                return True
        elif getattr(part, "in_channels", getattr(part, "num_features", None)) == shape[1]:
            return False
    return False


def between(entry: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes on the ways from `entry` (left out) to `end`.

    Constants, which several ways may share, are left out too.
    """
    inside: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node is not entry and node not in inside and node.op != "get_attr":
            inside.add(node)
            todo.extend(node.all_input_nodes)
    return inside


def immediate_dominators(graph: fx.Graph) -> dict[fx.Node, fx.Node | None]:
    """For each node, the latest node through which every way from the input to it leads.

    Constants, gates' decisions and a gater lie on no way.
    """
    dominators: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "call_module" and str(node.target).partition(".")[0] in ("gates", "gater"):
            continue
        inputs = [source for source in node.all_input_nodes if source in depth]
        if not inputs and node.op != "placeholder":
            continue
        common: fx.Node | None = inputs[0] if inputs else None
        for other in inputs[1:]:
            common = _common(common, other, dominators, depth)
        dominators[node] = common
        depth[node] = 0 if common is None else depth[common] + 1
    return {node: dominators.get(node) for node in graph.nodes}


def _common(
    a: fx.Node | None,
    b: fx.Node | None,
    dominators: Mapping[fx.Node, fx.Node | None],
    depth: Mapping[fx.Node, int],
) -> fx.Node | None:
    while a is not b and a is not None and b is not None:
        if depth[a] >= depth[b]:
            a = dominators[a]
        else:
            b = dominators[b]
    return a if a is b else None


def module_path(node: fx.Node, branch: Iterable[fx.Node], root: nn.Module) -> str:
    """The module path that the branch's modules share, as `layer1.0`.

    Where they share none, the node's own.
    """
    paths = [str(part.target).split(".") for part in branch if module_of(root, part) is not None]
    if len(paths) == 1:
        return ".".join(paths[0])
    shared = []
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or (str(node.target) if node.op == "call_module" else node.name)


def with_unique_names(found: list[Site]) -> dict[str, Site]:
    """Branches under one module, as a transformer block's two, are told apart by their order.

    `block#1`, `block#2`.
    """
    names = [site.name for site in found]
    result: dict[str, Site] = {}
    for index, site in enumerate(found):
        name = (
            site.name
            if names.count(site.name) == 1
            else f"{site.name}#{names[:index].count(site.name) + 1}"
        )
        result[name] = replace(site, name=name)
    return result
