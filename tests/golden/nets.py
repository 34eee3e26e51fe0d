"""Small classifiers of 16x16 grey digits, named by golden files as `golden.nets:NAME`.

Golden files are replayed on these: what is here must not change any more. Library networks that are
small enough, or become so when pruned, are taken as they are; these show the other shapes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the maps' size but for its stride."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class Classifier(nn.Module):
    """Layers one after the other, then averaged maps and a linear layer."""

    def __init__(self, *layers: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(x).mean((2, 3)))
        return logits


class Basic(nn.Module):
    """Two 3x3 convolutions; the shortcut is the input, or a projection of it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.project: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.project = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.project(x))


def residual(num_classes: int = 10, width: int = 8) -> nn.Module:
    """Three stages of basic blocks: two with identity shortcuts, then two with projections."""
    blocks, inputs = list[nn.Module](), width
    for outputs, stride in ((width, 1), (width, 1), (width * 3 // 2, 2), (2 * width, 2)):
        blocks.append(Basic(inputs, outputs, stride))
        inputs = outputs
    stem = nn.Sequential(conv(1, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    return Classifier(stem, *blocks, width=inputs, num_classes=num_classes)


class Grouped(nn.Module):
    """A ResNeXt's module of four branches."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride, groups=4), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def resnext(num_classes: int = 10) -> nn.Module:
    """Three stages of two modules of four branches each."""
    modules, inputs = list[nn.Module](), 8
    for inner, outputs, stride in ((8, 16, 1), (16, 24, 2), (16, 32, 2)):
        modules += [Grouped(inputs, inner, outputs, stride), Grouped(outputs, inner, outputs, 1)]
        inputs = outputs
    stem = nn.Sequential(conv(1, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    return Classifier(stem, *modules, width=inputs, num_classes=num_classes)


class DenseLayer(nn.Module):
    """As torchvision writes it: takes the list of features before it; dropout in training."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, 8, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), conv(8, growth)

    def forward(self, features: list[Tensor]) -> Tensor:
        out = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return F.dropout(self.conv2(F.relu(self.norm2(out))), 0.1, self.training)


class Dense(nn.Module):
    """Two dense blocks of four and three layers, with a transition between them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = conv(1, 8)
        self.first = nn.ModuleList(DenseLayer(8 + 4 * index, 4) for index in range(4))
        self.norm, self.conv, self.pool = nn.BatchNorm2d(24), conv(24, 12, 1), nn.AvgPool2d(2)
        self.second = nn.ModuleList(DenseLayer(12 + 4 * index, 4) for index in range(3))
        self.last, self.head = nn.BatchNorm2d(24), nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.first:
            features.append(layer(features))
        features = [self.pool(self.conv(F.relu(self.norm(torch.cat(features, 1)))))]
        for layer in self.second:
            features.append(layer(features))
        maps = F.relu(self.last(torch.cat(features, 1)))
        logits: Tensor = self.head(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        return logits


def dense(num_classes: int = 10) -> nn.Module:
    return Dense(num_classes)


class PaddedDense(nn.Module):
    """A dense block read by padded 3x3 convolutions, so that some layers cannot be taken out."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = conv(1, 8)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * index) for index in range(5))
        self.convs = nn.ModuleList(conv(8 + 4 * index, 4) for index in range(4))
        self.head = nn.Linear(24, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.stem(x), 2)
        for norm, layer in zip(self.norms, self.convs, strict=False):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        logits: Tensor = self.head(F.relu(self.norms[4](x)).mean((2, 3)))
        return logits


def padded_dense(num_classes: int = 10) -> nn.Module:
    return PaddedDense(num_classes)


def unit(inputs: int, outputs: int, size: int) -> nn.Module:
    """A convolution, a BatchNorm and a ReLU."""
    return nn.Sequential(
        conv(inputs, outputs, size), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Mixed(nn.Module):
    """An Inception module: 1x1, 3x3 and two 3x3 convolutions, and a pooling with one behind it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = unit(inputs, 4, 1), unit(inputs, 6, 3)
        self.twice, self.pooled = (
            nn.Sequential(unit(inputs, 4, 1), unit(4, 6, 3)),
            unit(inputs, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.max_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.three(x), self.twice(x), pooled], 1)


def inception(num_classes: int = 10) -> nn.Module:
    layers = [unit(1, 8, 3), Mixed(8), nn.MaxPool2d(2), Mixed(20), nn.MaxPool2d(2), Mixed(20)]
    return Classifier(*layers, width=20, num_classes=num_classes)


class Joined(nn.Module):
    """An addition at which three convolutions meet, two of them summed before, and its readers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two = conv(inputs, outputs), conv(inputs, outputs, 1)
        self.three = nn.Sequential(conv(inputs, outputs), nn.BatchNorm2d(outputs))
        self.left, self.right = conv(outputs, outputs), conv(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        met = F.relu(self.one(x) + self.two(x) + self.three(x))
        return torch.cat([F.relu(self.left(met)), self.right(met)], 1)


def joined(num_classes: int = 10) -> nn.Module:
    """Sums that several filters meet at, none of them a residual block."""
    layers = [unit(1, 8, 3), Joined(8, 8), nn.AvgPool2d(2), Joined(16, 12)]
    return Classifier(*layers, width=24, num_classes=num_classes)


class Tokens(nn.Module):
    """A small transformer on 4x4 patches: values (N, L, C), two branches a layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(6))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(3)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(3)
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for index, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            y = self.norms[2 * index](x)
            x = x + attention(y, y, y, need_weights=False)[0]
            x = x + mlp(self.norms[2 * index + 1](x))
        logits: Tensor = self.head(x.mean(1))
        return logits


def tokens(num_classes: int = 10) -> nn.Module:
    return Tokens(num_classes)
