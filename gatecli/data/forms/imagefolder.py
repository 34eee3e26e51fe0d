"""imagefolder:DIR, image files in DIR/SPLIT/CLASS, or in DIR/CLASS alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gatecli.data.forms.base import SPLITS, Form, Found, Request, register
from gatecli.errors import DataError

if TYPE_CHECKING:
    from gatecli.data.folders import FolderSplit

__all__ = ["read"]


def read(request: Request) -> Found:
    """Class names and splits; labels follow train's class order.

    Raises:
        DataError: a folder is missing, a class has no images, or splits differ in their classes.
    """
    folders = _split_folders(request.spec, request.path)
    train = folders["train"]
    if "test" in folders and not _classes(folders["test"]):
        del folders["test"]  # ImageNet's test images come without labels
    classes = _classes(train)
    if not classes:
        raise DataError(
            f"{request.spec}: expected {train} to hold a folder of images for each class, but it"
            " holds no folder: sort them so"
        )
    splits = {}
    for name, folder in folders.items():
        _check_classes(request.spec, folder, train, classes)
        splits[name] = _split(request.spec, folder, classes)
    return Found(splits=splits, classes=classes)


def _split_folders(where: str, folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(
            f"{where}: expected {folder} to be a folder, but there is none: check the path"
        )
    found = {name: folder / name for name in SPLITS if (folder / name).is_dir()}
    if found and "train" not in found:
        raise DataError(
            f"{where}: expected {folder / 'train'} beside {', '.join(found)}, but there is none:"
            " put the training images there"
        )
    return found or {"train": folder}


def _classes(folder: Path) -> tuple[str, ...]:
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError as error:
        raise DataError(
            f"expected {folder} to be a readable folder, but reading it failed ({error.strerror}):"
            " check its permissions"
        ) from error
    return tuple(sorted(name for name in names if not name.startswith(".")))


def _check_classes(where: str, folder: Path, train: Path, classes: tuple[str, ...]) -> None:
    own = _classes(folder)
    differing = sorted(set(own) ^ set(classes))
    if not differing:
        return
    name = differing[0]
    has, lacks = (folder, train) if name in own else (train, folder)
    raise DataError(
        f"{where}: class {name} is in {has} but not in {lacks}: expected the same class folders in"
        " both"
    )


def _split(where: str, folder: Path, classes: tuple[str, ...]) -> FolderSplit:
    import numpy as np
    import torch
    from torchvision.datasets.folder import IMG_EXTENSIONS

    from gatecli.data.folders import FolderSplit

    files: list[bytes] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        own = _images(folder / name, IMG_EXTENSIONS)
        files += map(os.fsencode, own)
        labels += [label] * len(own)
        if not own:
            empty.append(folder / name)
    if not files:
        raise DataError(
            f"{where}: expected images ({', '.join(IMG_EXTENSIONS)}) in the class folders of"
            f" {folder}, but found none: check the path"
        )
    if empty:
        raise DataError(
            f"{where}: class folder {empty[0]} has no images: expected some, or the class removed"
            " from every split"
        )
    return FolderSplit(np.array(files), torch.tensor(labels))


def _images(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """The image files in a folder and its folders, sorted by folder, then by name.

    A folder is entered once, however many links lead to it.
    """
    found = []
    seen: set[tuple[int, int]] = set()
    _seen(str(folder), seen)
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not _seen(os.path.join(root, name), seen)]
        found.append((root, sorted(name for name in names if name.lower().endswith(endings))))
    files = []
    for root, names in sorted(found):
        files += [os.path.join(root, name) for name in names]
    return files


def _seen(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was seen before, under whatever name; from now on it was.

    One that is gone, or may not be looked at, counts as seen.
    """
    try:
        status = os.stat(folder)
    except OSError:
        return True
    key = (status.st_dev, status.st_ino)
    known = key in seen
    seen.add(key)
    return known


register(
    Form(
        kind="imagefolder",
        operand="DIR",
        read=read,
        augment="imagenet",
        is_path=True,
        is_cropped=True,
    )
)
