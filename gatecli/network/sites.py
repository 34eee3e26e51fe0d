"""The sites of a network: found once, and looked at again whenever the graph has changed."""

from __future__ import annotations

from dataclasses import replace

from gatecli.kinds import registry
from gatecli.kinds.naming import with_unique_names
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["find_sites", "refresh_savings", "refresh_sites"]


def find_sites(net: Traced, rules: int) -> None:
    """Let every kind find its sites; they are listed kind by kind, those in line in order.

    `rules`: the version of the rules to find them by.
    """
    net.rules = rules
    kinds = registry.all_kinds()
    order = {node.name: index for index, node in enumerate(net.graph.nodes)}
    line: list[Site] = []
    for kind in kinds:
        if kind.in_line:
            line += kind.find(net)
            line.sort(key=lambda site: order[site.value])
            net.sites = with_unique_names(line)
    by_kind = {}
    for kind in kinds:
        if not kind.in_line:
            by_kind[kind.name] = kind.find(net)
    for found in by_kind.values():
        net.sites |= {site.name: site for site in found}


def refresh_sites(net: Traced) -> None:
    """Look at every site again, in a network whose nodes have been counted."""
    for kind in registry.all_kinds():
        kind.refresh_all(net)
    for name, site in list(net.sites.items()):
        now = registry.of(site).refresh(net, site)
        if now is None:  # went with what was around it
            del net.sites[name]
            net.gated_by.pop(name, None)
        else:
            net.sites[name] = now
    refresh_savings(net)


def refresh_savings(net: Traced) -> None:
    """Let every site say which nodes it saves."""
    for name, site in net.sites.items():
        savings = registry.of(site).savings(net, site)
        net.sites[name] = replace(site, savings=savings)
