"""What reads a value reads some of its channels alone; constants go into its bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from gatecli.errors import SettingError
from gatecli.graph.patterns import is_plain
from gatecli.graph.prune_channels.constants import Cut
from gatecli.graph.prune_channels.entries import keep_entries, on_one_device
from gatecli.graph.prune_channels.naming import reader

__all__ = ["absorbs", "check_reader", "drop_inputs", "read_less"]


def absorbs(module: nn.Module | None) -> bool:
    """Whether constants end at a module: what it makes of them goes into its bias."""
    return isinstance(module, (nn.Conv2d, nn.Linear)) or hasattr(module, "drop_inputs")


def check_reader(node: fx.Node, module: Any, cut: Cut) -> None:
    """See whether a module that absorbs constants can do without the channels that are gone.

    Raises:
        SettingError: it cannot.
    """
    if isinstance(module, nn.Conv2d):
        _check_convolution(node, module, cut)
    if getattr(module, "pads", False) and not cut.zero:
        raise SettingError(f"{reader(node)} reads it and pads it with zeros")
    if isinstance(module, nn.Linear) and module.in_features != len(cut.kept) + len(cut.gone):
        raise SettingError(f"{reader(node)} reads it in another shape")


def _check_convolution(node: fx.Node, conv: nn.Conv2d, cut: Cut) -> None:
    if not is_plain(conv, nn.Conv2d):
        raise SettingError(f"{reader(node)} reads it, a convolution of its own kind")
    if conv.groups != 1:
        raise SettingError(f"{reader(node)} reads it in groups")
    if _pads(conv) and not cut.zero:
        raise SettingError(f"{reader(node)} reads it and pads it with zeros")


def _pads(conv: nn.Conv2d) -> bool:
    if isinstance(conv.padding, str):
        return conv.padding != "valid"
    return any(conv.padding)


def read_less(module: Any, cut: Cut) -> None:
    """Let a convolution, a linear layer or a gate read the kept channels alone."""
    if hasattr(module, "drop_inputs"):
        module.drop_inputs(cut.kept, cut.gone, cut.constants)
    else:
        drop_inputs(module, cut.kept, cut.gone, None if cut.zero else cut.constants)


def drop_inputs(module: Any, kept: Tensor, gone: Tensor, constants: Tensor | None) -> None:
    """Let a convolution or a linear layer read the channels `kept` alone.

    `constants`, what `gone` always were (none: zero), go into its bias.
    """
    if constants is not None:
        said = _said_by(module.weight.detach(), gone, constants)
        bias = module.bias
        if bias is not None:
            said = torch.stack(on_one_device([bias.detach(), said])).sum(0)
        module.bias = nn.Parameter(said, module.weight.requires_grad)
    keep_entries(module, ("weight",), kept, dim=1)
    setattr(module, "in_features" if isinstance(module, nn.Linear) else "in_channels", len(kept))


def _said_by(weight: Tensor, gone: Tensor, constants: Tensor) -> Tensor:
    """What weights (out, in, ...) make of the channels `gone`, which are constant: (out,)."""
    lost = weight.index_select(1, gone.to(weight.device)).reshape(len(weight), len(gone), -1)
    lost, constants = on_one_device([lost.sum(2), constants.to(weight.dtype)])
    return lost @ constants
