"""Sites name nodes of the graph, which change when a decision is put in or taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gatecli.traced.site import renamed
from gatecli.traced.traced import Traced

__all__ = ["repair"]


def repair(net: Traced, names: Mapping[str, str], *, but: str, more: Sequence[str] = ()) -> None:
    """Let all sites `but` one name the nodes that have taken others' places.

    Args:
        net: The network.
        names: Node that is gone, or that others no longer read -> what they read now.
        but: A site that names the nodes as they are.
        more: New nodes, which compute in all sites that hold the first node of `but`.
    """
    first = net.sites[but].branch[0]
    for name, site in net.sites.items():
        if name == but:
            continue
        branch = site.branch
        if first in branch:
            branch = tuple(node for node in (*branch, *more) if net.has(node))
        net.sites[name] = replace(renamed(site, names), branch=branch)
