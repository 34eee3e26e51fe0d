"""Take some units of a masked site out for good.

The layers that make its value lose their channels, and the gate those that are decided for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from gatecli.errors import SettingError
from gatecli.graph import edit, prune_channels
from gatecli.graph.ops import decided_by, module_of, spread, take_channels, widen
from gatecli.graph.patterns import tail_of
from gatecli.graph.runs import part_of
from gatecli.graph.trace import remove_dead
from gatecli.traced.site import Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = [
    "Narrow",
    "channels_of",
    "gone_channels",
    "narrow",
    "narrow_gate",
    "split_tail",
    "widen_again",
]


def split_tail(net: Traced, site: Site, units: int) -> Site:
    """The site in so many units, each a part of the filters that it ends in.

    Raises:
        SettingError: It does not end in filters that can be told apart, or not in so many parts.
    """
    tail = tail_of(net.root, net.node(site.value))
    if not tail:
        raise SettingError(
            f"`{site.name}` cannot be split into {units} units: it does not end in a convolution"
            " whose filters can be told apart; leave it out with --exclude"
        )
    width = net.channels(site.value)
    if width % units:
        raise SettingError(
            f"expected the number of units to divide the {width} filters of `{site.name}`,"
            f" but got {units}"
        )
    return replace(site, units=units, tail=tuple(node.name for node in tail))


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """A site that has lost units.

    Attributes:
        site: As it is now.
        output: What others read of it.
        kept: Of the former channels those that are left.
        gone: Those that are not.
        width: How many there were.
        padded: How many of `kept` give zeros.
    """

    site: Site
    output: fx.Node
    kept: list[int]
    gone: list[int]
    width: int
    padded: int


def channels_of(site: Site, width: int, units: Sequence[int]) -> list[int]:
    """The channels, of the value's `width`, that these units are."""
    every = site.places or range(width)
    each = len(every) // site.units
    channels: list[int] = []
    for unit in units:
        channels += every[unit * each : (unit + 1) * each]
    return channels


def gone_channels(site: Site, width: int, kept: Sequence[int]) -> list[int]:
    """The channels of the units that are not in `kept`."""
    stays = set(kept)
    return channels_of(site, width, [unit for unit in range(site.units) if unit not in stays])


def narrow(net: Traced, site: Site, decision: SiteDecision, round_to: int = 1) -> Narrow:
    """Take the units that are dropped out of what makes the site's value.

    Its mask stays, and its gate decides the dynamic ones alone.

    Args:
        net: The network.
        site: A site with a mask.
        decision: Which units stay.
        round_to: Keep so many more channels, giving zeros, that they are a multiple of this.
    """
    width, value = net.channels(site.value), net.node(site.value)
    tail = [net.node(name) for name in site.tail]
    out = gone_channels(site, width, decision.left)
    stays = sorted(set(range(width)) - set(out))
    made = (nn.Conv2d, nn.Linear)
    is_made = any(isinstance(module_of(net.root, node), made) for node in tail)
    silent: list[int] = []
    if is_made and prune_channels.stays_zero(net.root, tail):
        silent = out[: -len(stays) % round_to]
    places = sorted([*stays, *silent])
    if is_made:
        prune_channels.keep_outputs(net.root, tail, places, silent)
    elif out:
        value = _taken(net.graph, value, places)
        site = replace(site, value=value.name, branch=(value.name,), tail=(value.name,))
    output = value
    if decision.dynamic:
        masks = edit.masks_of(net.graph, site.name)
        output = masks[0]
        now = [places.index(channel) for channel in channels_of(site, width, decision.dynamic)]
        site = narrow_gate(net, site, masks, decision.dynamic, now, len(places))
    gone = sorted(set(range(width)) - set(places))
    return Narrow(site=site, output=output, kept=places, gone=gone, width=width, padded=len(silent))


def _taken(graph: fx.Graph, value: fx.Node, channels: Sequence[int]) -> fx.Node:
    """Let who reads a value that no convolution has made read these channels of it.

    Returns:
        What they read.
    """
    with graph.inserting_after(value):
        taken = graph.call_function(take_channels, (value, tuple(channels)))
    value.replace_all_uses_with(taken, delete_user_cb=lambda user: user is not taken)
    return taken


def narrow_gate(
    net: Traced,
    site: Site,
    masks: Sequence[fx.Node],
    dynamic: Sequence[int],
    places: list[int],
    width: int,
) -> Site:
    """Let the gate decide the units `dynamic` alone, at `places` of the channels that are left."""
    decision = decided_by(masks[0])
    gate: Any = net.root.get_submodule(str(decision.target))
    gate.keep(dynamic)
    whole = decision
    if len(places) < width:
        with net.graph.inserting_before(masks[0]):
            whole = net.graph.call_function(spread, (decision, tuple(places), width))
    for masked in masks:
        masked.args = (masked.args[0], whole)
    remove_dead(net.graph)
    left = tuple(places) if len(places) < width else ()
    return replace(site, units=len(dynamic), places=left)


def widen_again(graph: fx.Graph, result: Narrow, axis: int = 1) -> fx.Node:
    """Let who reads a value that has lost channels, dimension `axis`, read zeros in their place.

    Returns:
        The wide value.
    """
    users = list(result.output.users)
    if len(users) != 1 or users[0].target is not widen:
        return edit.insert_widen(graph, result.output, result.kept, result.width, axis)
    wide = users[0]  # it has lost some before
    args: Any = wide.args
    wide.args = (result.output, part_of(args[1], result.kept), args[2])
    return wide
