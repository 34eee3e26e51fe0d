"""Find convolutions whose channels can be gated one by one, put such gates in, and take channels out.

A gated convolution with the BatchNorm behind it means, on the graph (see gatecli.graph.channels),

    base = base_path(x, weight)                 # a share of the input channels alone
    z    = gates.SITE(base)                     # or of x; 1 = the other input channels are needed too
    out  = choose(norm(conv(x)), gates.SITE.base(base), z)

where the gate decides for output channels, and, where it decides for input channels,

    out  = norm(conv(keep_inputs(x, gates.SITE(x))))

Source: Hua et al., Channel gating neural networks, 2019.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.graph.channels import BasePath, base_path, base_weight, choose, keep_inputs, merge, others
from gatecli.graph.macs import NodeCost
from gatecli.graph.ops import module_of, take_channels
from gatecli.graph.rewrite import node_named, place
from gatecli.graph.sites import Site
from gatecli.graph.slices import calls, is_plain, keep_outputs
from gatecli.graph.trace import remove_dead

SUFFIX = ".channels"


def find_convs(root: nn.Module, graph: fx.Graph, costs: Mapping[str, NodeCost]) -> list[Site]:
    """All convolutions whose channels can be gated, in the order of execution."""
    refused = refused_convs(root, graph)
    nodes = [node for node in graph.nodes if isinstance(module_of(root, node), nn.Conv2d) and _name(node) not in refused]
    return [_site(root, node, costs[node.name].macs) for node in nodes]


def _site(root: nn.Module, node: fx.Node, macs: int) -> Site:
    conv: Any = module_of(root, node)
    (norm,), (entry,), units = node.users, node.all_input_nodes, conv.out_channels
    return Site(_name(node), "conv", units, macs, entry.name, norm.name, "", "", (node.name, norm.name), conv.in_channels, (2, 3), macs // units)


def _name(node: fx.Node) -> str:
    return f"{node.target}{SUFFIX}"


def refused_convs(root: nn.Module, graph: fx.Graph) -> dict[str, str]:
    """The convolutions whose channels cannot be gated: the name of the site that they are not -> why."""
    found, deep = {}, set[fx.Node]()
    for node in graph.nodes:
        conv, inside = module_of(root, node), any(source in deep for source in node.all_input_nodes)
        if isinstance(conv, nn.Conv2d):
            why = _why_not(root, node, conv) if inside else "reads the image (a stem is never gated)"
            if why is not None:
                found[_name(node)] = why
        if inside or isinstance(conv, nn.Conv2d):
            deep.add(node)
    return found


def _why_not(root: nn.Module, node: fx.Node, conv: nn.Conv2d) -> str | None:
    if not is_plain(conv, nn.Conv2d) or conv.padding_mode != "zeros":
        return "is a convolution of its own kind"
    if conv.groups != 1:
        return "is depthwise" if conv.groups == conv.in_channels else f"convolves in {conv.groups} groups"
    if calls(node.graph, node) > 1:
        return "is called more than once"
    norms = [(user, module_of(root, user)) for user in node.users]
    alone = len(norms) == 1 and isinstance(norms[0][1], nn.BatchNorm2d) and is_plain(norms[0][1], nn.BatchNorm2d) and norms[0][1].running_mean is not None
    return None if alone and calls(node.graph, norms[0][0]) == 1 else "has no BatchNorm behind it that alone reads it"


# --- gating ---


def insert_channel_gate(root: nn.Module, graph: fx.Graph, site: Site, gate: Any) -> tuple[str, str]:
    """Gate a convolution's channels; the gate becomes `gates.SITE`. Returns the names of what its readers read before, and read now."""
    path = f"gates.{site.name}"
    place(root, path, gate)
    conv, norm = (node_named(graph, name) for name in site.branch)
    module: Any = module_of(root, conv)
    (x,) = conv.all_input_nodes
    if gate.of_inputs:
        with graph.inserting_before(conv):
            conv.args = (graph.call_function(keep_inputs, (x, graph.call_module(path, (x,)), gate.order)),)
        return norm.name, norm.name
    with graph.inserting_before(norm.next):
        weight = graph.create_node("get_attr", f"{conv.target}.weight")
        base = graph.call_function(base_path, (x, weight, gate.order, gate.groups, module.stride, module.padding, module.dilation))
        z = graph.call_module(path, (x if gate.reads_input else base,))
        chosen = graph.call_function(choose, (norm, graph.call_module(f"{path}.base", (base,)), z))
    norm.replace_all_uses_with(chosen, delete_user_cb=lambda user: user is not chosen)
    return norm.name, chosen.name


