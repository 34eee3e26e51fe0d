"""Filters that share an addition, as one site: channel i of a whole residual stream is unit i.

All convolutions that are added into one stream (in a ResNet those that end a stage's blocks, its
projection, and the stem) have to keep the same channels if any is to go. One gate masks the value
of each of them, so that a closed channel is zero throughout, and prune takes it out of everything
that writes the stream and everything that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import fx, nn

from gatecli.graph import edit, prune_channels
from gatecli.graph.ops import is_add, mask, module_of, widen
from gatecli.graph.patterns import keeps_zero, tail_of
from gatecli.kinds.base import Cut, Gone, Keeping
from gatecli.kinds.units import narrow, widen_again
from gatecli.traced.site import Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = [
    "COUPLED",
    "couple",
    "insert_masks",
    "is_coupled",
    "keep_coupled",
    "outputs_of",
    "refreshed",
    "why_coupled_wide",
]

COUPLED = "coupled"  # the role of such a site
SUFFIX = ".stream"


@dataclass(kw_only=True)
class _Stream:
    """Values that are added up.

    Attributes:
        nodes: All of them, with the additions and what leaves zeros between.
        tails: Of each value that a convolution makes the nodes from that convolution on.
        closed: Whether all is made by convolutions whose filters can be told apart.
    """

    nodes: set[fx.Node] = field(default_factory=set)
    tails: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    closed: bool = True


def couple(net: Traced, kind: str) -> bool:
    """Let the filters that share an addition be one site, in the place of their own sites.

    Streams that cannot lose a channel, as what reads them mixes or pads channels, are left out,
    and those of which filters are gated already.

    Returns:
        Whether there are any.
    """
    for stream in _streams(net):
        if not stream.closed or not _is_free(net, stream):
            continue
        site = _site(net, stream, kind)
        if site.name not in net.sites:
            own = {str(tail[0].target) for tail in stream.tails.values()}
            rest = net.sites.items()
            net.sites = {name: each for name, each in rest if not _is_of(net, each, kind, own)}
            net.sites[site.name] = site
    return any(is_coupled(site) for site in net.sites.values())


def is_coupled(site: Site) -> bool:
    """Whether a site is a whole stream's."""
    return site.role == COUPLED


def _is_of(net: Traced, site: Site, kind: str, convolutions: set[str]) -> bool:
    """Whether a site is that of one of these convolutions' filters alone."""
    return site.kind == kind and str(net.node(site.tail[0]).target) in convolutions


def _streams(net: Traced) -> list[_Stream]:
    """All values that are added up, those that share any together."""
    streams: list[_Stream] = []
    for add in net.graph.nodes:
        if not is_add(add) or len(net.shape(add)) != 4:
            continue
        new = _stream(net, add)
        for other in [each for each in streams if each.nodes & new.nodes]:
            streams.remove(other)
            new.nodes |= other.nodes
            new.tails |= other.tails
            new.closed = new.closed and other.closed
        streams.append(new)
    return streams


def _stream(net: Traced, add: fx.Node) -> _Stream:
    """What an addition's value is the sum of."""
    stream, todo = _Stream(), [add]
    while todo:
        node = todo.pop()
        if node in stream.nodes:
            continue
        stream.nodes.add(node)
        tail = [] if is_add(node) else tail_of(net.root, node)
        source = node.args[0] if node.args else None
        if is_add(node):
            todo += node.all_input_nodes
        elif tail:
            stream.tails[node] = tail
        elif isinstance(source, fx.Node) and _hands_on(net.root, node, source):
            todo.append(source)
        else:
            stream.closed = False
    return stream


def _hands_on(root: nn.Module, node: fx.Node, source: fx.Node) -> bool:
    return node.target is not widen and keeps_zero(root, node, source)


