"""CIFAR ResNeXts of the connectivity paper: each branch has a last BatchNorm of its own.

Ahmed & Torresani, "Connectivity Learning in Multi-Branch Networks" (2017), table 5: a 3x3 stem,
three stages of modules, depth 2 + 3 modules, global average pooling and one linear layer. A
module's branches are 1x1, 3x3 and 1x1 convolutions, each with a BatchNorm; one projection is shared
by a module's branches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gatecli.graph.ops import sum_branches

__all__ = ["RESNEXTS", "Branches", "CifarResNeXt"]

torch.fx.wrap("sum_branches")
SHAPES = ((20, 4), (29, 4), (29, 8), (29, 64))  # depth, width of a branch in the first stage
CARDINALITY = 8  # branches


class Branches(nn.Module):
    """A module of `cardinality` branches: (N, C, H, W) -> (N, outputs, H / stride, W / stride)."""

    def __init__(
        self,
        channels: int,
        width: int,
        outputs: int,
        cardinality: int,
        stride: int,
        *,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        inner = width * cardinality
        every = outputs * cardinality
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, every, 1, groups=cardinality, bias=False)
        self.bn3 = nn.BatchNorm2d(every)
        # so that the sum over the branches that are read starts with a BatchNorm's variance: else a
        # rate of .1 or .03 learns nothing
        nn.init.constant_(self.bn3.weight, (fan_in or cardinality) ** -0.5)
        self.relu = nn.ReLU(inplace=True)
        self.cardinality = cardinality
        self.downsample: nn.Module | None = None
        if channels != outputs or stride != 1:
            projection = nn.Conv2d(channels, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out = sum_branches(out, self.cardinality)
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(out + shortcut)
        return out


class CifarResNeXt(nn.Module):
    """A CIFAR ResNeXt: images (N, channels, 32, 32) -> logits (N, num_classes).

    The stages are 64, 128 and 256 wide, with `width` 64 four times that. `fan_in` is how many
    branches each branch will read in a training from scratch; None: all of them.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        channels: int = 3,
        *,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        stage = partial(_stage, modules=(depth - 2) // 9, fan_in=fan_in)
        first = 64 if width < 64 else 256
        self.conv1 = nn.Conv2d(channels, first // 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first // 4)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(first // 4, width, first, stride=1)
        self.layer2 = stage(first, 2 * width, 2 * first, stride=2)
        self.layer3 = stage(2 * first, 4 * width, 4 * first, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * first, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _stage(
    channels: int, width: int, outputs: int, *, modules: int, stride: int, fan_in: int | None
) -> nn.Sequential:
    made = partial(Branches, width=width, outputs=outputs, cardinality=CARDINALITY, fan_in=fan_in)
    others = (made(outputs, stride=1) for _ in range(modules - 1))
    return nn.Sequential(made(channels, stride=stride), *others)


RESNEXTS: dict[str, Callable[..., nn.Module]] = {
    f"resnext{depth}_{CARDINALITY}x{width}d": partial(CifarResNeXt, depth, width)
    for depth, width in SHAPES
}
