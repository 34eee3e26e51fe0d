"""Take heads out for good: rows of the projections, entries of tables, columns of the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from gatecli.graph.edit import mask_of
from gatecli.graph.heads import bias_alone, for_parts
from gatecli.graph.ops import module_of
from gatecli.graph.prune_channels import keep_entries
from gatecli.graph.trace import remove_dead
from gatecli.kinds.head.attention import Attention, rows_of, weights_of
from gatecli.kinds.head.places import Place
from gatecli.kinds.head.resize import resized
from gatecli.traced.traced import Traced

__all__ = ["kept_heads", "leave_bias", "narrow", "repeat_decision"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Heads that are left: `places`, of which `silent` give zeros."""

    places: list[int]
    silent: list[int]


def kept_heads(heads: int, gone: Sequence[int], round_to: int) -> Kept:
    """The heads that are not gone, and so many more, giving zeros, that they are a multiple."""
    stays = sorted(set(range(heads)) - set(gone))
    silent = list(gone[: -len(stays) % round_to])
    return Kept(places=sorted([*stays, *silent]), silent=silent)


def narrow(net: Traced, found: Attention, kept: Kept) -> None:
    """Let an attention have these heads alone."""
    count = len(kept.places)
    for node, place in found.projections.items():
        width = place.before * count * place.after
        for path, rows in rows_of(net, node, place, found.heads).items():
            _cut(net.root, path, _entries(rows, found.heads, kept.places), 0)
        _set_width(net.root, node, "out_features", width)
    for node, place in found.tables.items():
        _cut(net.root, str(node.target), _entries(place, found.heads, kept.places), place.dim)
    _narrow_output(net, found, kept)
    for node in found.region:
        args = resized(net, found, node, lambda before, after: before * count * after)
        if args is not None:
            node.args = args


def _narrow_output(net: Traced, found: Attention, kept: Kept) -> None:
    place = found.columns
    weight, _ = weights_of(found.output)
    index = _entries(place, found.heads, kept.places)
    _cut(net.root, weight, index, 1)
    _set_width(net.root, found.output, "in_features", len(index))
    quiet = [number for number, head in enumerate(kept.places) if head in kept.silent]
    if quiet:
        owner, name = _owner(net.root, weight)
        with torch.no_grad():
            getattr(owner, name)[:, _entries(place, len(kept.places), quiet)] = 0


def _entries(place: Place, heads: int, kept: Sequence[int]) -> torch.Tensor:
    """The numbers, within a dimension, of what these of its heads have."""
    size = place.before * heads * place.after
    every = torch.arange(size, device="cpu").reshape(place.before, heads, place.after)
    return every[:, list(kept)].flatten()


def _owner(root: nn.Module, path: str) -> tuple[Any, str]:
    owner, _, name = path.rpartition(".")
    return root.get_submodule(owner), name


def _cut(root: nn.Module, path: str, index: torch.Tensor, dim: int) -> None:
    """Cut a tensor, if there is one of that path, to some of its entries."""
    owner, name = _owner(root, path)
    if getattr(owner, name, None) is not None:
        keep_entries(owner, (name,), index, dim=dim)


def _set_width(root: nn.Module, node: fx.Node, name: str, width: int) -> None:
    module: Any = module_of(root, node)
    if module is not None:
        setattr(module, name, width)


def leave_bias(net: Traced, found: Attention) -> fx.Node:
    """Let the output projection's bias be all that is left of an attention; returns its node."""
    output = found.output
    weight, bias = weights_of(output)
    owner, name = _owner(net.root, weight)
    given: list[Any] = [found.tokens, len(getattr(owner, name))]
    owner, name = _owner(net.root, bias)
    with net.graph.inserting_before(output):
        if bias and getattr(owner, name, None) is not None:
            given.append(net.graph.get_attr(bias))
        left = net.graph.call_function(bias_alone, tuple(given))
    output.replace_all_uses_with(left)
    remove_dead(net.graph)
    return left


def repeat_decision(net: Traced, site: str, parts: int) -> None:
    """Let a site's mask have its decision for each part that images are cut into."""
    masked = mask_of(net.graph, site)
    assert masked is not None
    value, decision = masked.args
    with net.graph.inserting_before(masked):
        repeated = net.graph.call_function(for_parts, (decision, parts))
    masked.args = (value, repeated)
