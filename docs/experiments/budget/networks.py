"""The three networks at any width: `--arch budget.networks:NAME --arch-arg width=0.7`.

The convolutional ones keep multiples of `round_to` channels.

At width 1 `resnet20` is cifar:resnet20. The others are the papers' networks for images of 16x16:
fewer strides, fewer and narrower layers.
"""

from __future__ import annotations

from baselines import WIDTHS, ResNet
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

__all__ = ["mobilenet", "resnet20", "shallow_vit", "vit"]

STEM = 16
HEAD = 192
# expansion, channels, blocks and the first one's stride, as in MobileNetV2's table 2
INVERTED = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 3, 2), (4, 64, 3, 1))
PATCH, HEADS, LAYERS = 4, 4, 6
DIM, HIDDEN = 64, 192


def resnet20(width: float = 1.0, num_classes: int = 10, round_to: int = 1) -> nn.Module:
    """A CIFAR ResNet-20 with every layer narrower by the same share."""
    return ResNet(20, [scaled(each, width, round_to) for each in WIDTHS], num_classes, se=False)


def mobilenet(width: float = 1.0, num_classes: int = 10, round_to: int = 1) -> nn.Module:
    """A MobileNetV2 of nine inverted residuals that halves its maps twice."""
    return MobileNet(width, num_classes, round_to)


def shallow_vit(width: float = 1.0, num_classes: int = 10) -> VisionTransformer:
    """`vit` with that share of its layers."""
    return vit(1.0, num_classes, scaled(LAYERS, width))


def vit(width: float = 1.0, num_classes: int = 10, layers: int = LAYERS) -> VisionTransformer:
    """torchvision's vision transformer: six layers of four heads, 16 patches of 4x4 pixels."""
    return VisionTransformer(
        image_size=16,
        patch_size=PATCH,
        num_layers=layers,
        num_heads=HEADS,
        hidden_dim=HEADS * scaled(DIM // HEADS, width),
        mlp_dim=scaled(HIDDEN, width),
        num_classes=num_classes,
    )


def scaled(count: int, width: float, round_to: int = 1) -> int:
    """So many units at a width, in multiples of `round_to`."""
    return round_to * max(1, round(count * width / round_to))


class MobileNet(nn.Module):
    """MobileNetV2 from torchvision's own blocks, which its class builds for 224x224 alone.

    Shape: (N, 3, H, W) -> (N, num_classes).
    """

    def __init__(self, width: float, num_classes: int, round_to: int) -> None:
        super().__init__()
        channels = scaled(STEM, width, round_to)
        layers: list[nn.Module] = [_convolution(3, channels, 3)]
        for expansion, count, blocks, stride in INVERTED:
            for number in range(blocks):
                first = stride if number == 0 else 1
                out = scaled(count, width, round_to)
                layers.append(InvertedResidual(channels, out, first, expansion))
                channels = out
        last = scaled(HEAD, width, round_to)
        layers.append(_convolution(channels, last, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def _convolution(channels: int, out: int, kernel: int) -> nn.Module:
    return Conv2dNormActivation(channels, out, kernel, activation_layer=nn.ReLU6)
