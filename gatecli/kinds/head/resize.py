"""Sizes that nodes are told as numbers, of an attention of which some heads are left."""

from __future__ import annotations

from typing import Any

from torch import fx

from gatecli.kinds.head.attention import Attention
from gatecli.kinds.head.places import Place, name_of
from gatecli.traced.traced import Shape, Traced

__all__ = ["Size", "resized"]

Size = int | fx.Node


def resized(net: Traced, found: Attention, node: fx.Node, size: Any) -> tuple[Any, ...] | None:
    """The arguments of a node of which not all heads are left; None where none change.

    Args:
        net: The network, whose shapes are those with all heads.
        found: The attention.
        node: One of its nodes.
        size: (before, after) -> the number that a dimension of before x heads x after has now.
    """
    parts = [user for user in node.users if name_of(user) == "getitem"]
    place = found.sized.get(node)
    if place is None and name_of(node) == "split" and parts:
        place = found.sized.get(parts[0])
    if place is None:
        return None
    now = size(place.before, place.after)
    name, (first, *given) = name_of(node), node.args
    if name in ("reshape", "view", "expand"):
        if len(given) == 1 and isinstance(given[0], (tuple, list)):
            return (first, _told(given[0], place.dim, now))
        return (first, *_told(given, place.dim, now))
    if name == "unflatten":
        return (first, given[0], _unflattened(net.shape(node), place, given, now))
    if name == "split" and given[1:] == [place.dim]:
        return (first, now, *given[1:])
    return None


def _told(sizes: Any, dim: int, now: Size) -> tuple[Any, ...]:
    """The sizes with that of one dimension anew, unless it follows from the others."""
    numbers = list(sizes)
    if numbers[dim] != -1:
        numbers[dim] = now
    return tuple(numbers)


def _unflattened(shape: Shape, place: Place, given: list[Any], now: Size) -> Any:
    """The sizes that a dimension is parted into."""
    first, sizes = given
    first %= len(shape) - len(sizes) + 1
    if not first <= place.dim < first + len(sizes):
        return sizes
    return _told(sizes, place.dim - first, now)
