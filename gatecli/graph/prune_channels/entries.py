"""Cut tensors of modules to some of their entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["NORM", "keep_entries", "on_one_device"]

NORM = ("weight", "bias", "running_mean", "running_var")  # a BatchNorm's tensors


def keep_entries(
    module: nn.Module, names: Sequence[str], index: Tensor, quiet: Sequence[int] = (), dim: int = 0
) -> None:
    """Cut the module's tensors of these names to the entries `index` of `dim`.

    Entries `quiet` of the result become zero.
    """
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        cut = tensor.detach().index_select(dim, index.to(tensor.device))
        if quiet:
            cut[list(quiet)] = 0
        if isinstance(tensor, nn.Parameter):
            cut = nn.Parameter(cut, tensor.requires_grad)
        setattr(module, name, cut)


def on_one_device(parts: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on one device.

    On none where any has no values, as in a replay, whose values come from the file.
    """
    device = torch.device("meta") if any(part.is_meta for part in parts) else parts[0].device
    return [part.to(device) for part in parts]
