"""imagefolder:DIR, image files in DIR/SPLIT/CLASS, or in DIR/CLASS alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gatecli.data.forms.base import Form, Found, Request, register
from gatecli.data.layout import class_folders, layout_of
from gatecli.data.walked import files_within
from gatecli.errors import DataError

if TYPE_CHECKING:
    from gatecli.data.folders import FolderSplit

__all__ = ["read"]


def read(request: Request) -> Found:
    """Class names and splits; labels follow the order of the class names of all splits.

    Raises:
        DataError: a folder is missing, or a class folder has no images.
    """
    layout = layout_of(request.spec, request.path)
    train = layout.folders["train"]
    if not class_folders(train):
        raise DataError(
            f"{request.spec}: expected {train} to hold a folder of images for each class, but it"
            " holds no folder: sort them so"
        )
    own = {name: class_folders(folder) for name, folder in layout.folders.items()}
    everything: set[str] = set()
    for names in own.values():
        everything.update(names)
    classes = tuple(sorted(everything))
    splits = {}
    for name, folder in layout.folders.items():
        splits[name] = _split(request.spec, folder, classes)
    alone = []
    for split, names in own.items():
        alone += [(name, layout.folders[split].name) for name in names if name not in own["train"]]
    return Found(
        splits=splits,
        classes=classes,
        sorted_names=True,
        alone=tuple(alone),
        notes=layout.notes,
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
        if not (folder / name).is_dir():
            continue
        own = files_within(folder / name, IMG_EXTENSIONS)
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
            f"{where}: class folder {empty[0]} has no images: expected some, or the folder removed"
        )
    return FolderSplit(np.array(files), torch.tensor(labels))


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
