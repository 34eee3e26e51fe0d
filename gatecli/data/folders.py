"""Splits of encoded images, files or not: read, cropped and augmented one by one."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from gatecli import limits
from gatecli.data.augment import PIXELS, augmented, generator, lent
from gatecli.data.depths import to_bytes
from gatecli.data.prepare import centre_crop, mode_for, pixels
from gatecli.data.splits import Digest, Split
from gatecli.data.walk import Plan
from gatecli.errors import DataError, reason

__all__ = [
    "FORMATS",
    "FolderSplit",
    "PictureSplit",
    "centre_crop",
    "decoded",
    "opened",
    "random_crop",
]

# Others may run programs: PIL gives PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")


class PictureSplit(Split):
    """Encoded images, each decoded when it is read: a subclass says where they are.

    Attributes:
        labels: int64 (N,).
    """

    parallel = True

    @abstractmethod
    def picture(self, row: int, mode: str) -> Image.Image:
        """One sample's image in a mode of PIL's.

        Raises:
            DataError: it cannot be read.
        """

    def check(self, channels: int) -> None:
        if channels not in (1, 3):
            raise DataError(
                f"image files have 1 or 3 channels, but the network takes {channels}: expected a"
                " network that takes 1 or 3"
            )

    def read(self, rows: Tensor, number: int, plan: Plan) -> Tensor:
        return torch.stack([self._one(row, plan) for row in rows.tolist()])

    def _one(self, row: int, plan: Plan) -> Tensor:
        picture = self.picture(row, mode_for(plan.input))
        draw = generator(PIXELS, plan.seed, plan.epoch, row)
        if plan.augment == "imagenet":
            return random_crop(picture, plan.input.size, draw, plan.input.interpolation)
        return augmented(pixels(picture, plan.input, crop=True), plan.augment, draw)[0]


class FolderSplit(PictureSplit):
    """Image files.

    Attributes:
        files: their names, one array of bytes (N,): a list of strings would be copied into every
            worker, count by count.
        labels: int64 (N,).
    """

    def __init__(self, files: NDArray[np.bytes_], labels: Tensor) -> None:
        self.files = files
        self.labels = labels

    def take(self, rows: Tensor) -> FolderSplit:
        return FolderSplit(self.files[rows.numpy()], self.labels[rows])

    def picture(self, row: int, mode: str) -> Image.Image:
        return opened(os.fsdecode(self.files[row]), mode)

    def identify(self, digest: Digest, *, with_pixels: bool) -> None:
        digest.update(b"\0".join(self.files.tolist()))


def opened(file: str, mode: str) -> Image.Image:
    """Read an image file.

    Args:
        file: its name.
        mode: PIL's mode to convert it to.

    Raises:
        DataError: it is no image file, is damaged, or claims too many pixels.
    """
    if not os.path.isfile(file):
        got = "something else, a pipe or a device" if os.path.exists(file) else "no file"
        raise DataError(
            f"expected {file} to be a readable image, but it is {got}: name an image file"
        )
    try:
        # an open file, as torchvision reads it: of a name PIL maps a TIFF, and does not turn it
        with open(file, "rb") as stream:
            return decoded(stream, mode)
    except Exception as error:  # PIL's decoders raise whatever they meet, SyntaxError too
        raise DataError(
            f"expected {file} to be a readable image, but reading it failed ({reason(error)}):"
            " repair or remove the file"
        ) from error


def decoded(stream: IO[bytes], mode: str) -> Image.Image:
    """Decode an image, once its header's claims are compared.

    Args:
        stream: its bytes.
        mode: PIL's mode to convert it to.

    Raises:
        Exception: it is no image, is damaged, or claims too many pixels.
    """
    with Image.open(stream, formats=FORMATS) as image:
        _check_pixels(image)
        return to_bytes(image).convert(mode)


def _check_pixels(image: Image.Image) -> None:
    """Compare what the file's header claims, before anything is decoded.

    A file of kilobytes may claim gigabytes.
    """
    if image.width * image.height > limits.PIXELS:
        raise ValueError(
            f"it claims {image.width} x {image.height} pixels, more than {limits.PIXELS:,}"
        )


def random_crop(
    image: Image.Image,
    size: tuple[int, int],
    draw: torch.Generator,
    interpolation: str = "bilinear",
) -> Tensor:
    """A crop as torchvision's RandomResizedCrop takes it, and a flip of every second image.

    Args:
        image: of any size.
        size: (height, width) in pixels.
        draw: what the crop and the flip are drawn from; it stays as it is.
        interpolation: how the crop is scaled.

    Returns:
        uint8 (C, height, width).
    """
    with lent(draw):
        top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        mirrored = torch.rand(()).item() < 0.5
    how = InterpolationMode(interpolation)
    image = TF.resized_crop(image, top, left, height, width, list(size), how)
    cropped: Tensor = TF.pil_to_tensor(TF.hflip(image) if mirrored else image)
    return cropped
