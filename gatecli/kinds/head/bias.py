"""A projection's weight and bias, where a forward calls the function.

The bias may be set to zero in part, as torchvision's SwinV2 does for the keys, or put together of
one each for queries, keys and values, as timm does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gatecli.graph.flow import constants
from gatecli.graph.ops import with_part
from gatecli.kinds.head.places import Place
from gatecli.lowering.region import branch_of
from gatecli.traced.traced import Traced

__all__ = ["bias_of", "held_in", "parted", "parts_of", "weight_of", "zeroes_alike"]


def weight_of(node: fx.Node) -> Any:
    """The weight that a call of F.linear is given."""
    return node.args[1] if len(node.args) > 1 else node.kwargs["weight"]


def bias_of(node: fx.Node) -> Any:
    """The bias that a call of F.linear is given; None where it has none."""
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def parts_of(bias: object) -> list[fx.Node]:
    """The tensors of the network that a bias is put together of, in order; empty: it is not."""
    held = held_in(bias)
    if held is not None:
        return [held]
    if not isinstance(bias, fx.Node) or bias.target is not torch.cat:
        return []
    parts: Any = bias.args[0]
    return list(parts) if all(part.op == "get_attr" for part in parts) else []


def parted(net: Traced, bias: fx.Node, place: Place, heads: int) -> dict[fx.Node, Place] | None:
    """Where heads lie in each part of a bias, of which they lie at `place`; None: in none."""
    found = {}
    for part in parts_of(bias):
        before, rest = divmod(net.shape(part)[0], heads * place.after)
        if rest:
            return None
        found[part] = Place(dim=0, before=before, after=place.after)
    return found


def held_in(value: object) -> fx.Node | None:
    """The tensor of the network that a value is, but for parts set to zero; None where it is none.

    Where these end has to follow from the tensor's size: then it may lose heads.
    """
    while isinstance(value, fx.Node) and value.op != "get_attr":
        if value.target != "clone" and not _zeroes_a_part(value):
            return None
        value = value.args[0]
    return value if isinstance(value, fx.Node) else None


def _zeroes_a_part(node: fx.Node) -> bool:
    if node.target is not with_part:
        return False
    _, index, value = node.args
    is_zero = isinstance(value, fx.Node) and value.target == "zero_"
    ends = (index.start, index.stop) if isinstance(index, slice) else (0,)
    return is_zero and all(end is None or isinstance(end, fx.Node) for end in ends)


def zeroes_alike(net: Traced, bias: fx.Node, place: Place) -> bool:
    """Whether what is set to zero in a bias, whose heads lie at `place`, is so for each head."""
    held = held_in(bias)
    if held is None or bias is held:
        return True
    (width,) = net.shape(bias)
    inside = constants(bias.graph) - {held}
    left = branch_of(inside, held, bias)(net.root, torch.ones(width, device="cpu"))
    left = left.reshape(place.before, -1, place.after)
    return bool((left == left[:, :1, :1]).all())
