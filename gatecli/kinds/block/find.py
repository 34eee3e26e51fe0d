"""Find residual blocks on the traced graph: no class names, only how values flow.

A block is an addition whose two operands come from one common value by disjoint ways, of equal
shape, where one way (the branch) computes and the other (the shortcut) carries the value on.
Skipping the branch then leaves the shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gatecli.graph.dominators import between, immediate_dominators
from gatecli.graph.ops import is_add, is_linear, module_of
from gatecli.kinds.naming import module_path
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["find_blocks"]


def find_blocks(net: Traced, kind: str) -> list[Site]:
    """All residual branches, in the order of execution.

    A site is offered only where it is clear which operand is the shortcut: it computes nothing that
    has weights, or at most one convolution or linear layer where the branch has at least two. Of
    branches within branches the innermost are offered: with a long shortcut around whole stages, it
    is their blocks that one wants to skip.
    """
    dominators = immediate_dominators(net.graph)
    found = []
    for add in net.graph.nodes:
        entry = dominators[add] if is_add(add) else None
        ways = None if entry is None else _ways_at(net, add, entry)
        if ways is not None and _is_block(net, ways):
            found.append(_site(net, ways, kind))
    additions = {site.add for site in found}
    return [site for site in found if additions.isdisjoint(site.branch)]


@dataclass(frozen=True, kw_only=True)
class _Ways:
    """Two ways from one value to an addition; the one with more weights is the branch."""

    add: fx.Node
    entry: fx.Node
    value: fx.Node
    shortcut: fx.Node
    branch: set[fx.Node]
    other: set[fx.Node]
    weights: tuple[int, int]  # layers with weights in the branch, and on the shortcut


def _ways_at(net: Traced, add: fx.Node, entry: fx.Node) -> _Ways | None:
    """The two ways to an addition, where they are disjoint and of equal shape."""
    a, b = (arg for arg in add.args if isinstance(arg, fx.Node))
    shape = net.costs[a.name].shape
    if a is b or shape is None or shape != net.costs[b.name].shape:
        return None
    ways = {a: between(entry, a), b: between(entry, b)}
    if ways[a] & ways[b]:
        return None
    weights = {end: _layers(net, way) for end, way in ways.items()}
    value, shortcut = (a, b) if weights[a] >= weights[b] else (b, a)
    return _Ways(
        add=add,
        entry=entry,
        value=value,
        shortcut=shortcut,
        branch=ways[value],
        other=ways[shortcut],
        weights=(weights[value], weights[shortcut]),
    )


def _layers(net: Traced, way: set[fx.Node]) -> int:
    """How many nodes of a way have weights."""
    return sum(net.costs[node.name].macs > 0 for node in way)


def _is_block(net: Traced, ways: _Ways) -> bool:
    of_branch, of_shortcut = ways.weights
    if of_branch < 1 or of_shortcut > 1 or (of_shortcut == 1 and of_branch < 2):
        return False
    if _only_normalises(net, ways) or _parallel_layers(net, ways):
        return False
    # one that is computed from constants, as relative positions are, is no branch
    if not any(ways.entry in node.all_input_nodes for node in ways.branch):
        return False
    if _is_read_outside(ways):
        return False
    return all(net.holds_images(node) for node in (ways.entry, ways.value))


def _is_read_outside(ways: _Ways) -> bool:
    """Whether something beside the addition reads a value inside the branch."""
    for node in ways.branch:
        if any(user not in ways.branch and user is not ways.add for user in node.users):
            return True
    return False


def _only_normalises(net: Traced, ways: _Ways) -> bool:
    """Whether a shortcut is a BatchNorm alone.

    It is then one of several parallel layers that a RepVGG merges into one, none of which is the
    shortcut.
    """
    norms = [node for node in ways.other if isinstance(module_of(net.root, node), _BatchNorm)]
    return ways.weights[1] == 0 and bool(norms)


def _parallel_layers(net: Traced, ways: _Ways) -> bool:
    """Whether a branch is a sum of convolutions side by side.

    It is then one convolution in the guise that it has in training.
    """
    readers = [node for node in ways.branch if ways.entry in node.all_input_nodes]
    heavy = [node for node in readers if net.costs[node.name].macs > 0]
    return len(heavy) > 1 and all(is_linear(net.root, node) for node in ways.branch)


def _site(net: Traced, ways: _Ways, kind: str) -> Site:
    order = [node for node in net.graph.nodes if node in ways.branch]
    shape = net.shape(ways.entry)
    axis = len(shape) - 1 if _channels_last(net, order, shape) else 1
    names = tuple(node.name for node in order)
    return Site(
        name=module_path(ways.add, ways.branch, net.root),
        kind=kind,
        units=1,
        macs=net.macs(names),
        entry=ways.entry.name,
        value=ways.value.name,
        branch=names,
        channels=shape[axis],
        positions=tuple(place for place in range(1, len(shape)) if place != axis),
        shortcut=ways.shortcut.name,
        add=ways.add.name,
    )


def _channels_last(net: Traced, branch: Sequence[fx.Node], shape: Sequence[int]) -> bool:
    """Whether the last dimension holds the channels, as in transformers, or the second.

    The first layer says so whose width is that of one of them; in a module that was kept whole, its
    own layers do.
    """
    for part in _parts(net, branch):
        width = _last_width(part)
        if width is not None and width == shape[-1]:
            return True
        if width is None and _second_width(part) == shape[1]:
            return False
    return False


def _parts(net: Traced, branch: Sequence[fx.Node]) -> Iterator[nn.Module]:
    for node in branch:
        module = module_of(net.root, node)
        if module is not None:
            yield from module.modules()


def _last_width(part: Any) -> int | None:
    """The width of a layer that works along the last dimension; None where it does not."""
    if isinstance(part, nn.Linear):
        return part.in_features
    return part.normalized_shape[-1] if isinstance(part, nn.LayerNorm) else None


def _second_width(part: Any) -> Any:
    return getattr(part, "in_channels", getattr(part, "num_features", None))
