"""Decide gates for good: take them out, and the branches, units, connections and exits that go with
them. `recompile` and `recount` the network once all are done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from gatecli.graph import branches, convs, narrow, rewrite, slices
from gatecli.graph.ops import is_mask
from gatecli.network import Network
from gatecli.surgery.naming import renamed, reread


def remove_gate(network: Network, site: str) -> None:
    """Let a gated site always run, as it did before it was gated."""
    old = network.sites[site]
    if old.kind == "conv":
        reread(network, *convs.remove_channel_gate(network.graph, old), site)
        network.sites[site] = replace(
            network.sites[site], units=network.channels_of(old.branch[0]), always=0.0
        )
        network.methods.pop(site)
        return
    rewrite.remove_mask(network.graph, old)
    if old.kind == "filter":
        network.sites[site] = replace(old, units=network.channels_of(old.value), places=())
    else:
        network.sites[site] = replace(old, units=1, tail=())
    network.methods.pop(site)


def remove_branches(
    network: Network,
    sites: Collection[str],
    narrowed: Mapping[fx.Node, Sequence[int]] | None = None,
) -> None:
    """Take sites out of the network for good, with their gates.

    `narrowed`: what `keep_units` returned of others, to be done with them.

    Raises SettingError where one cannot be removed, see `why_not_removable`.
    """
    for site in [name for name in sites if network.sites[name].kind == "conv"]:
        keep_units(network, site, [])
    sites = [name for name in sites if name in network.sites]
    folded = {**(narrowed or {})} | {
        node: gone
        for site in sites
        if network.sites[site].kind in ("layer", "filter") and not _is_summand(network, site)
        for node, gone in _nothing_of(network, site).items()
    }
    if folded:
        slices.fold(network, network.graph, network.costs, folded)
    for site in sites:
        network.methods.pop(site, None)
        if site not in network.sites:
            continue
        gone = rewrite.remove_branch(network, network.graph, network.sites.pop(site))
        network.sites = {name: renamed(other, gone) for name, other in network.sites.items()}


def why_not_removable(network: Network, sites: Iterable[str]) -> dict[str, str]:
    """What stands in the way of removing the branches of these sites for good, all together.

    Those left out where nothing does.
    """
    reasons, replaced = dict[str, str](), dict[fx.Node, fx.Node]()
    for name in sites:
        site = network.sites[name]
        if site.kind == "block":
            replaced[rewrite.node_named(network.graph, site.add)] = rewrite.node_named(
                network.graph, site.shortcut
            )
        elif _is_summand(network, name):
            added = rewrite.additions_of_zero(
                network, rewrite.node_named(network.graph, site.value), replaced
            )
            if added is None:
                reasons[name] = "nothing else would be left of the sum that it goes into"
            replaced |= added or {}
        elif (
            site.kind in ("layer", "filter")
            and (
                why := slices.foldable(
                    network, network.graph, network.costs, _nothing_of(network, name)
                )
            )
            is not None
        ):
            reasons[name] = why
    return reasons


def _is_summand(network: Network, site: str) -> bool:
    """Whether a site's value goes into additions alone, so that these do without it."""
    place = network.sites[site]
    return (
        place.kind == "filter"
        and rewrite.additions_of_zero(network, rewrite.node_named(network.graph, place.value))
        is not None
    )


def _nothing_of(network: Network, site: str) -> dict[fx.Node, list[int]]:
    return {_output(network, site): list(range(network.channels_of(network.sites[site].value)))}


def _output(network: Network, site: str) -> fx.Node:
    """What others read of a site: its branch's value, masked where it is gated."""
    value = rewrite.node_named(network.graph, network.sites[site].value)
    while len(value.users) == 1 and is_mask(user := next(iter(value.users))):
        value = user
    return value


