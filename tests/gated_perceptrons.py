"""Networks with gated perceptrons: `down(act(gate x) * up x)`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Apart", "Cut", "Maps", "Normed", "Packed"]


class Tokens(nn.Module):
    """Patches of 8x8 pixels as tokens, one perceptron, and a classifier of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.fc = nn.Linear(8, 4)

    def perceptron(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.perceptron(x)
        return self.fc(x.mean(1))


class Apart(Tokens):
    """Two layers; the factor with the activation is computed last."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.drop = nn.Dropout(0.1)

    def perceptron(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.down(self.drop(up * F.silu(self.gate(x))))


class Packed(Tokens):
    """One layer in two halves, and a sigmoid, which is not 0 at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(8, 32), nn.Linear(16, 8)

    def perceptron(self, x: Tensor) -> Tensor:
        gate, up = self.both(x).chunk(2, dim=-1)
        return self.down(torch.sigmoid(gate) * up)


class Cut(Tokens):
    """What reads the units is itself cut in halves, as what scales and shifts others is."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 16)

    def perceptron(self, x: Tensor) -> Tensor:
        scale, shift = self.down(F.gelu(self.up(x))).chunk(2, -1)
        return x * scale + shift


class Maps(nn.Module):
    """1x1 convolutions, each with a BatchNorm, and one layer in two halves of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.gate, self.bn, self.up = nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(8, 16, 1)
        self.down = nn.Conv2d(16, 8, 1)
        self.both, self.out = nn.Conv2d(8, 24, 1), nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.bn(self.gate(x))) * self.up(x))
        gate, up = torch.chunk(self.both(x), 2, 1)
        x = x + self.out(F.hardswish(gate).mul(up))
        return self.fc(x.mean((2, 3)))


class Normed(Apart):
    """A norm over all units reads the product: none of them can go by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def perceptron(self, x: Tensor) -> Tensor:
        return self.down(self.norm(F.silu(self.gate(x)) * self.up(x)))
