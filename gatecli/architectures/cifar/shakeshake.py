"""CIFAR Shake-Shake networks: residual units whose branch is a random mean of two ways.

Gastaldi, "Shake-Shake regularization" (2017): 26 layers, three stages of four units, each way ReLU,
3x3 convolution, BatchNorm, ReLU, 3x3 convolution, BatchNorm. Where the maps get smaller, the
shortcut is two 1x1 convolutions to half of the width, one of them a pixel further, and a BatchNorm.
As in the GaterNet paper's networks the stem is as wide as the first stage, whose first unit has an
identity shortcut.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.graph.ops import shake

__all__ = ["SHAKESHAKES", "CifarShakeShake", "HalfShortcut", "ShakeUnit", "Way"]

torch.fx.wrap("shake")
WIDTHS = (64, 96)  # of the first stage
UNITS = 4


class Way(nn.Module):
    """(N, C, H, W) -> (N, width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(F.relu(x))))))
        return out


class HalfShortcut(nn.Module):
    """(N, C, H, W) -> (N, width, H / 2, W / 2).

    Every second pixel goes to one half of the channels, its neighbour down the diagonal to the
    other.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, width // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (-1, 1, -1, 1))
        halves = [self.conv1(x[:, :, ::2, ::2]), self.conv2(shifted[:, :, ::2, ::2])]
        out: Tensor = self.bn(torch.cat(halves, 1))
        return out


class ShakeUnit(nn.Module):
    """(N, C, H, W) -> (N, width, H / stride, W / stride).

    Where C is `width` the shortcut is the input itself.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.way1 = Way(channels, width, stride)
        self.way2 = Way(channels, width, stride)
        self.shortcut: nn.Module | None = None
        if channels != width:
            self.shortcut = HalfShortcut(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        mean = shake(self.way1(x), self.way2(x), training=self.training)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut + mean


class CifarShakeShake(nn.Module):
    """A Shake-Shake 26 2xWd, W = `width`.

    Shape:
        Images (N, channels, 32, 32) -> logits (N, num_classes).
    """

    def __init__(self, width: int, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        logits: Tensor = self.fc(F.relu(x).mean((2, 3)))
        return logits


def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
    first = ShakeUnit(channels, width, stride)
    others = [ShakeUnit(width, width, 1) for _ in range(UNITS - 1)]
    return nn.Sequential(first, *others)


SHAKESHAKES: dict[str, Callable[..., nn.Module]] = {
    f"shakeshake26_2x{width}d": partial(CifarShakeShake, width) for width in WIDTHS
}