def remove_channel_gate(graph: fx.Graph, site: Site) -> tuple[str, str]:
    """Let the convolution run in full, as it did before it was gated. Returns names as `insert_channel_gate` does."""
    conv, norm, chosen = gated_nodes(graph, site)
    if chosen is None:
        conv.args = (conv.all_input_nodes[0].all_input_nodes[0],)
        chosen = norm
    else:
        chosen.replace_all_uses_with(norm)
    remove_dead(graph)
    return chosen.name, norm.name


def gated_nodes(graph: fx.Graph, site: Site) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """A gated convolution, its BatchNorm, and what chooses between this and the base path; None where input channels are gated."""
    conv, norm = (node_named(graph, name) for name in site.branch)
    return conv, norm, next((user for user in norm.users if user.target is choose), None)


# --- pruning ---


def keep_channels(root: nn.Module, graph: fx.Graph, site: Site, kept: Sequence[int]) -> tuple[str, str, list[str]]:
    """Decide a gated convolution's units for good: those `kept` always run, the others never, and their weights go.

    Returns names as `insert_channel_gate` does, and those of nodes that compute what the convolution computed before.
    """
    conv, norm, chosen = gated_nodes(graph, site)
    path = f"gates.{site.name}"
    module: Any = module_of(root, conv)
    gate: Any = root.get_submodule(path)
    if chosen is None:
        gated = others(module.in_channels, gate.order)
        _read_some(graph, conv, module, tuple(sorted({*gate.order, *(gated[unit] for unit in kept)})))
        return norm.name, norm.name, []
    weight, before, (x,) = base_weight(module.weight.detach(), gate.order, gate.groups), chosen.name, conv.all_input_nodes
    if kept:
        rows = others(module.out_channels, kept)
        closed = BasePath(weight[list(rows)], gate.base, module, rows, gate.order, gate.groups)
        keep_outputs(root, [node for node in graph.nodes if node.target == f"{path}.base"], rows)
        keep_outputs(root, [conv, norm], kept)
        with graph.inserting_before(norm.next):
            base = graph.call_module(path, (x,))
            now = graph.call_function(merge, (norm, base, tuple(kept)))
    else:
        _become_base(module, module_of(root, norm), weight, gate)
        with graph.inserting_before(conv):
            conv.args = (graph.call_function(take_channels, (x, gate.order)),)
        now = norm
    chosen.replace_all_uses_with(now)
    remove_dead(graph)
    if kept:
        place(root, path, closed)
    return before, now.name, [base.name] if kept else []


def _read_some(graph: fx.Graph, conv: fx.Node, module: nn.Conv2d, channels: tuple[int, ...]) -> None:
    """Let a convolution read these input channels alone, and have no weights for the others."""
    (masked,) = conv.all_input_nodes
    weight = module.weight.detach().index_select(1, torch.tensor(channels, device=module.weight.device))
    module.weight, module.in_channels = nn.Parameter(weight, module.weight.requires_grad), len(channels)
    with graph.inserting_before(conv):
        conv.args = (graph.call_function(take_channels, (masked.args[0], channels)),)
    remove_dead(graph)


def _become_base(conv: nn.Conv2d, norm: Any, weight: Tensor, gate: Any) -> None:
    """Let a convolution compute its base path, and the BatchNorm behind it be that of the base path."""
    conv.weight, conv.bias = nn.Parameter(weight, conv.weight.requires_grad), None
    conv.in_channels, conv.groups = len(gate.order), gate.groups
    for name, tensor in [*gate.base.named_parameters(), *gate.base.named_buffers()]:
        setattr(norm, name, tensor)
