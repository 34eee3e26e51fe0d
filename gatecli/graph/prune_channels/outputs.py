"""What makes a value keeps some of its channels."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import torch
from torch import fx, nn

from gatecli.graph.ops import module_of
from gatecli.graph.patterns import as_function, zero_stays_zero
from gatecli.graph.prune_channels.entries import NORM, keep_entries

__all__ = ["cut_norm", "keep_outputs", "stays_zero"]


def keep_outputs(
    root: nn.Module, tail: Sequence[fx.Node], kept: Sequence[int], silent: Collection[int] = ()
) -> None:
    """Let the layers of a tail (see patterns.tail_of) keep the output channels `kept`.

    Those of them in `silent` give zeros.
    """
    index = torch.tensor(kept)
    quiet = [place for place, channel in enumerate(kept) if channel in silent]
    for node in tail:
        module = module_of(root, node)
        if isinstance(module, nn.Conv2d):
            keep_entries(module, ("weight", "bias"), index, quiet)
            module.out_channels = len(kept)
            if module.groups > 1:  # each channel of a depthwise one reads its own alone
                module.in_channels = module.groups = len(kept)
        elif isinstance(module, nn.Linear):
            keep_entries(module, ("weight", "bias"), index, quiet)
            module.out_features = len(kept)
        elif isinstance(module, nn.BatchNorm2d):
            keep_entries(module, ("weight", "bias"), index, quiet)
            keep_entries(module, ("running_mean", "running_var"), index)
            module.num_features = len(kept)


def stays_zero(root: nn.Module, tail: Sequence[fx.Node]) -> bool:
    """Whether a channel whose weights are all zero leaves a tail as zero."""
    for node in tail:
        module = module_of(root, node)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if isinstance(module, nn.BatchNorm2d):
            if not module.affine:
                return False
        elif not zero_stays_zero(as_function(root, node)):
            return False
    return True


def cut_norm(norm: nn.BatchNorm2d, kept: Sequence[int]) -> nn.BatchNorm2d:
    """A copy of a BatchNorm for some of its channels."""
    twin = copy.deepcopy(norm)
    keep_entries(twin, NORM, torch.tensor(kept))
    twin.num_features = len(kept)
    return twin
