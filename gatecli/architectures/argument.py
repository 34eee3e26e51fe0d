"""What one argument of an architecture may be, and those that several libraries' have."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = [
    "CHANNELS",
    "CIFAR",
    "CLASSES",
    "COUNTS",
    "MAXPOOL",
    "PRE_CIFAR",
    "STEM",
    "STEM_STRIDE",
    "STRIDE_ON",
    "Argument",
]


@dataclass(frozen=True)
class Argument:
    """What one argument may be.

    Attributes:
        kind: int, float, bool or str.
        low: the least that an integer may be.
        high: the most that an integer may be.
        choices: the words that it may be, if these are given.
        bounded: whether a number that is no integer has these bounds too.
    """

    kind: type
    low: float = 0
    high: float = 65_536
    choices: tuple[str, ...] = ()
    bounded: bool = False

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(self.choices)
        words = {
            int: f"an integer from {self.low} to {self.high}",
            float: "a number",
            bool: "true or false",
            str: "a word",
        }
        return words[self.kind]

    def takes(self, value: object) -> bool:
        """Whether it may have this value."""
        if self.kind is str:
            return isinstance(value, str) and (not self.choices or value in self.choices)
        if isinstance(value, bool) or self.kind is bool:
            return isinstance(value, bool) and self.kind is bool
        if self.kind is float:
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                return False
            return not self.bounded or self.low <= value <= self.high
        return isinstance(value, int) and self.low <= value <= self.high


CLASSES = Argument(int, 1, 10_000_000)
CHANNELS = Argument(int, 1)
COUNTS = {"num_classes": CLASSES, "channels": CHANNELS}
CIFAR = {
    **COUNTS,
    "shortcut": Argument(str, choices=("projection", "pad")),
    "pad": Argument(str, choices=("both", "end")),  # where a padded shortcut has its zeros
}
STRIDE_ON = Argument(str, choices=("conv2", "conv1"))  # the convolution that has the stride
PRE_CIFAR = {
    **COUNTS,
    "narrow": Argument(bool),  # a first group of 16 channels, not 64
    "stride_on": STRIDE_ON,
    "project": Argument(str, choices=("input", "activation")),  # what a projection reads
}
MAXPOOL = Argument(bool)  # whether the stem has one, overriding `stem`
STEM_STRIDE = Argument(int, 1, 16)
STEM = {
    # cifar: a 3x3 convolution with stride 1, no max-pool
    "stem": Argument(str, choices=("imagenet", "cifar")),
    "maxpool": MAXPOOL,
    "stem_stride": STEM_STRIDE,
}