def keep_units(
    network: Network,
    site: str,
    kept: Sequence[int],
    round_to: int = 1,
    dynamic: Sequence[int] = (),
    wide: bool = True,
) -> dict[fx.Node, list[int]]:
    """Take all other units of a split site out for good, those in `kept` without a gate from now
    on; those in `dynamic` are decided as before.

    round_to: keep so many more filters, giving zeros, that their number is a multiple of this, as
        fast kernels like it.
    wide: who reads the value gets zeros in the place of what is gone; else they are to lose these
        channels too (gatecli.graph.slices.fold).
    Returns, for those, value -> channels that are gone.
    """
    if network.sites[site].kind == "conv":
        _decide_units(
            network, site, kept, sorted(set(range(network.sites[site].units)) - {*kept, *dynamic})
        )
        return {}
    old = network.sites[site]
    result = narrow.narrow(network, network.graph, network.costs, old, kept, dynamic, round_to)
    network.sites[site] = result.site
    if (
        result.output.name not in network.costs
    ):  # it stands for the value in its full width, until all is done
        network.costs[result.output.name] = network.costs[old.value]
    if not dynamic:
        network.methods.pop(site)
    if not result.gone:
        return {}
    if not wide:
        return {result.output: result.gone}
    last = narrow.widen_again(network.graph, result)
    for name, other in network.sites.items():
        if other.value == old.value and other.kind != "filter":
            network.sites[name] = replace(other, value=last.name, branch=(*other.branch, last.name))
    return {}


def why_stays_wide(network: Network, site: str, kept: Sequence[int]) -> str | None:
    """Why who reads a site's value must go on reading zeros in the place of units not in `kept`.

    None where they can lose these channels too.
    """
    gone = narrow.gone_channels(
        network.sites[site], network.channels_of(network.sites[site].value), kept
    )
    return slices.foldable(network, network.graph, network.costs, {_output(network, site): gone})


def _decide_units(
    network: Network, site: str, opened: Sequence[int], closed: Sequence[int]
) -> None:
    """Let these units of a convolution always run, and these never, for good.

    Its gate decides for the others, and goes where there are none.
    """
    gate: Any = network.site_gates[site]
    before, now, more = convs.decide_channels(
        network, network.graph, network.sites[site], opened, closed
    )
    reread(network, before, now, site, more)
    if len(opened) + len(closed) == network.sites[site].units:
        del network.sites[site], network.methods[site]
        return
    conv: Any = network.get_submodule(site.removesuffix(convs.SUFFIX))
    share = gate.units / (conv.in_channels if gate.of_inputs else conv.out_channels)
    always = 1 - share if gate.of_inputs else 1 - (1 - gate.always) * share
    network.sites[site] = replace(network.sites[site], units=gate.units, always=always)


def fix_connections(
    network: Network, kept: Mapping[str, Sequence[int]], fixed: Mapping[str, nn.Module]
) -> None:
    """Keep only these branches at these sites for good.

    `fixed`: what takes a gate's place, see gatecli.graph.branches.fix. The gates go.
    """
    for site, places in kept.items():
        branches.fix(
            network, network.graph, site, network.boundaries[site], places, fixed.get(site)
        )
        network.methods.pop(site)
        network.sites.pop(site)


def remove_exit(network: Network, site: str) -> None:
    """Take an exit out: nobody leaves there."""
    rewrite.remove_exit(network.graph, network.sites[site])
    network.methods.pop(site)


def end_at_exit(network: Network, site: str) -> None:
    """Let everybody who comes to an exit leave there; what lies behind it goes."""
    rewrite.end_at_exit(
        network, network.graph, network.sites[site], network.site_exits[site].head()
    )
    left = {node.name for node in network.graph.nodes}
    network.methods.pop(site)
    network.sites = {
        name: other
        for name, other in network.sites.items()
        if {other.value, other.add} - {""} <= left and other.entry in left and name != site
    }
    network.methods = {
        name: method for name, method in network.methods.items() if name in network.sites
    }
