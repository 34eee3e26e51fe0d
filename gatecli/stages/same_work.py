"""Sites of a network that do the same work, of which one has to be timed.

Most networks repeat a block many times: ResNet-50's sixteen are of eight forms, the twenty-four
of a ViT of two. Two sites are of one form where the nodes that they save call the same things in
the same order on values of the same sizes, and their gates look alike. Only the weights differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import fx
from torch.fx.node import map_arg

from gatecli.network import Network, surgery
from gatecli.traced.traced import Traced

__all__ = ["first_of_form"]


def first_of_form(network: Network, sites: Sequence[str]) -> dict[str, str]:
    """Each of these sites -> the first of them that does the same work."""
    firsts: dict[Hashable, str] = {}
    return {site: firsts.setdefault(_form(network, site), site) for site in sites}


def _form(network: Network, name: str) -> Hashable:
    """What two sites have in common that take the same time."""
    net, site = network.traced, network.sites[name]
    saved = {saving.node: saving for saving in site.savings}
    own = [node for node in net.graph.nodes if node.name in saved]
    places = {node: place for place, node in enumerate(own)}
    work = [
        (
            _called(net, node),
            net.costs[node.name].shape,
            _inputs(net, node, places),
            (saved[node.name].share, saved[node.name].per_unit),
        )
        for node in own
    ]
    about = (site.kind, site.units, site.channels, site.positions, site.always, site.places)
    removable = surgery.why_not_removable(net, [name]) is None
    return about, repr(network.site_gates[name]), removable, tuple(work)


def _called(net: Traced, node: fx.Node) -> str:
    """What a node calls, or the size of what it gets."""
    if node.op == "call_module":
        return repr(net.module(node))
    if node.op == "get_attr":
        return str(net.costs[node.name].shape)
    return str(node.target)


def _inputs(net: Traced, node: fx.Node, places: dict[fx.Node, int]) -> str:
    """Its arguments: the site's own nodes by their place, others by their size."""

    def said(each: fx.Node) -> Any:
        known = net.costs.get(each.name)
        return f"#{places[each]}" if each in places else f"{known and known.shape}"

    return str(map_arg((node.args, node.kwargs), said))
