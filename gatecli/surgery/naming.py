"""Sites name nodes of the graph; these change when a gate comes or goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gatecli.graph.sites import Site
from gatecli.network import Network


def renamed(site: Site, names: Mapping[str, str]) -> Site:
    """The site with its entry, value and shortcut called as `names` has them."""
    entry, value, shortcut = (
        names.get(node, node) for node in (site.entry, site.value, site.shortcut)
    )
    return replace(site, entry=entry, value=value, shortcut=shortcut)


def reread(network: Network, before: str, now: str, but: str, more: Sequence[str] = ()) -> None:
    """Let all sites `but` one name the node `now` where they named `before`.

    `more` nodes compute in those that hold its convolution.
    """
    conv, left = network.sites[but].branch[0], {node.name for node in network.graph.nodes}
    for name, site in network.sites.items():
        if name != but:
            branch = (
                tuple(node for node in (*site.branch, *more) if node in left)
                if conv in site.branch
                else site.branch
            )
            network.sites[name] = replace(renamed(site, {before: now}), branch=branch)
