"""What makes a value keeps some of its channels."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx, nn

from gatecli.graph.normalize import DROPOUTS
from gatecli.graph.ops import module_of
from gatecli.graph.patterns import as_function, is_product, zero_stays_zero
from gatecli.graph.prune_channels.entries import NORM, keep_entries
from gatecli.traced.traced import parts_of

__all__ = ["cut_norm", "keep_outputs", "stays_zero"]

MADE = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


def keep_outputs(
    root: nn.Module, tail: Sequence[fx.Node], kept: Sequence[int], silent: Collection[int] = ()
) -> None:
    """Let the layers of a tail (see patterns.tail_of) keep the output channels `kept`.

    Those of them in `silent` give zeros. What a layer makes may be cut in equal parts: each keeps
    these.
    """
    for node in tail:
        module = module_of(root, node)
        if not isinstance(module, MADE):
            continue
        count = 1 if node is tail[-1] else parts_of(node)[0]  # cut behind the tail it stays whole
        numbers, quiet = _outputs(count, module, kept, silent)
        index = torch.tensor(numbers)
        keep_entries(module, ("weight", "bias"), index, quiet)
        if isinstance(module, nn.Linear):
            module.out_features = len(numbers)
        elif isinstance(module, nn.Conv2d):
            module.out_channels = len(numbers)
            if module.groups > 1:  # each channel of a depthwise one reads its own alone
                module.in_channels = module.groups = len(numbers)
        else:
            keep_entries(module, ("running_mean", "running_var"), index)
            module.num_features = len(numbers)


def _outputs(
    count: int, module: Any, kept: Sequence[int], silent: Collection[int]
) -> tuple[list[int], list[int]]:
    """A layer's outputs that are these channels of `count` parts, and which are to give zeros."""
    width = module.num_features if isinstance(module, nn.BatchNorm2d) else len(module.weight)
    numbers = [channel + part * (width // count) for part in range(count) for channel in kept]
    every = [*kept] * count
    return numbers, [place for place, channel in enumerate(every) if channel in silent]


def stays_zero(root: nn.Module, tail: Sequence[fx.Node]) -> bool:
    """Whether a channel whose weights are all zero leaves a tail as zero."""
    zero: dict[fx.Node, bool] = {}
    for node in tail:
        module = module_of(root, node)
        given = [zero.get(source, True) for source in node.all_input_nodes]
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            zero[node] = True
        elif isinstance(module, nn.BatchNorm2d):
            zero[node] = module.affine
        elif is_product(node):
            zero[node] = any(given)
        else:
            zero[node] = all(given) and _leaves_zero(root, node)
    return zero[tail[-1]]


def _leaves_zero(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node without weights makes zeros of zeros."""
    if node.target in DROPOUTS or any(_is_cut(each) for each in (node, *node.all_input_nodes)):
        return True
    return zero_stays_zero(as_function(root, node))


def _is_cut(node: fx.Node) -> bool:
    """Whether a node cuts what it reads in equal parts."""
    return any(parts_of(source)[0] > 1 for source in node.all_input_nodes)


def cut_norm(norm: nn.BatchNorm2d, kept: Sequence[int]) -> nn.BatchNorm2d:
    """A copy of a BatchNorm for some of its channels."""
    twin = copy.deepcopy(norm)
    keep_entries(twin, NORM, torch.tensor(kept))
    twin.num_features = len(kept)
    return twin
