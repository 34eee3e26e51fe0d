"""Put gates, connections between branches, and exits into a network.

`recompile` and `recount` it once all are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gatecli.errors import SettingError
from gatecli.gates import Exit, Gate
from gatecli.graph import branches, convs, rewrite, slices
from gatecli.graph.exits import exits_after
from gatecli.network import Network
from gatecli.surgery.naming import reread


def insert_gate(network: Network, site: str, gate: Gate, method: str, sees: str = "") -> None:
    """Gate a site; `recompile` and `recount` once all are in.

    The gate sees the site's entry, or the node that `sees` names.

    Raises SettingError where it carries a gate already, or cannot be split into as many units as
    the gate has.
    """
    if site in network.methods:
        raise SettingError(
            f"expected `{site}` to carry no gate, but {network.methods[site]} gates it"
        )
    _check_not_nested(network, site)
    if network.sites[site].kind == "conv":
        reread(
            network,
            *convs.insert_channel_gate(network, network.graph, network.sites[site], gate),
            site,
        )
        always: Any = gate.always
        network.sites[site] = replace(network.sites[site], units=gate.units, always=always)
    else:
        if gate.units > 1 and not network.sites[site].tail:
            _split(network, site, gate.units)
        rewrite.insert_mask(network, network.graph, network.sites[site], gate, sees)
    network.methods[site] = method


def _check_not_nested(network: Network, name: str) -> None:
    """Gates within gated branches would decide for some of the samples alone, but for those of
    filters, which are told. Raises SettingError.
    """
    branch = set(network.sites[name].branch)
    for other in network.methods.keys() - {name}:
        kinds = {network.sites[name].kind, network.sites[other].kind}
        told = len(kinds) == 2 and "filter" in kinds and kinds <= {"filter", "block", "layer"}
        if branch & set(network.sites[other].branch) and not told:
            raise SettingError(
                f"`{name}` and `{other}`, which {network.methods[other]} gates, lie one within the"
                f" other: prune first, or leave it out with --exclude '{name}'"
            )


def _split(network: Network, name: str, units: int) -> None:
    site = network.sites[name]
    tail, shape = (
        slices.tail_of(network, rewrite.node_named(network.graph, site.value)),
        network.costs[site.value].shape,
    )
    if not tail or shape is None:
        raise SettingError(
            f"`{name}` cannot be split into {units} units: its branch does not end in a convolution"
            " whose filters can be told apart; leave it out with --exclude"
        )
    if shape[1] % units:
        raise SettingError(
            f"expected the number of units to divide the {shape[1]} filters of `{name}`, but got"
            f" {units}"
        )
    network.sites[name] = replace(site, units=units, tail=tuple(node.name for node in tail))


def insert_connections(network: Network, site: str, gate: Gate, method: str, streams: bool) -> None:
    """Let each branch of the modules behind a boundary read what `gate` says, in `streams` of their
    own; else all read all, in one stream.

    Raises SettingError where the site carries a gate already, or a gate or an exit stands in the
    way.
    """
    boundary = network.boundaries[site]
    taken = {
        name: method
        for name, method in network.methods.items()
        if name in (boundary.module.block, boundary.reader.block, site)
    }
    if streams:
        taken |= _in_the_way(network, boundary)
    if taken:
        name, other = next(iter(taken.items()))
        is_exit = network.sites[name].kind == "exit"
        what, did, way_out = (
            ("have no exit", "has put one there", f"--exclude '{site}'")
            if is_exit
            else ("carry no gate", "gates it", "--exclude")
        )
        raise SettingError(
            f"expected `{name}` to {what}, but {other} {did}: prune first, or leave it out with"
            f" {way_out}"
        )
    if streams:
        _drop_sites_with_streams(network, boundary)
        branches.insert_connections(network, network.graph, site, boundary, gate)
    else:
        branches.insert_mask_on_branches(network, network.graph, site, boundary, gate)
    network.methods[site] = method


def _in_the_way(network: Network, boundary: branches.Boundary) -> dict[str, str]:
    """The gated sites, and the exits, that cannot stand where there are streams."""
    layers, values = branches.with_streams(boundary)
    return {
        name: method
        for name, method in network.methods.items()
        if layers & set(network.sites[name].branch)
        or (network.sites[name].kind == "exit" and network.sites[name].entry in values)
    }


def _drop_sites_with_streams(network: Network, boundary: branches.Boundary) -> None:
    """A block that has streams can no more be skipped as a whole, nor can its convolutions'
    channels be told apart, nor does an exit read them.
    """
    layers, values = branches.with_streams(boundary)
    for name, site in list(network.sites.items()):
        inside = site.kind in ("filter", "conv") and layers & set(site.branch)
        if (
            inside
            or name in (boundary.module.block, boundary.reader.block)
            or (site.kind == "exit" and site.entry in values)
        ):
            del network.sites[name]


def insert_exit(network: Network, site: str, exit_: Exit, method: str) -> None:
    """Put an exit in; `recompile` and `recount` once all are in.

    Raises SettingError where the site has one already.
    """
    if site in network.methods:
        raise SettingError(
            f"expected `{site}` to have no exit, but {network.methods[site]} has put one there"
        )
    rewrite.insert_exit(network, network.graph, network.sites[site], exit_)
    network.methods[site] = method


def place_exits(network: Network, after: Sequence[str]) -> None:
    """Let the exit sites be those after these blocks or layers.

    Raises SettingError, also where exits are in use already.
    """
    used = [name for name in network.methods if network.sites[name].kind == "exit"]
    others = {name: site for name, site in network.sites.items() if site.kind != "exit"}
    found = exits_after(
        network,
        network.graph,
        network.costs,
        {name: site for name, site in others.items() if site.kind in ("block", "layer")},
        after,
    )
    if used:
        raise SettingError(
            f"the network has exits already ({', '.join(used)}): their places cannot change"
        )
    network.sites = {**others, **{site.name: site for site in found}}
