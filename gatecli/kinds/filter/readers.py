"""Find the convolutions that read gated filters: what is closed there is zero for them.

They need not look at it, so that a convolution whose own filters are gated too costs the product of
the two shares that are open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx, nn

from gatecli.graph.edit import mask_of, masks_of
from gatecli.graph.ops import is_add, is_decision, widen
from gatecli.graph.patterns import keeps_zero, reads_all_channels
from gatecli.traced.traced import Traced

__all__ = ["fed_by", "readers_of"]


def readers_of(net: Traced, site: str) -> list[str]:
    """The convolutions, by their nodes' names, that read nothing but a gated site's filters."""
    found = list(_convolutions(net, masks_of(net.graph, site)))
    inside = _insides(net, net.sites[site].kind)
    return [node.name for node in found if node.name not in inside]


def fed_by(net: Traced, kind: str) -> dict[str, str]:
    """Convolution -> the gated site of this kind whose filters it reads, all by name."""
    fed: dict[str, str] = {}
    for site in net.gated_by:
        if net.sites[site].kind == kind:
            fed |= dict.fromkeys(readers_of(net, site), site)
    return fed


def _convolutions(net: Traced, masks: Sequence[fx.Node]) -> Iterator[fx.Node]:
    """The convolutions behind masked values, with nothing between that makes more of zero.

    A sum is zero where all of its parts are.
    """
    zeros = set(masks)
    for node in net.graph.nodes if masks else ():
        found = [source for source in node.all_input_nodes if source in zeros]
        if not found:
            continue
        if reads_all_channels(net.root, node):
            yield node
        elif _stays_zero(net.root, node, found):
            zeros.add(node)


def _stays_zero(root: nn.Module, node: fx.Node, found: Sequence[fx.Node]) -> bool:
    """Whether a node's closed channels are zero as those of what it reads, `found`, are."""
    if is_add(node):
        return len(found) == len(node.all_input_nodes)
    return _is_same_width(root, node) and keeps_zero(root, node, found[0])


def _is_same_width(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node's channels are its source's, one for one: no decisions, nor among zeros."""
    return node.target is not widen and not is_decision(root, node)


def _insides(net: Traced, kind: str) -> set[str]:
    """The nodes that are run in ways of their own.

    Those that gates decide about without a mask, and the layers that another kind's units are made
    of, one by one.
    """
    inside = set[str]()
    for name in net.gated_by:
        site = net.sites[name]
        if mask_of(net.graph, name) is None:
            inside.update(site.branch)
        elif site.kind != kind and site.units > 1:
            inside.update(site.tail)
    return inside
