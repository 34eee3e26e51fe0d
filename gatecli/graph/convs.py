"""Find convolutions whose channels can be gated one by one, put such gates in, and take channels
out.

A gated convolution with the BatchNorm behind it means, on the graph (see gatecli.graph.channels),

    base = base_path(x, weight)                 # a share of the input channels alone
    z    = gates.SITE(base)                     # or of x; 1 = the other input channels are needed
        too
    out  = choose(norm(conv(x)), gates.SITE.base(base), z, rows)

where the gate decides for output channels, and, where it decides for input channels,

    out  = norm(conv(keep_inputs(x, gates.SITE(x))))

Source: Hua et al., Channel gating neural networks, 2019.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.graph.channels import (
    BasePath,
    Parts,
    base_parts,
    base_path,
    base_weight,
    choose,
    keep_inputs,
    keep_rows,
    merge,
    others,
    places_of,
    rows_of,
)
from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import module_of, take_channels
from gatecli.graph.rewrite import node_named, place
from gatecli.graph.sites import Site
from gatecli.graph.slices import calls, is_plain, keep_entries, keep_outputs
from gatecli.graph.trace import remove_dead

SUFFIX = ".channels"


def find_convs(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]) -> list[Site]:
    """All convolutions whose channels can be gated, in the order of execution."""
    refused = refused_convs(root, graph)
    nodes = [
        node
        for node in graph.nodes
        if isinstance(module_of(root, node), nn.Conv2d) and _name(node) not in refused
    ]
    return [_site(root, node, costs[node.name].macs) for node in nodes]


def _site(root: nn.Module, node: fx.Node, macs: int) -> Site:
    conv: Any = module_of(root, node)
    (norm,), (entry,), units = node.users, node.all_input_nodes, conv.out_channels
    return Site(
        _name(node),
        "conv",
        units,
        macs,
        entry.name,
        norm.name,
        "",
        "",
        (node.name, norm.name),
        conv.in_channels,
        (2, 3),
        macs // units,
    )


def _name(node: fx.Node) -> str:
    return f"{node.target}{SUFFIX}"


def refused_convs(root: nn.Module, graph: fx.Graph) -> dict[str, str]:
    """The convolutions whose channels cannot be gated.

    The name of the site that they are not -> why.
    """
    found, deep = {}, set[fx.Node]()
    for node in graph.nodes:
        conv, inside = module_of(root, node), any(source in deep for source in node.all_input_nodes)
        if isinstance(conv, nn.Conv2d):
            why = (
                _why_not(root, node, conv) if inside else "reads the image (a stem is never gated)"
            )
            if why is not None:
                found[_name(node)] = why
        if inside or isinstance(conv, nn.Conv2d):
            deep.add(node)
    return found


def _why_not(root: nn.Module, node: fx.Node, conv: nn.Conv2d) -> str | None:
    if not is_plain(conv, nn.Conv2d) or conv.padding_mode != "zeros":
        return "is a convolution of its own kind"
    if conv.groups != 1:
        return (
            "is depthwise"
            if conv.groups == conv.in_channels
            else f"convolves in {conv.groups} groups"
        )
    if calls(node.graph, node) > 1:
        return "is called more than once"
    norms = [(user, module_of(root, user)) for user in node.users]
    alone = (
        len(norms) == 1
        and isinstance(norms[0][1], nn.BatchNorm2d)
        and is_plain(norms[0][1], nn.BatchNorm2d)
        and norms[0][1].running_mean is not None
    )
    return (
        None
        if alone and calls(node.graph, norms[0][0]) == 1
        else "has no BatchNorm behind it that alone reads it"
    )


# --- gating ---


def insert_channel_gate(root: nn.Module, graph: fx.Graph, site: Site, gate: Any) -> tuple[str, str]:
    """Gate a convolution's channels; the gate becomes `gates.SITE`.

    Returns the names of what its readers read before, and read now.
    """
    path = f"gates.{site.name}"
    place(root, path, gate)
    conv, norm = (node_named(graph, name) for name in site.branch)
    module: Any = module_of(root, conv)
    (x,) = conv.all_input_nodes
    if gate.of_inputs:
        with graph.inserting_before(conv):
            conv.args = (
                graph.call_function(keep_inputs, (x, graph.call_module(path, (x,)), gate.order)),
            )
        return norm.name, norm.name
    parts, rows = (
        base_parts(module.out_channels, gate.order, gate.groups),
        tuple(range(module.out_channels)),
    )
    with graph.inserting_before(norm.next):
        weight = graph.create_node("get_attr", f"{conv.target}.weight")
        base = graph.call_function(
            base_path,
            (x, weight, parts, gate.shared, module.stride, module.padding, module.dilation),
        )
        z = graph.call_module(path, (x if gate.reads_input else base,))
        chosen = graph.call_function(
            choose, (norm, graph.call_module(f"{path}.base", (base,)), z, rows)
        )
    norm.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen)
    return norm.name, chosen.name


def remove_channel_gate(graph: fx.Graph, site: Site) -> tuple[str, str]:
    """Let the convolution run in full, as it did before it was gated.

    Returns names as `insert_channel_gate` does.
    """
    conv, norm, chosen = gated_nodes(graph, site)
    if chosen is None:
        conv.args = (conv.all_input_nodes[0].all_input_nodes[0],)
        chosen = norm
    else:
        chosen.replace_all_uses_with(norm)
    remove_dead(graph)
    return chosen.name, norm.name


def gated_nodes(graph: fx.Graph, site: Site) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """A gated convolution, its BatchNorm, and what chooses between this and the base path.

    None where input channels are gated.
    """
    conv, norm = (node_named(graph, name) for name in site.branch)
    return conv, norm, next((user for user in norm.users if user.target is choose), None)


# --- pruning ---


def decide_channels(
    root: nn.Module, graph: fx.Graph, site: Site, opened: Sequence[int], closed: Sequence[int]
) -> tuple[str, str, list[str]]:
    """Let a gated convolution's units `opened` always run, and those `closed` never, whose weights
    go; the gate decides for the others, if any.

    Returns names as `insert_channel_gate` does, and those of nodes that compute what the
    convolution computed before.
    """
    gate: Any = root.get_submodule(f"gates.{site.name}")
    left = others(gate.units, [*opened, *closed])
    change = _decide_inputs if gate.of_inputs else _decide_outputs
    names = change(root, graph, site, gate, opened, closed, left)
    if left:
        gate.keep(left)
    remove_dead(graph)
    return names


def _decide_inputs(
    root: nn.Module,
    graph: fx.Graph,
    site: Site,
    gate: Any,
    opened: Sequence[int],
    closed: Sequence[int],
    left: Sequence[int],
) -> tuple[str, str, list[str]]:
    """Let the convolution read what is still needed alone, and have no weights for the rest."""
    conv, norm, _ = gated_nodes(graph, site)
    module: Any = module_of(root, conv)
    (masked,) = conv.all_input_nodes
    gated = others(module.in_channels, gate.order)
    kept = others(module.in_channels, [gated[unit] for unit in closed])
    gate.order = places_of(sorted([*gate.order, *(gated[unit] for unit in opened)]), kept)
    keep_entries(module, ("weight",), torch.tensor(kept), dim=1)
    module.in_channels = len(kept)
    with graph.inserting_before(conv):
        inside = graph.call_function(take_channels, (masked.args[0], kept))
        if left:
            inside = graph.call_function(
                keep_inputs,
                (inside, graph.call_module(f"gates.{site.name}", (inside,)), gate.order),
            )
    conv.args = (inside,)
    return norm.name, norm.name, []


def _decide_outputs(
    root: nn.Module,
    graph: fx.Graph,
    site: Site,
    gate: Any,
    opened: Sequence[int],
    closed: Sequence[int],
    left: Sequence[int],
) -> tuple[str, str, list[str]]:
    """Split the convolution: what never opens becomes a smaller one, of the base path alone."""
    conv, norm, chosen = gated_nodes(graph, site)
    assert chosen is not None
    base = base_of(conv)
    module: Any = module_of(root, conv)
    parts: Any = base.args[2]
    rows: Any = chosen.args[3]
    gone, (x,), before = tuple(rows[unit] for unit in closed), conv.all_input_nodes, chosen.name
    never = keep_rows(parts, {row: row for row in gone})
    kept = others(module.out_channels, gone)
    if not kept and len({len(part) for part, _ in parts}) == 1:
        _become_base(
            module, module_of(root, norm), base_weight(module.weight.detach(), never), gate, parts
        )
        with graph.inserting_before(conv):
            conv.args = (
                graph.call_function(
                    take_channels, (x, tuple(channel for _, inputs in parts for channel in inputs))
                ),
            )
        chosen.replace_all_uses_with(norm)
        return before, norm.name, []
    now, more = chosen if left else norm, []
    if gone:
        path = _free(root, f"gates.{site.name.removesuffix(SUFFIX)}.closed")
        place(
            root,
            path,
            BasePath(
                base_weight(module.weight.detach(), never),
                cut_norm(gate.base, closed),
                module,
                never,
            ),
        )
        with graph.inserting_before(chosen.next):
            low = graph.call_module(path, (x,))
            now, more = (graph.call_function(merge, (now, low, kept)) if kept else low), [low.name]
    if now is not chosen:
        chosen.replace_all_uses_with(now, delete_user_cb=lambda user: user is not now)
    keep_outputs(root, [conv, norm], kept)
    if left:
        numbers = {row: place for place, row in enumerate(kept)}
        still = {
            row: numbers[row]
            for row in rows_of(parts)
            if row in numbers and (gate.shared or row in {rows[unit] for unit in left})
        }
        parts, rows = keep_rows(parts, still), tuple(numbers[rows[unit]] for unit in left)
        base.update_arg(2, parts)
        chosen.update_arg(3, rows)
        with graph.inserting_after(base):
            gated = graph.call_function(take_channels, (base, places_of(rows, rows_of(parts))))
        chosen.args[1].args = (gated,)  # type: ignore[union-attr]
        if not gate.reads_input:
            chosen.args[2].args = (gated,)  # type: ignore[union-attr]
    return before, now.name, more


def base_of(conv: fx.Node) -> Any:
    """The base path of a gated convolution."""
    for user in conv.all_input_nodes[0].users:
        weight: Any = user.args[1] if user.target is base_path else None
        if weight is not None and weight.target == f"{conv.target}.weight":
            return user
    raise AssertionError(f"`{conv.target}` has no base path")


def cut_norm(norm: nn.BatchNorm2d, kept: Sequence[int]) -> nn.BatchNorm2d:
    """A copy of a BatchNorm for some of its channels."""
    twin = copy.deepcopy(norm)
    keep_entries(twin, ("weight", "bias", "running_mean", "running_var"), torch.tensor(kept))
    twin.num_features = len(kept)
    return twin


def _free(root: nn.Module, path: str) -> str:
    """The path, or where something is there, the first one with a number behind it that is free."""
    names = {name for name, _ in root.named_modules()}
    return next(
        name
        for name in (f"{path}{number or ''}" for number in itertools.count())
        if name not in names
    )


def _become_base(conv: nn.Conv2d, norm: Any, weight: Tensor, gate: Any, parts: Parts) -> None:
    """Let a convolution compute its base path, and the BatchNorm behind it be that of the base
    path.
    """
    conv.weight, conv.bias = nn.Parameter(weight, conv.weight.requires_grad), None
    conv.in_channels, conv.groups = len(parts) * len(parts[0][1]), len(parts)
    for name, tensor in [*gate.base.named_parameters(), *gate.base.named_buffers()]:
        setattr(norm, name, tensor)
