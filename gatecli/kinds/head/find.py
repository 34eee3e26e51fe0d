"""Find the attentions of a network whose heads can be gated, and say why others cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F

from gatecli.graph.attention import is_product, may_attend
from gatecli.graph.ops import module_of
from gatecli.kinds.head.attention import Attention, attention_at, weights_of
from gatecli.kinds.head.places import NotPartedError, name_of
from gatecli.kinds.naming import with_unique_names
from gatecli.traced.site import Site
from gatecli.traced.traced import Traced

__all__ = ["find_heads", "refused_heads", "site_of"]

SUFFIX = ".heads"
FEW = 4  # dimensions of a product in which a head is one entry


def find_heads(net: Traced, kind: str) -> list[Site]:
    """The attentions of more than one head that can be told apart, in the order of execution."""
    found = []
    for value in _products(net):
        try:
            attention = attention_at(net, value)
        except NotPartedError:
            continue
        found.append(site_of(net, attention, kind, _path(attention) + SUFFIX))
    return list(with_unique_names(found).values())


def refused_heads(net: Traced) -> dict[str, str]:
    """Attentions whose heads are no sites, by name, and why."""
    reasons = {}
    for value in _products(net):
        try:
            attention_at(net, value)
        except NotPartedError as error:
            reasons[_near(net, value) + SUFFIX] = f"cannot be gated by head: {error}"
    for node in net.graph.nodes:
        if node.target is torch.functional.einsum and _attends(net, node, first=1):
            reasons[_near(net, node) + SUFFIX] = (
                "cannot be gated by head: its products are einsums, which are not seen into"
            )
        module = module_of(net.root, node)
        if module is not None and any(map(_is_torchs, module.modules())):
            reasons[f"{node.target}{SUFFIX}"] = (
                "cannot be gated by head: it is kept whole, as it is not batch_first, is told a"
                " mask, looks at several values, or its file is of an earlier gatecli"
            )
        elif may_attend(module) and len(node.all_input_nodes) > 1:
            reasons[f"{node.target}{SUFFIX}"] = (
                "cannot be gated by head: it is kept whole, as it is given several values that"
                " depend on the image, or cannot be traced by itself"
            )
    return reasons


def _is_torchs(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention)


def site_of(net: Traced, found: Attention, kind: str, name: str) -> Site:
    """The site that an attention's heads are."""
    shape = net.shape(found.images)
    branch = [node.name for node in net.graph.nodes if node in found.region]
    tail = [node for node in branch if node in net.costs and net.costs[node].macs]
    is_last = shape[-1] == net.shape(found.tokens)[-1]
    axis = len(shape) - 1 if is_last else 1
    return Site(
        name=name,
        kind=kind,
        units=found.heads,
        macs=net.macs(tail),
        entry=found.images.name,
        value=found.value.name,
        branch=tuple(branch),
        channels=shape[axis],
        positions=tuple(dim for dim in range(1, len(shape)) if dim != axis),
        tail=tuple(node for node in tail if _is_per_head(net, found, node)),
    )


def _is_per_head(net: Traced, found: Attention, name: str) -> bool:
    """Whether a node works for each head apart."""
    node = net.node(name)
    return node in (found.output, *found.projections, *found.sized)


def _products(net: Traced) -> Iterator[fx.Node]:
    """The products of attention weights and values, of more than one head."""
    for node in net.graph.nodes:
        if not is_product(node) or net.costs[node.name].shape is None:
            continue
        shape = net.shape(node)
        if (len(shape) != FEW or shape[1] > 1) and _attends(net, node):
            yield node


def _attends(net: Traced, product: fx.Node, first: int = 0) -> bool:
    """Whether the first factor of a product is a softmax, or the product has one in it.

    `first` is the number of the argument that is this factor.
    """
    if product.target is F.scaled_dot_product_attention:
        return True
    node: object = product.args[first]
    while isinstance(node, fx.Node) and node.all_input_nodes:
        module = module_of(net.root, node)
        if name_of(node) == "softmax" or isinstance(module, nn.Softmax):
            return True
        passes = isinstance(module, (nn.Dropout, nn.Identity))
        if not passes and name_of(node) not in ("dropout", "to", "type_as", "view", "reshape"):
            return False
        node = node.args[0]
    return False


def _path(found: Attention) -> str:
    """The path that the weights of an attention share."""
    weights = [weights_of(node)[0] for node in (*found.projections, found.output)]
    shared: list[str] = []
    for parts in zip(*(path.split(".")[:-1] for path in weights), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or weights_of(found.output)[0].rpartition(".")[0]


def _near(net: Traced, value: fx.Node) -> str:
    """The path of the first module behind a value, without its own name."""
    node = value
    while node.users:
        node = next(iter(node.users))
        if module_of(net.root, node) is not None:
            return str(node.target).rpartition(".")[0] or str(node.target)
    return value.name
