"""Arguments beyond torchvision's own, for networks that others build from its parts.

CIFAR stems, other channels, pooling, strides, dilation, activations, and BatchNorm's epsilon. None
of them has a tensor of its own but the stem and the channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gatecli.errors import ArchitectureError

__all__ = ["ACTIVATIONS", "EXTRAS", "DILATIONS", "alter", "given_to_builder"]

# First convolution and pooling: of ResNets, DenseNets, ShuffleNets, GoogLeNet.
STEMS = (
    ("conv1", "maxpool"),
    ("features.conv0", "features.pool0"),
    ("conv1.0", "maxpool"),
    ("conv1.conv", "maxpool1"),
)
# Arguments that are not the library's own.
EXTRAS = (
    "in_channels",
    "stem",
    "maxpool",
    "stem_stride",
    "stride_on",
    "ceil_mode",
    "activation",
    "bn_eps",
)
DILATION = "replace_stride_with_dilation"  # the library's own, of three values
DILATIONS = tuple(
    f"{a},{b},{c}" for a in ("false", "true") for b in ("false", "true") for c in ("false", "true")
)
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


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), as CLIP has it."""

    def forward(self, x: Tensor) -> Tensor:
        """The activation of `x`, of its shape."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "leaky_relu_0.1": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "quick_gelu": QuickGELU,
}
REPLACED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.GELU)


def given_to_builder(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are torchvision's own, as its builders take them."""
    own = {key: value for key, value in args.items() if key not in EXTRAS}
    if DILATION in own:
        own[DILATION] = [word == "true" for word in own[DILATION].split(",")]
    return own


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
        _alter_stem(model, arch, extras)
    if extras.get("stride_on") == "conv1":
        _stride_on_conv1(model, arch)
    if "ceil_mode" in extras:
        _round_pools(model, arch, up=extras["ceil_mode"])
    if "activation" in extras:
        _activate(model, arch, extras["activation"])
    if "bn_eps" in extras:
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = float(extras["bn_eps"])
    return model


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d))


def _alter_stem(model: nn.Module, arch: str, extras: dict[str, Any]) -> None:
    first, pool = _stem(model)
    if not first:
        first = _first_convolution(model)[0]
        if "maxpool" in extras:
            raise ArchitectureError(f"{arch} takes no maxpool: its stem has none")
    cifar = extras.get("stem") == "cifar"
    if cifar:
        _put(model, first, model.get_submodule(first), kernel_size=3, stride=1, padding=1)
    if "stem_stride" in extras:
        _put(model, first, model.get_submodule(first), stride=extras["stem_stride"])
    if cifar or "maxpool" in extras:
        keeps_pool = extras.get("maxpool", not cifar)
        usual = model.get_submodule(pool)
        model.set_submodule(pool, usual if keeps_pool else nn.Identity())


def _stem(model: nn.Module) -> tuple[str, str]:
    """Names of the first convolution and of the pooling behind it; empty where it has none."""
    kinds = {name: type(part) for name, part in model.named_modules()}
    for first, pool in STEMS:
        if kinds.get(first) is nn.Conv2d and kinds.get(pool) is nn.MaxPool2d:
            return first, pool
    return "", ""


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


def _round_pools(model: nn.Module, arch: str, *, up: bool) -> None:
    """Let max-poolings round their size up, or down.

    One that pads is Caffe's then, which pads nothing on its first sides.
    """
    pools = [part for part in model.modules() if isinstance(part, nn.MaxPool2d)]
    if not pools:
        raise ArchitectureError(f"{arch} takes no ceil_mode: it has no max-pooling")
    for pool in pools:
        pool.ceil_mode = up
        if up and pool.padding == 1 and pool.stride == 2:
            pool.padding = 0


def _activate(model: nn.Module, arch: str, name: str) -> None:
    """Replace the commonest activation, everywhere."""
    kinds = Counter(type(part) for part in model.modules() if type(part) in REPLACED)
    if not kinds:
        raise ArchitectureError(f"{arch} takes no activation: it has none that is a module")
    replaced = kinds.most_common(1)[0][0]
    places = [path for path, part in model.named_modules() if type(part) is replaced]
    for path in places:
        model.set_submodule(path, ACTIVATIONS[name]())
