"""Find the convolutions that read gated filters: what is closed there is zero for them.

They need not look at it, so that a convolution whose own filters are gated too costs the product of
the two shares that are open.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from gatecli.graph.edit import mask_of
from gatecli.graph.ops import is_decision, module_of, widen
from gatecli.graph.patterns import calls, is_plain, keeps_zero
from gatecli.traced.traced import Traced

__all__ = ["fed_by", "readers_of"]


def readers_of(net: Traced, site: str) -> list[str]:
    """The convolutions, by their nodes' names, that read nothing but a gated site's filters."""
    masked = mask_of(net.graph, site)
    found = [] if masked is None else list(_convolutions(net, masked))
    inside = _insides(net)
    return [node.name for node in found if node.name not in inside]


def fed_by(net: Traced, kind: str) -> dict[str, str]:
    """Convolution -> the gated site of this kind whose filters it reads, all by name."""
    fed: dict[str, str] = {}
    for site in net.gated_by:
        if net.sites[site].kind == kind:
            fed |= dict.fromkeys(readers_of(net, site), site)
    return fed


def _convolutions(net: Traced, masked: fx.Node) -> Iterator[fx.Node]:
    """The convolutions behind a masked value, with nothing between that makes more of zero."""
    todo = [masked]
    while todo:
        value = todo.pop()
        for user in value.users:
            if _looks_at_all(net.root, user):
                yield user
            elif _is_same_width(net.root, user) and keeps_zero(net.root, user, value):
                todo.append(user)


def _is_same_width(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node's channels are its source's, one for one: no decisions, nor among zeros."""
    return node.target is not widen and not is_decision(root, node)


def _looks_at_all(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a convolution each of whose filters reads all channels."""
    conv = module_of(root, node)
    whole = isinstance(conv, nn.Conv2d) and is_plain(conv, nn.Conv2d) and conv.groups == 1
    return whole and calls(node.graph, node) == 1


def _insides(net: Traced) -> set[str]:
    """The nodes that gates decide about without a mask: these are run in ways of their own."""
    inside = set[str]()
    for name in net.gated_by:
        if mask_of(net.graph, name) is None:
            inside.update(net.sites[name].branch)
    return inside
