"""What gatecli changes in a network that torchvision built.

Input channels for all, the stem of ResNets and DenseNets, the stride of ResNets.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from gatecli.errors import ArchitectureError

__all__ = ["EXTRAS", "alter"]

# First convolution and pooling: of ResNets, of DenseNets.
STEMS = (("conv1", "maxpool"), ("features.conv0", "features.pool0"))
# Arguments that are not the library's own.
EXTRAS = ("in_channels", "stem", "maxpool", "stem_stride", "stride_on")
KEPT = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


def alter(model: nn.Module, arch: str, extras: dict[str, Any]) -> nn.Module:
    """Apply the arguments named in EXTRAS, in place.

    Args:
        model: of torchvision.
        arch: its name, for errors.
        extras: the arguments; only `in_channels` is for networks of any kind.

    Raises:
        ArchitectureError: the network has no such part.
    """
    if "in_channels" in extras:
        name, conv = _first_convolution(model)
        _put(model, name, conv, in_channels=extras["in_channels"])
    if {"stem", "maxpool", "stem_stride"} & extras.keys():
        _alter_stem(model, extras)
    if extras.get("stride_on") == "conv1":
        _stride_on_conv1(model, arch)
    return model


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d))


def _alter_stem(model: nn.Module, extras: dict[str, Any]) -> None:
    first, pool = _stem(model)
    cifar = extras.get("stem") == "cifar"
    if cifar:
        _put(model, first, model.get_submodule(first), kernel_size=3, stride=1, padding=1)
    if "stem_stride" in extras:
        _put(model, first, model.get_submodule(first), stride=extras["stem_stride"])
    if cifar or "maxpool" in extras:
        keeps_pool = extras.get("maxpool", not cifar)
        model.set_submodule(pool, nn.MaxPool2d(3, 2, 1) if keeps_pool else nn.Identity())


def _stem(model: nn.Module) -> tuple[str, str]:
    """Names of the first convolution and of the pooling behind it; empty where it has none."""
    names = {name for name, _ in model.named_modules()}
    return next((stem for stem in STEMS if set(stem) <= names), ("", ""))


def _put(model: nn.Module, name: str, conv: Any, **changes: Any) -> None:
    """Replace a convolution by one with other settings and new random weights."""
    settings = {name: getattr(conv, name) for name in KEPT}
    model.set_submodule(name, nn.Conv2d(**{**settings, "bias": conv.bias is not None, **changes}))


def _stride_on_conv1(model: nn.Module, arch: str) -> None:
    """Put the stride of bottlenecks where He et al. first had it, in the first 1x1 convolution.

    torchvision has it in the 3x3 one.
    """
    from torchvision.models.resnet import Bottleneck

    blocks = [part for part in model.modules() if isinstance(part, Bottleneck)]
    if not blocks:
        raise ArchitectureError(
            f"{arch} takes no stride_on=conv1: its blocks are no bottlenecks and have their stride"
            " on conv1 already"
        )
    for block in blocks:
        block.conv1.stride = block.conv2.stride
        block.conv2.stride = (1, 1)
