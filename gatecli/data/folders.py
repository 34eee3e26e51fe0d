"""Folders of image files, DIR/SPLIT/CLASS/IMAGE: read, cropped and augmented one by one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from gatecli import limits
from gatecli.data.augment import PIXELS, augmented, generator
from gatecli.data.splits import Plan, Split
from gatecli.errors import DataError

FORMATS = (
    "JPEG",
    "PNG",
    "PPM",
    "BMP",
    "TIFF",
    "WEBP",
    "GIF",
)  # others may run programs: PIL gives PostScript to Ghostscript
CROP = 0.875  # evaluation shows the middle 224 of 256


class FolderSplit(Split):
    """Image files and their labels, int64 (N,)."""

    parallel = True

    def __init__(self, files: NDArray[np.bytes_], labels: Tensor) -> None:
        self.files, self.labels = (
            files,
            labels,
        )  # one array of bytes: a list of strings would be copied into every worker, count by count

    def take(self, rows: Tensor) -> FolderSplit:
        return FolderSplit(self.files[rows.numpy()], self.labels[rows])

    def check(self, channels: int) -> None:
        if channels not in (1, 3):
            raise DataError(
                f"image files have 1 or 3 channels, but the network takes {channels}: expected a"
                " network that takes 1 or 3"
            )

    def read(self, rows: Tensor, number: int, plan: Plan) -> Tensor:
        return torch.stack([self._one(row, plan) for row in rows.tolist()])

    def _one(self, row: int, plan: Plan) -> Tensor:
        image = opened(os.fsdecode(self.files[row]), "L" if plan.input.channels == 1 else "RGB")
        draw = generator(PIXELS, plan.seed, plan.epoch, row)
        if plan.augment == "imagenet":
            return random_crop(image, plan.input.size, draw)
        return augmented(centre_crop(image, plan.input.size)[None], plan.augment, draw)[0]


def opened(file: str, mode: str) -> Image.Image:
    """Read an image file. Raises DataError with its name where that fails."""
    if not os.path.isfile(file):
        got = "something else, a pipe or a device" if os.path.exists(file) else "no file"
        raise DataError(
            f"expected {file} to be a readable image, but it is {got}: name an image file"
        )
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_pixels(image)
            converted: Image.Image = image.convert(mode)
            return converted
    except (
        Exception
    ) as error:  # PIL's decoders raise whatever they meet: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"expected {file} to be a readable image, but reading it failed ({reason}): repair or"
            " remove the file"
        ) from error


def _check_pixels(image: Image.Image) -> None:
    """Compare what the file's header claims, before anything is decoded.

    A file of kilobytes may claim gigabytes.
    """
    if image.width * image.height > limits.PIXELS:
        raise ValueError(
            f"it claims {image.width} x {image.height} pixels, more than {limits.PIXELS:,}"
        )


def centre_crop(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """The middle: the image is scaled to just cover size / 0.875, then cut.

    Uint8 (C, height, width).
    """
    height, width = (round(side / CROP) for side in size)
    if image.width * height >= image.height * width:
        width = max(width, int(height * image.width / image.height))
    else:
        height = max(height, int(width * image.height / image.width))
    scaled: Tensor = TF.pil_to_tensor(TF.center_crop(TF.resize(image, [height, width]), list(size)))
    return scaled


def random_crop(image: Image.Image, size: tuple[int, int], draw: torch.Generator) -> Tensor:
    """torchvision's RandomResizedCrop and a flip of every second image.

    Uint8 (C, height, width).
    """
    with torch.random.fork_rng(devices=[]):  # get_params knows the global generator only
        torch.default_generator.set_state(draw.get_state())
        top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        mirrored = torch.rand(()).item() < 0.5
    image = TF.resized_crop(image, top, left, height, width, list(size))
    cropped: Tensor = TF.pil_to_tensor(TF.hflip(image) if mirrored else image)
    return cropped


def image_folder(where: str, folder: Path) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Class names and splits of DIR/train, DIR/val and DIR/test, or of DIR/CLASS alone.

    Labels follow train's class order.

    Raises DataError for a missing folder, a class without images, or classes that differ between
    splits.
    """
    if not folder.is_dir():
        raise DataError(
            f"{where}: expected {folder} to be a folder, but there is none: check the path"
        )
    found = {name: folder / name for name in ("train", "val", "test") if (folder / name).is_dir()}
    if found and "train" not in found:
        raise DataError(
            f"{where}: expected {folder / 'train'} beside {', '.join(found)}, but there is none:"
            " put the training images there"
        )
    found = found or {"train": folder}
    if "test" in found and not _classes(found["test"]):
        del found["test"]  # ImageNet's test images come without labels
    classes = _classes(found["train"])
    if not classes:
        raise DataError(
            f"{where}: expected {found['train']} to hold a folder of images for each class, but it"
            " holds no folder: sort them so"
        )
    splits: dict[str, Split] = {
        name: _split(where, path, found["train"], classes) for name, path in found.items()
    }
    return classes, splits


def _classes(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(
            sorted(
                entry.name
                for entry in folder.iterdir()
                if entry.is_dir() and not entry.name.startswith(".")
            )
        )
    except OSError as error:
        raise DataError(
            f"expected {folder} to be a readable folder, but reading it failed ({error.strerror}):"
            " check its permissions"
        ) from error


def _split(where: str, folder: Path, train: Path, classes: tuple[str, ...]) -> FolderSplit:
    own = _classes(folder)
    for name in sorted(set(own) ^ set(classes)):
        has, lacks = (folder, train) if name in own else (train, folder)
        raise DataError(
            f"{where}: class {name} is in {has} but not in {lacks}: expected the same class folders"
            " in both"
        )
    samples = [
        (file, label) for label, name in enumerate(classes) for file in _images(folder / name)
    ]
    if not samples:
        raise DataError(
            f"{where}: expected images ({', '.join(IMG_EXTENSIONS)}) in the class folders of"
            f" {folder}, but found none: check the path"
        )
    labels = torch.tensor([label for _, label in samples])
    for label, count in enumerate(torch.bincount(labels, minlength=len(classes)).tolist()):
        if not count:
            raise DataError(
                f"{where}: class folder {folder / classes[label]} has no images: expected some, or"
                " the class removed from every split"
            )
    return FolderSplit(np.array([os.fsencode(file) for file, _ in samples]), labels)


def _images(folder: Path) -> list[str]:
    """The image files in a folder and its folders, sorted by folder, then by name.

    A folder is entered once, however many links lead to it.
    """
    found = []
    seen: set[tuple[int, int]] = set()
    _seen(str(folder), seen)
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not _seen(os.path.join(root, name), seen)]
        found.append(
            (root, [name for name in sorted(names) if name.lower().endswith(IMG_EXTENSIONS)])
        )
    return [os.path.join(root, name) for root, names in sorted(found) for name in names]


def _seen(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was seen before, under whatever name; from now on it was.

    One that is gone, or may not be looked at, counts as seen.
    """
    try:
        status = os.stat(folder)
    except OSError:
        return True
    known = (status.st_dev, status.st_ino) in seen
    seen.add((status.st_dev, status.st_ino))
    return known
