"""What gatecli changes in a network that torchvision built.

Input channels for all, the stem of ResNets and DenseNets, the stride of ResNets.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from gatecli.errors import ArchitectureError

STEMS = (
    ("conv1", "maxpool"),
    ("features.conv0", "features.pool0"),
)  # first convolution and pooling: of ResNets, of DenseNets
EXTRAS = (
    "in_channels",
    "stem",
    "maxpool",
    "stem_stride",
    "stride_on",
)  # arguments that are not the library's own


def alter(model: nn.Module, arch: str, extras: dict[str, Any]) -> nn.Module:
    """Apply the arguments named in EXTRAS, in place.

    Only `in_channels` is for networks of any kind.
    """
    first, pool = next(
        (stem for stem in STEMS if set(stem) <= {name for name, _ in model.named_modules()}),
        ("", ""),
    )
    if "in_channels" in extras:
        name, conv = next(
            (name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d)
        )
        _put(model, name, conv, in_channels=extras["in_channels"])
    cifar = extras.get("stem") == "cifar"
    if cifar:
        _put(model, first, model.get_submodule(first), kernel_size=3, stride=1, padding=1)
    if "stem_stride" in extras:
        _put(model, first, model.get_submodule(first), stride=extras["stem_stride"])
    if cifar or "maxpool" in extras:
        model.set_submodule(
            pool, nn.MaxPool2d(3, 2, 1) if extras.get("maxpool", not cifar) else nn.Identity()
        )
    if extras.get("stride_on") == "conv1":
        _stride_on_conv1(model, arch)
    return model


def _put(model: nn.Module, name: str, conv: Any, **changes: Any) -> None:
    """Replace a convolution by one with other settings and new random weights."""
    kept = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    settings = {key: getattr(conv, key) for key in kept}
    model.set_submodule(name, nn.Conv2d(**{**settings, "bias": conv.bias is not None, **changes}))


def _stride_on_conv1(model: nn.Module, arch: str) -> None:
    """He et al.'s first bottlenecks have their stride in the first 1x1 convolution, torchvision's
    in the 3x3 one.
    """
    from torchvision.models.resnet import Bottleneck

    blocks = [part for part in model.modules() if isinstance(part, Bottleneck)]
    if not blocks:
        raise ArchitectureError(
            f"{arch} takes no stride_on=conv1: its blocks are no bottlenecks and have their stride"
            " on conv1 already"
        )
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
