"""CIFAR ResNets: the small residual networks that the gating papers use at 32x32.

He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2: a 3x3 stem, three
groups of n basic blocks with 16, 32 and 64 filters, depth 6n + 2, global average pooling and one
linear layer.

He et al., "Identity Mappings in Deep Residual Networks" (2016): the same with BatchNorm and ReLU
before each convolution, and n bottlenecks a group, depth 9n + 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "PRERESNETS",
    "RESNETS",
    "BasicBlock",
    "CifarPreResNet",
    "CifarResNet",
    "PadShortcut",
    "PreBottleneck",
]

DEPTHS = (20, 32, 44, 56, 110)
PRE_DEPTHS = (56, 110, 164)
WIDTHS = (16, 32, 64)


class PadShortcut(nn.Module):
    """Option A of He et al.: take every second pixel and fill the new channels with zeros.

    It has no weights.

    Args:
        new_channels: how many are filled.
        stride: of the pixels.
        pad: where the zeros go: "both" sides of the channels or at their "end"; released
            checkpoints differ in it.
    """

    def __init__(self, new_channels: int, stride: int, pad: str) -> None:
        super().__init__()
        before = new_channels // 2 if pad == "both" else 0
        self.padding = (0, 0, 0, 0, before, new_channels - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C, H, W) -> (N, width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int, shortcut: str, pad: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if channels == width and stride == 1:
            return
        if shortcut == "pad":
            self.downsample = PadShortcut(width - channels, stride, pad)
        else:
            projection = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(out + shortcut)
        return out


class CifarResNet(nn.Module):
    """A CIFAR ResNet: images (N, channels, 32, 32) -> logits (N, num_classes).

    Args:
        depth: 6n + 2 layers.
        num_classes: of the images.
        channels: of the images.
        shortcut: "projection" (1x1 convolutions, option B) or "pad" (option A).
        pad: as in PadShortcut.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        channels: int = 3,
        shortcut: str = "projection",
        pad: str = "both",
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.width = WIDTHS[0]
        self.conv1 = nn.Conv2d(channels, self.width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._group(WIDTHS[0], blocks, 1, shortcut, pad)
        self.layer2 = self._group(WIDTHS[1], blocks, 2, shortcut, pad)
        self.layer3 = self._group(WIDTHS[2], blocks, 2, shortcut, pad)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[2], num_classes)
        _initialise(self)

    def _group(
        self, width: int, blocks: int, stride: int, shortcut: str, pad: str
    ) -> nn.Sequential:
        group = []
        for index in range(blocks):
            group.append(BasicBlock(self.width, width, stride if index == 0 else 1, shortcut, pad))
            self.width = width
        return nn.Sequential(*group)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class PreBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after BatchNorm and ReLU.

    Shape:
        (N, channels, H, W) -> (N, 4 width, H / stride, W / stride).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        *,
        normed: bool,
        stride_on: str,
        project: str,
    ) -> None:
        super().__init__()
        outputs = 4 * width
        strides = (stride, 1) if stride_on == "conv1" else (1, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1, strides[0], bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, strides[1], 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if channels != outputs:
            projection = nn.Conv2d(channels, outputs, 1, stride, bias=False)
            norm = [nn.BatchNorm2d(outputs)] if normed else []
            self.downsample = nn.Sequential(projection, *norm)
        self.project = project

    def forward(self, x: Tensor) -> Tensor:
        active: Tensor = self.relu(self.bn1(x))
        out: Tensor = self.conv2(self.relu(self.bn2(self.conv1(active))))
        out = self.conv3(self.relu(self.bn3(out)))
        if self.downsample is not None:
            x = self.downsample(active if self.project == "activation" else x)
        return out + x


class CifarPreResNet(nn.Module):
    """A pre-activation CIFAR ResNet: images (N, channels, 32, 32) -> logits (N, num_classes).

    Its groups are 16-64, 32-128 and 64-256 wide.

    Args:
        depth: 9n + 2 layers.
        num_classes: of the images.
        channels: of the images.
        narrow: the first group is 4-16, so that it needs no projection, and the other projections
            have a BatchNorm: the ResNet-164 whose size the GaterNet paper gives.
        stride_on: the convolution that has a block's stride, "conv1" or "conv2".
        project: what a projection reads, the block's "input" or its first "activation".
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        channels: int = 3,
        *,
        narrow: bool = False,
        stride_on: str = "conv2",
        project: str = "input",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, 1, 1, bias=False)
        first, second, third = WIDTHS
        if narrow:
            first = 4

        def group(channels: int, width: int, stride: int) -> nn.Sequential:
            blocks = []
            for _ in range((depth - 2) // 9):
                block = PreBottleneck(
                    channels, width, stride, normed=narrow, stride_on=stride_on, project=project
                )
                blocks.append(block)
                channels = 4 * width
                stride = 1
            return nn.Sequential(*blocks)

        self.layer1 = group(WIDTHS[0], first, 1)
        self.layer2 = group(4 * first, second, 2)
        self.layer3 = group(4 * second, third, 2)
        self.bn = nn.BatchNorm2d(4 * third)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * third, num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(self.relu(self.bn(x))), 1))
        return logits


def _initialise(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


Makers = dict[str, Callable[..., nn.Module]]
RESNETS: Makers = {f"resnet{depth}": partial(CifarResNet, depth) for depth in DEPTHS}
PRERESNETS: Makers = {f"preresnet{d}": partial(CifarPreResNet, d) for d in PRE_DEPTHS}
