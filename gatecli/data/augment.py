"""Random augmentations of uint8 batches, and the one source of randomness of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "AUGMENTS",
    "CHANGES",
    "ORDER",
    "PIXELS",
    "Place",
    "augmented",
    "crop_flip",
    "generator",
    "lent",
    "shift",
]

AUGMENTS = ("none", "shift", "crop-flip", "imagenet")
# What a generator is for: the order of the samples, their augmentation, or what changes them then
# (gatecli.data.changes). gatecli.training has numbers of its own.
ORDER = 0
PIXELS = 1
CHANGES = 3


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where images that are read together stand in their batch: from `start` on, of `total`."""

    start: int
    total: int


def generator(purpose: int, seed: int, epoch: int, index: int = 0) -> torch.Generator:
    """A random generator that is a function of its four numbers alone.

    The global one is neither read nor moved.
    """
    numbers = [number % 2**64 for number in (purpose, seed, epoch, index)]
    words = np.array(numbers, dtype=np.uint64).view(np.uint32)
    state = np.random.SeedSequence(words.tolist()).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@contextmanager
def lent(draw: torch.Generator) -> Iterator[None]:
    """Let what knows torch's global generator alone draw what `draw` would.

    Both are afterwards as they were.
    """
    before = torch.get_rng_state()
    torch.set_rng_state(draw.get_state())
    try:
        yield
    finally:
        torch.set_rng_state(before)


def augmented(
    images: Tensor, augment: str, draw: torch.Generator, place: Place | None = None
) -> Tensor:
    """Apply `none`, `shift` or `crop-flip` to uint8 images (n, C, H, W).

    Each image has a chance of its own, drawn from `draw` by its place in the whole batch; None: the
    images are all of it.
    """
    if augment == "shift":
        return shift(images, draw, place)
    if augment == "crop-flip":
        return crop_flip(images, draw, place)
    return images


def shift(images: Tensor, draw: torch.Generator, place: Place | None = None) -> Tensor:
    """Move every image by up to 2 pixels in 32, at least 1, each way.

    What comes in repeats the border's pixels.
    """
    height, width = images.shape[-2:]
    high = _scaled(2, height)
    wide = _scaled(2, width)
    whole = place or Place(start=0, total=len(images))
    rows = _starts(images, high, draw, whole) - high + torch.arange(height)
    columns = _starts(images, wide, draw, whole) - wide + torch.arange(width)
    return _window(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))


def crop_flip(images: Tensor, draw: torch.Generator, place: Place | None = None) -> Tensor:
    """Pad by 4 zeros in 32, crop to the old size anywhere, mirror every second image on average."""
    height, width = images.shape[-2:]
    high = _scaled(4, height)
    wide = _scaled(4, width)
    whole = place or Place(start=0, total=len(images))
    rows = _starts(images, high, draw, whole) + torch.arange(height)
    columns = _starts(images, wide, draw, whole) + torch.arange(width)
    mirrored = _below(2, images, draw, whole).bool()
    columns = torch.where(mirrored, columns.flip(1), columns)
    return _window(F.pad(images, (wide, wide, high, high)), rows, columns)


def _scaled(pixels: int, side: int) -> int:
    """So many pixels of a side of 32, in another side; at least 1."""
    return max(1, round(pixels * side / 32))


def _starts(images: Tensor, reach: int, draw: torch.Generator, place: Place) -> Tensor:
    """A number from 0 to 2 * reach for each image, (n, 1)."""
    return _below(2 * reach + 1, images, draw, place)


def _below(limit: int, images: Tensor, draw: torch.Generator, place: Place) -> Tensor:
    """A number from 0 to limit - 1 for each image, (n, 1), by its place in the whole batch."""
    whole = torch.randint(limit, (place.total, 1), generator=draw)
    return whole[place.start : place.start + len(images)]


def _window(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick `rows` (n, h) and `columns` (n, w) of images (n, C, H, W): (n, C, h, w)."""
    n, channels, _, width = images.shape
    picked = images.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return picked.gather(3, columns[:, None, None, :].expand(n, channels, rows.shape[1], -1))
