"""Sites name nodes of the graph; these change when a gate comes or goes."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gatecli.network import Network


def reread(network: Network, before: str, now: str, but: str, more: Sequence[str] = ()) -> None:
    """Let all sites `but` one name the node `now` where they named `before`; `more` nodes compute in those that hold its convolution."""
    conv, left = network.sites[but].branch[0], {node.name for node in network.graph.nodes}
    for name, site in network.sites.items():
        if name != but:
            entry, value, shortcut = (now if node == before else node for node in (site.entry, site.value, site.shortcut))
            branch = tuple(node for node in (*site.branch, *more) if node in left) if conv in site.branch else site.branch
            network.sites[name] = replace(site, entry=entry, value=value, shortcut=shortcut, branch=branch)
