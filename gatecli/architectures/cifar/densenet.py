"""CIFAR DenseNets-BC: three dense blocks of bottleneck layers.

Transitions between them halve the features.

Huang, Liu, van der Maaten, Weinberger, "Densely Connected Convolutional Networks" (2017), section
3: a 3x3 stem of 2k filters, (L - 4) / 6 layers a block, each a 1x1 convolution to 4k and a 3x3
convolution to k features, both behind BatchNorm and ReLU; compression 1/2; no convolution has a
bias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DENSENETS", "CifarDenseNet", "DenseLayer", "Transition"]

SHAPES = ((100, 12), (250, 24), (190, 40))  # depth L, growth k


class DenseLayer(nn.Module):
    """(N, C, H, W) -> (N, C + growth, H, W): the features that came in, and new ones."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(out)))], 1)


class Transition(nn.Module):
    """(N, C, H, W) -> (N, outputs, H / 2, W / 2)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class CifarDenseNet(nn.Module):
    """A DenseNet-BC: images (N, channels, 32, 32) -> logits (N, num_classes)."""

    def __init__(self, depth: int, growth: int, num_classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        layers = (depth - 4) // 6
        first = 2 * growth
        second = (first + layers * growth) // 2
        third = (second + layers * growth) // 2
        last = third + layers * growth
        self.conv1 = nn.Conv2d(channels, first, 3, 1, 1, bias=False)
        self.dense1 = _block(first, growth, layers)
        self.trans1 = Transition(first + layers * growth, second)
        self.dense2 = _block(second, growth, layers)
        self.trans2 = Transition(second + layers * growth, third)
        self.dense3 = _block(third, growth, layers)
        self.bn1 = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        logits: Tensor = self.fc(F.relu(self.bn1(x)).mean((2, 3)))
        return logits


def _block(channels: int, growth: int, layers: int) -> nn.Sequential:
    parts = [DenseLayer(channels + index * growth, growth) for index in range(layers)]
    return nn.Sequential(*parts)


DENSENETS: dict[str, Callable[..., nn.Module]] = {
    f"densenetbc{depth}_{growth}": partial(CifarDenseNet, depth, growth) for depth, growth in SHAPES
}
