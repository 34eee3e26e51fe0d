"""Put gates on the channels of a convolution, and take channels out.

A gated convolution with the BatchNorm behind it means, on the graph (see gatecli.kinds.conv.ops),

    base = base_path(x, weight)                 # a share of the input channels alone
    z    = gates.SITE(base)                     # or of x; 1 = the others are needed too
    out  = choose(norm(conv(x)), gates.SITE.base(base), z, rows)

where the gate decides for output channels, and, where it decides for input channels,

    out  = norm(conv(keep_inputs(x, gates.SITE(x))))

Reference: Hua et al., Channel gating neural networks, 2019.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.graph.edit import place
from gatecli.graph.ops import module_of, take_channels
from gatecli.graph.prune_channels import cut_norm, keep_entries, keep_outputs
from gatecli.graph.runs import others
from gatecli.graph.trace import remove_dead
from gatecli.kinds.conv.find import SUFFIX
from gatecli.kinds.conv.ops import (
    BasePath,
    Channels,
    Parts,
    base_parts,
    base_path,
    base_weight,
    choose,
    geometry_of,
    keep_inputs,
    keep_rows,
    merge,
    places_of,
)
from gatecli.traced.site import Site, SiteDecision
from gatecli.traced.traced import Traced

__all__ = [
    "Change",
    "base_of",
    "decide_channels",
    "gated_nodes",
    "insert_channel_gate",
    "remove_channel_gate",
]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What others have to read now.

    Attributes:
        before: The node that they read.
        now: The node that has taken its place.
        more: New nodes that compute what the convolution did.
    """

    before: str
    now: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Gated:
    """A gated convolution's nodes and modules."""

    conv: fx.Node
    norm: fx.Node
    chosen: fx.Node | None
    module: Any
    gate: Any


def insert_channel_gate(net: Traced, site: Site, gate: Any) -> Change:
    """Gate a convolution's channels; the gate becomes `gates.SITE`."""
    graph, path = net.graph, f"gates.{site.name}"
    place(net.root, path, gate)
    conv, norm = (net.node(name) for name in site.branch)
    module: Any = module_of(net.root, conv)
    (x,) = conv.all_input_nodes
    if gate.of_inputs:
        with graph.inserting_before(conv):
            z = graph.call_module(path, (x,))
            conv.args = (graph.call_function(keep_inputs, (x, z, gate.order)),)
        return Change(before=norm.name, now=norm.name)
    parts = base_parts(module.out_channels, gate.order, gate.groups)
    rows = tuple(range(module.out_channels))
    with graph.inserting_before(norm.next):
        weight = graph.create_node("get_attr", f"{conv.target}.weight")
        inputs = (x, weight, parts, geometry_of(module))
        base = graph.call_function(base_path, inputs)
        z = graph.call_module(path, (x if gate.reads_input else base,))
        low = graph.call_module(f"{path}.base", (base,))
        chosen = graph.call_function(choose, (norm, low, z, rows))
    norm.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen)
    return Change(before=norm.name, now=chosen.name)


def remove_channel_gate(net: Traced, site: Site) -> Change:
    """Let the convolution run in full, as it did before it was gated."""
    conv, norm, chosen = gated_nodes(net, site)
    if chosen is None:
        conv.args = (conv.all_input_nodes[0].all_input_nodes[0],)
        chosen = norm
    else:
        chosen.replace_all_uses_with(norm)
    remove_dead(net.graph)
    return Change(before=chosen.name, now=norm.name)


def gated_nodes(net: Traced, site: Site) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """A gated convolution, its BatchNorm, and what chooses between this and the base path.

    The last is None where input channels are gated.
    """
    conv, norm = (net.node(name) for name in site.branch)
    return conv, norm, next((user for user in norm.users if user.target is choose), None)


# --- pruning ---


def decide_channels(net: Traced, site: Site, decision: SiteDecision) -> Change:
    """Let units always run, and others never, whose weights go; the gate decides for the rest."""
    gate: Any = net.root.get_submodule(f"gates.{site.name}")
    conv, norm, chosen = gated_nodes(net, site)
    module = module_of(net.root, conv)
    gated = _Gated(conv=conv, norm=norm, chosen=chosen, module=module, gate=gate)
    change = _decide_inputs if gate.of_inputs else _decide_outputs
    result = change(net, site, gated, decision)
    if decision.dynamic:
        gate.keep(decision.dynamic)
    remove_dead(net.graph)
    return result


def _decide_inputs(net: Traced, site: Site, gated: _Gated, decision: SiteDecision) -> Change:
    """Let the convolution read what is still needed alone, and have no weights for the rest."""
    module, gate, graph = gated.module, gated.gate, net.graph
    (masked,) = gated.conv.all_input_nodes
    units = others(module.in_channels, gate.order)
    kept = others(module.in_channels, [units[unit] for unit in decision.drop])
    always = sorted([*gate.order, *(units[unit] for unit in decision.keep)])
    gate.order = places_of(always, kept)
    keep_entries(module, ("weight",), torch.tensor(kept), dim=1)
    module.in_channels = len(kept)
    with graph.inserting_before(gated.conv):
        inside = graph.call_function(take_channels, (masked.args[0], kept))
        if decision.dynamic:
            z = graph.call_module(f"gates.{site.name}", (inside,))
            inside = graph.call_function(keep_inputs, (inside, z, gate.order))
    gated.conv.args = (inside,)
    return Change(before=gated.norm.name, now=gated.norm.name)


