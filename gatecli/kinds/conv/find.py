"""Find convolutions whose channels can be gated one by one."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from gatecli.graph.ops import module_of
from gatecli.graph.patterns import calls, is_plain
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["SUFFIX", "find_convs", "refused_convs"]

SUFFIX = ".channels"


def find_convs(net: Traced, kind: str) -> list[Site]:
    """All convolutions whose channels can be gated, in the order of execution."""
    refused = refused_convs(net)
    nodes = [node for node in net.graph.nodes if _is_conv(net, node)]
    return [_site(net, node, kind) for node in nodes if _name(node) not in refused]


def _is_conv(net: Traced, node: fx.Node) -> bool:
    return isinstance(module_of(net.root, node), nn.Conv2d)


def _site(net: Traced, node: fx.Node, kind: str) -> Site:
    conv: Any = module_of(net.root, node)
    (norm,), (entry,) = node.users, node.all_input_nodes
    return Site(
        name=_name(node),
        kind=kind,
        units=conv.out_channels,
        macs=net.macs([node.name]),
        entry=entry.name,
        value=norm.name,
        branch=(node.name, norm.name),
        channels=conv.in_channels,
        positions=(2, 3),
    )


def _name(node: fx.Node) -> str:
    return f"{node.target}{SUFFIX}"


def refused_convs(net: Traced) -> dict[str, str]:
    """The convolutions whose channels cannot be gated: the site that they are not -> why."""
    found, deep = {}, set[fx.Node]()
    for node in net.graph.nodes:
        inside = any(source in deep for source in node.all_input_nodes)
        if _is_conv(net, node):
            why = _why_not(net, node) if inside else "reads the image (a stem is never gated)"
            if why is not None:
                found[_name(node)] = why
        if inside or _is_conv(net, node):
            deep.add(node)
    return found


def _why_not(net: Traced, node: fx.Node) -> str | None:
    conv: Any = module_of(net.root, node)
    if not is_plain(conv, nn.Conv2d) or conv.padding_mode != "zeros":
        return "is a convolution of its own kind"
    if conv.groups != 1:
        depthwise = conv.groups == conv.in_channels
        return "is depthwise" if depthwise else f"convolves in {conv.groups} groups"
    if calls(node.graph, node) > 1:
        return "is called more than once"
    if not net.holds_images(node):
        return "sees parts of images, one by one"
    return None if _has_norm(net, node) else "has no BatchNorm behind it that alone reads it"


def _has_norm(net: Traced, node: fx.Node) -> bool:
    """Whether a BatchNorm alone reads the node's value."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    norm = module_of(net.root, user)
    if not isinstance(norm, nn.BatchNorm2d) or not is_plain(norm, nn.BatchNorm2d):
        return False
    return norm.running_mean is not None and calls(node.graph, user) == 1