def _is_free(net: Traced, stream: _Stream) -> bool:
    """Whether nothing gates the stream's filters, and it can lose a channel."""
    own = {node.name for tail in stream.tails.values() for node in tail}
    if any(own & set(net.sites[site].tail) for site in net.gated_by):
        return False
    if not all(net.holds_images(value) for value in stream.tails):
        return False
    gone: Gone = {value: [0] for value in stream.tails}
    return prune_channels.foldable(net.root, net.graph, net.costs, gone) is None


def _site(net: Traced, stream: _Stream, kind: str) -> Site:
    tails = [stream.tails[node] for node in net.graph.nodes if node in stream.tails]
    first = tails[0]
    (entry,) = first[0].all_input_nodes
    names: list[str] = []
    for tail in tails:
        names += [node.name for node in tail]
    return Site(
        name=f"{first[0].target}{SUFFIX}",
        kind=kind,
        units=net.channels(first[-1]),
        macs=net.macs(names),
        entry=entry.name,
        value=first[-1].name,
        branch=tuple(names),
        channels=net.channels(entry),
        positions=(2, 3),
        tail=tuple(names),
        role=COUPLED,
    )


def _values(net: Traced, site: Site) -> list[fx.Node]:
    """The last node of each convolution's part of the tail, without its mask."""
    values: list[fx.Node] = []
    for name in site.tail:
        node = net.node(name)
        starts = not values or isinstance(module_of(net.root, node), nn.Conv2d)
        values = [*values, node] if starts else [*values[:-1], node]
    return values


def outputs_of(net: Traced, site: Site) -> list[fx.Node]:
    """What others read of all that writes the stream."""
    return edit.masks_of(net.graph, site.name) or _values(net, site)


def insert_masks(net: Traced, site: Site, gate: nn.Module, sees: str) -> None:
    """Multiply all that writes the stream by what one gate decides."""
    values = _values(net, site)
    edit.insert_mask(net, site, gate, sees=sees, outside=False)
    (first,) = edit.masks_of(net.graph, site.name)
    decision = first.args[1]
    for value in values[1:]:
        with net.graph.inserting_after(value):
            masked = net.graph.call_function(mask, (value, decision))
        for user in [user for user in value.users if user is not masked]:
            user.replace_input_with(value, masked)


def refreshed(net: Traced, site: Site) -> Site | None:
    """A stream after the graph has changed; what wrote it may have gone with its block."""
    tail = tuple(name for name in site.tail if net.has(name))
    if not net.has(site.value, site.entry):
        return None
    is_split = site.name in net.gated_by and site.units < net.channels(site.value)
    units = site.units if site.places or is_split else net.channels(site.value)
    channels = net.channels(site.entry)
    return replace(
        site, tail=tail, branch=tail, units=units, channels=channels, macs=net.macs(tail)
    )


def why_coupled_wide(net: Traced, site: Site, gone: list[int]) -> str | None:
    """Why who reads a stream that loses these channels must read zeros for them."""
    cut = dict.fromkeys(outputs_of(net, site), gone)
    return prune_channels.foldable(net.root, net.graph, net.costs, cut)


def keep_coupled(net: Traced, old: Site, decision: SiteDecision, how: Keeping) -> Cut:
    """Take the dropped channels out of all that writes the stream."""
    result = narrow(net, old, decision, how.round_to)
    net.sites[old.name] = result.site
    if not decision.dynamic:
        edit.remove_mask(net.graph, old.name)
        net.sites[old.name] = replace(result.site, units=len(result.kept), places=())
    outputs = outputs_of(net, result.site)
    if not result.gone or not how.wide:
        gone = dict.fromkeys(outputs, result.gone) if result.gone else {}
        return Cut(gone=gone, padded=result.padded)
    names: dict[str, str] = {}
    for output, value in zip(outputs, _values(net, old), strict=True):
        names[value.name] = widen_again(net.graph, replace(result, output=output)).name
    return Cut(names=names, more=list(names.values()), padded=result.padded)
