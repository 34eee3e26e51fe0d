"""Take some units of a split site out for good.

The layers that make its value lose their channels, and the gate those that are decided for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from gatecli.graph import rewrite, slices
from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import decided_by, module_of, runs_of, spread, take_channels, widen
from gatecli.graph.sites import Site
from gatecli.graph.trace import remove_dead


@dataclass(frozen=True)
class Narrow:
    """The site as it is now; `output`: what others read of it.

    Of its former `width` channels `kept` are left and `gone` are not.
    """

    site: Site
    output: fx.Node
    kept: list[int]
    gone: list[int]
    width: int


def channels_of(site: Site, width: int, units: Sequence[int]) -> list[int]:
    """The channels, of the value's `width`, that these units are."""
    if site.places:
        return [site.places[unit] for unit in units]
    each = width // site.units
    return [unit * each + index for unit in units for index in range(each)]


def gone_channels(site: Site, width: int, kept: Sequence[int]) -> list[int]:
    """The channels of the units that are not in `kept`."""
    return channels_of(site, width, [unit for unit in range(site.units) if unit not in set(kept)])


def narrow(
    root: nn.Module,
    graph: fx.Graph,
    costs: Mapping[str, NodeCost],
    site: Site,
    kept: Sequence[int],
    dynamic: Sequence[int],
    round_to: int = 1,
) -> Narrow:
    """Take the units that are neither in `kept` nor in `dynamic` out of what makes the site's
    value, and let its gate decide `dynamic` alone.

    round_to: keep so many more channels, giving zeros, that their number is a multiple of this.
    """
    shape = costs[site.value].shape
    assert shape is not None
    width, value = shape[1], rewrite.node_named(graph, site.value)
    tail = [rewrite.node_named(graph, name) for name in site.tail]
    out = gone_channels(site, width, [*kept, *dynamic])
    filters = sorted(set(range(width)) - set(out))
    made = any(isinstance(module_of(root, node), nn.Conv2d) for node in tail)
    silent = out[: -len(filters) % round_to] if made and slices.stays_zero(root, tail) else []
    places = sorted([*filters, *silent])
    if made:
        slices.keep_outputs(root, tail, places, silent)
    elif out:
        value = _taken(graph, value, places)
        site = replace(site, value=value.name, branch=(value.name,), tail=(value.name,))
    masked = rewrite.mask_of(graph, site.name)
    assert masked is not None
    if dynamic:
        now = [places.index(channel) for channel in channels_of(site, width, dynamic)]
        site = _narrow_gate(root, graph, site, masked, dynamic, now, len(places))
    else:
        rewrite.remove_mask(graph, site)
        site = (
            replace(site, units=len(places), places=())
            if site.kind == "filter"
            else replace(site, units=1, tail=())
        )
    return Narrow(
        site, masked if dynamic else value, places, sorted(set(range(width)) - set(places)), width
    )


def _taken(graph: fx.Graph, value: fx.Node, channels: Sequence[int]) -> fx.Node:
    """Let who reads a value that no convolution has made read these channels of it.

    Returns what they read.
    """
    with graph.inserting_after(value):
        taken = graph.call_function(take_channels, (value, tuple(channels)))
    value.replace_all_uses_with(taken, delete_user_cb=lambda user: user is not taken)
    return taken


def _narrow_gate(
    root: nn.Module,
    graph: fx.Graph,
    site: Site,
    masked: fx.Node,
    dynamic: Sequence[int],
    places: list[int],
    width: int,
) -> Site:
    """Let the gate decide the units `dynamic` alone, which are at `places` of the channels that are
    left.
    """
    decision = decided_by(masked)
    root.get_submodule(str(decision.target)).keep(dynamic)  # type: ignore[operator]
    everything = len(places) == width
    if everything:
        masked.args = (masked.args[0], decision)
    else:
        with graph.inserting_before(masked):
            masked.args = (
                masked.args[0],
                graph.call_function(spread, (decision, tuple(places), width)),
            )
    remove_dead(graph)
    return replace(site, units=len(dynamic), places=() if everything else tuple(places))


def widen_again(graph: fx.Graph, result: Narrow) -> fx.Node:
    """Let who reads a value that has lost channels read zeros in their place.

    Returns the wide value.
    """
    users = list(result.output.users)
    if len(users) == 1 and users[0].target is widen:  # it has lost some before
        _, runs, width = users[0].args
        spans: Any = runs
        before = [channel for first, end in spans for channel in range(first, end)]
        users[0].args = (
            result.output,
            tuple(runs_of([before[channel] for channel in result.kept])),
            width,
        )
        return users[0]
    return rewrite.insert_widen(graph, result.output, result.kept, result.width)
