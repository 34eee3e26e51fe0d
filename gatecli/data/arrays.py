"""Splits that lie in memory as uint8 arrays: everything is done to whole batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatecli.data.augment import AUGMENTS, PIXELS, augmented, generator
from gatecli.data.prepare import arrays_resized, luminance
from gatecli.data.splits import Digest, Split
from gatecli.data.walk import Plan
from gatecli.errors import DataError
from gatecli.traced.recipe import InputSpec

__all__ = ["ArraySplit", "array_split"]

MAX_CLASSES = 65536  # a label above is a mistake, and a list of so many class names a waste
KEEP_BYTES = 4 * 2**30  # images that take more than this once resized are resized batch by batch


class ArraySplit(Split):
    """Images in memory.

    Attributes:
        images: uint8 (N, 1 or 3, H, W).
        labels: int64 (N,).
    """

    augments = tuple(name for name in AUGMENTS if name != "imagenet")

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels
        self._ready: _Ready | None = None

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
        images = self._prepared(plan.input)[rows]
        if not self._is_ready(plan.input):
            images = arrays_resized(images, plan.input)
        draw = generator(PIXELS, plan.seed, plan.epoch, number)
        return augmented(images, plan.augment, draw, plan.place)

    def _prepared(self, input: InputSpec) -> Tensor:
        """All images in the network's size, made once.

        Grayscale ones are repeated only when a batch leaves.
        """
        height, width = input.size
        grey = input.channels == 1
        ready = self._ready
        if ready is None or ready.asked != _asked(input):
            images = luminance(self.images) if grey else self.images
            done = images.shape[0] * images.shape[1] * height * width <= KEEP_BYTES
            if done:
                images = arrays_resized(images, input)
            ready = _Ready(asked=_asked(input), done=done, images=images)
            self._ready = ready
        return ready.images

    def _is_ready(self, input: InputSpec) -> bool:
        """Whether what `_prepared` gives has the network's size."""
        return self._ready is not None and self._ready.done and self._ready.asked == _asked(input)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel's values in [0, 1], exact in float64."""
        values = np.arange(256) / 255
        means = []
        stds = []
        for channel in self.images.unbind(1):
            share = torch.bincount(channel.flatten(), minlength=256).numpy() / channel.numel()
            mean = float(share @ values)
            std = float(np.sqrt(share @ (values - mean) ** 2))
            means.append(mean)
            stds.append(std or 1.0)  # constant images: nothing to scale
        return tuple(means), tuple(stds)

    def identify(self, digest: Digest, *, with_pixels: bool) -> None:
        if with_pixels:
            digest.update(str(tuple(self.images.shape)).encode())
            digest.update(self.images.numpy().data)


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """Images prepared as `asked`, kept from batch to batch.

    Where they would take too much so, they have their old size, and are not `done`.
    """

    asked: tuple[Any, ...]
    done: bool
    images: Tensor


def _asked(input: InputSpec) -> tuple[Any, ...]:
    """What the pixels of arrays depend on."""
    parts = (input.size, input.box, input.crop_mode, input.interpolation, input.crops_arrays)
    return (*parts, input.channels == 1)


def array_split(where: str, name: str, images: Any, labels: Any) -> ArraySplit:
    """Check what a file or a user's function gave, and make a split of it.

    Args:
        where: what errors begin with.
        name: of the split, for errors.
        images: uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3).
        labels: integers (N,) or (N, 1).

    Raises:
        DataError: they are something else.
    """
    pixels = np.asarray(images)
    numbers = np.asarray(labels)
    is_image = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3))
    if pixels.dtype != np.uint8 or not is_image:
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
    copied = np.array(pixels, order="C")  # the giver's array may change, or be read-only
    return ArraySplit(
        torch.from_numpy(copied), torch.from_numpy(_labels(where, name, numbers, len(pixels)))
    )


def _labels(where: str, name: str, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        wish = f"integers of shape ({count},) or ({count}, 1), one for each image"
        raise DataError(
            f"{where}: expected the {name} labels to be {wish}, but got {labels.dtype}"
            f" {labels.shape}: convert them"
        )
    lowest = int(labels.min())
    highest = int(labels.max())
    if lowest < 0 or highest >= MAX_CLASSES:
        raise DataError(
            f"{where}: expected the {name} labels to count from 0 to the number of classes - 1, but"
            f" got {lowest} to {highest}: renumber"
        )
    return labels.reshape(-1).astype(np.int64)
