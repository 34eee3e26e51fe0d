"""Splits that lie in memory as uint8 arrays: everything is done to whole batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gatecli.data.augment import AUGMENTS, PIXELS, augmented, generator
from gatecli.data.splits import Plan, Split
from gatecli.errors import DataError
from gatecli.traced.recipe import InputSpec

MAX_CLASSES = 65536  # a label above is a mistake, and a list of so many class names a waste
KEEP_BYTES = 4 * 2**30  # images that take more than this once resized are resized batch by batch
CHUNK = 1024  # images resized at a time: they are float32 then


class ArraySplit(Split):
    """uint8 images (N, 1 or 3, H, W) and int64 labels (N,)."""

    augments = tuple(name for name in AUGMENTS if name != "imagenet")

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self._ready: tuple[tuple[tuple[int, int], bool], Tensor] | None = (
            None  # for which size and luminance, and the images
        )

    def take(self, rows: Tensor) -> ArraySplit:
        return ArraySplit(self.images[rows], self.labels[rows])

    def check(self, channels: int) -> None:
        own = self.images.shape[1]
        if own == 3 and channels not in (1, 3):
            raise DataError(
                f"the images have 3 channels, but the network takes {channels}: expected a network"
                " that takes 1 or 3"
            )

    def read(self, rows: Tensor, number: int, plan: Plan) -> Tensor:
        images = resized(self._prepared(plan.input)[rows], plan.input.size)
        return augmented(images, plan.augment, generator(PIXELS, plan.seed, plan.epoch, number))

    def _prepared(self, input: InputSpec) -> Tensor:
        """All images in the network's size, once.

        Grayscale ones are repeated only when a batch leaves.
        """
        height, width = input.size
        key = ((height, width), input.channels == 1)
        if self._ready is None or self._ready[0] != key:
            images = luminance(self.images) if input.channels == 1 else self.images
            too_much = images.shape[0] * images.shape[1] * height * width > KEEP_BYTES
            self._ready = key, images if too_much else resized(images, input.size)
        return self._ready[1]

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel's values in [0, 1], exact in float64."""
        values = np.arange(256) / 255
        means, stds = [], []
        for channel in self.images.unbind(1):
            share = torch.bincount(channel.flatten(), minlength=256).numpy() / channel.numel()
            means.append(float(share @ values))
            stds.append(
                float(np.sqrt(share @ (values - means[-1]) ** 2)) or 1.0
            )  # constant images: nothing to scale
        return tuple(means), tuple(stds)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (N, C, H, W) in another (height, width): bilinear, antialiased, rounded.

    One image's result depends on it alone.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    chunks = (
        F.interpolate(chunk.float(), tuple(size), mode="bilinear", antialias=True)
        for chunk in torch.split(images, CHUNK)
    )
    return torch.cat([chunk.round_().clamp_(0, 255).to(torch.uint8) for chunk in chunks])


def luminance(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) as ITU-R 601 grey (N, 1, H, W), with the integers that PIL uses.

    Grey stays as it is.
    """
    if images.shape[1] == 1:
        return images
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
    grey = [
        ((chunk.int() * weights).sum(1, keepdim=True) + 2**15).div_(2**16, rounding_mode="floor")
        for chunk in torch.split(images, CHUNK)
    ]
    return torch.cat(grey).to(torch.uint8)


def array_split(where: str, name: str, images: Any, labels: Any) -> ArraySplit:
    """Check what a file or a user's function gave.

    Images uint8 (N, H, W[, 1 or 3]), labels integers (N,) or (N, 1).

    Raises DataError, beginning with `where`, and with the split's `name` in it.
    """
    pixels, numbers = np.asarray(images), np.asarray(labels)
    if pixels.dtype != np.uint8 or not (
        pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3))
    ):
        got = f"{pixels.dtype} {pixels.shape}"
        raise DataError(
            f"{where}: expected the {name} images to be uint8 (N, H, W), (N, H, W, 1) or (N, H, W,"
            f" 3), but got {got}: convert them"
        )
    if pixels.size == 0:
        raise DataError(
            f"{where}: the {name} split has no samples, its images are {pixels.shape}: fill it or"
            " leave it out"
        )
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    copied = torch.from_numpy(
        np.array(pixels, order="C")
    )  # a copy: the giver's array may change, or be read-only
    return ArraySplit(copied, torch.from_numpy(_labels(where, name, numbers, len(pixels))))


def _labels(where: str, name: str, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        wish = f"integers of shape ({count},) or ({count}, 1), one for each image"
        raise DataError(
            f"{where}: expected the {name} labels to be {wish}, but got {labels.dtype}"
            f" {labels.shape}: convert them"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        raise DataError(
            f"{where}: expected the {name} labels to count from 0 to the number of classes - 1, but"
            f" got {lowest} to {highest}: renumber"
        )
    return labels.reshape(-1).astype(np.int64)