def _decide_outputs(net: Traced, site: Site, gated: _Gated, decision: SiteDecision) -> Change:
    """Split the convolution: what never opens becomes a smaller one, of the base path alone."""
    conv, norm, chosen, module = gated.conv, gated.norm, gated.chosen, gated.module
    assert chosen is not None
    base, before = base_of(conv), chosen.name
    parts: Parts = base.args[2]
    rows: Any = chosen.args[3]
    gone = tuple(rows[unit] for unit in decision.drop)
    kept = others(module.out_channels, gone)
    if not kept and len({len(part) for part, _ in parts}) == 1:
        _become_base(net, gated, keep_rows(parts, {row: row for row in gone}), parts)
        chosen.replace_all_uses_with(norm)
        return Change(before=before, now=norm.name)
    now, more = chosen if decision.dynamic else norm, tuple[str, ...]()
    if gone:
        low = _base_apart(net, site, gated, decision.drop, keep_rows(parts, {r: r for r in gone}))
        now, more = _merged(net, now, low, kept), (low.name,)
    if now is not chosen:
        chosen.replace_all_uses_with(now, delete_user_cb=lambda user: user is not now)
    keep_outputs(net.root, [conv, norm], kept)
    if decision.dynamic:
        _renumber(net, gated, decision.dynamic, kept)
    return Change(before=before, now=now.name, more=more)


def _base_apart(
    net: Traced, site: Site, gated: _Gated, closed: Sequence[int], never: Parts
) -> fx.Node:
    """The base path of channels that never open, as a smaller convolution of its own."""
    path = _free(net.root, f"gates.{site.name.removesuffix(SUFFIX)}.closed")
    weight = base_weight(gated.module.weight.detach(), never)
    norm = cut_norm(gated.gate.base, closed)
    place(net.root, path, BasePath(weight, norm, gated.module, never))
    (x,) = gated.conv.all_input_nodes
    assert gated.chosen is not None
    with net.graph.inserting_before(gated.chosen.next):
        return net.graph.call_module(path, (x,))


def _merged(net: Traced, now: fx.Node, low: fx.Node, kept: Channels) -> fx.Node:
    """The channels `kept` of a value, and what never opens in the other places."""
    if not kept:
        return low
    with net.graph.inserting_after(low):
        return net.graph.call_function(merge, (now, low, kept))


def _renumber(net: Traced, gated: _Gated, dynamic: Sequence[int], kept: Channels) -> None:
    """Let the gate, and what it chooses between, have the channels' new numbers."""
    base, chosen, gate = base_of(gated.conv), gated.chosen, gated.gate
    assert chosen is not None
    old_rows: Any = chosen.args[3]
    numbers = {row: number for number, row in enumerate(kept)}
    parts = keep_rows(base.args[2], numbers)
    rows = tuple(numbers[old_rows[unit]] for unit in dynamic)
    base.update_arg(2, parts)
    chosen.update_arg(3, rows)
    with net.graph.inserting_after(base):
        part = net.graph.call_function(take_channels, (base, rows))
    readers: Any = chosen.args[1:2] if gate.reads_input else chosen.args[1:3]
    for reader in readers:
        reader.args = (part,)


def base_of(conv: fx.Node) -> Any:
    """The base path of a gated convolution."""
    for user in conv.all_input_nodes[0].users:
        weight: Any = user.args[1] if user.target is base_path else None
        if weight is not None and weight.target == f"{conv.target}.weight":
            return user
    raise AssertionError(f"`{conv.target}` has no base path")


def _free(root: nn.Module, path: str) -> str:
    """The path, or where something is there, the first with a number behind it that is free."""
    names = {name for name, _ in root.named_modules()}
    free = (f"{path}{number or ''}" for number in itertools.count())
    return next(name for name in free if name not in names)


def _become_base(net: Traced, gated: _Gated, never: Parts, parts: Parts) -> None:
    """Let a convolution, and the BatchNorm behind it, compute the base path."""
    conv, graph = gated.module, net.graph
    (x,) = gated.conv.all_input_nodes
    weight: Tensor = base_weight(conv.weight.detach(), never)
    conv.weight, conv.bias = nn.Parameter(weight, conv.weight.requires_grad), None
    conv.in_channels = len(parts) * len(parts[0][1])
    conv.groups = len(parts)
    norm, base = module_of(net.root, gated.norm), gated.gate.base
    for name, tensor in [*base.named_parameters(), *base.named_buffers()]:
        setattr(norm, name, tensor)
    inputs: list[int] = []
    for _, channels in parts:
        inputs += channels
    with graph.inserting_before(gated.conv):
        gated.conv.args = (graph.call_function(take_channels, (x, tuple(inputs))),)
