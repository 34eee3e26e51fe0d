"""cifar10:DIR and cifar100:DIR, as torchvision reads and downloads them."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from gatecli.data.forms.base import Form, Found, Request, Statistics, register
from gatecli.errors import DataError, reason

__all__ = ["read"]

STATISTICS: dict[str, Statistics] = {  # of all 50,000 training images
    "cifar10": ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    "cifar100": ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
}


def read(request: Request) -> Found:
    """Class names, train and test.

    Raises:
        DataError: the files are not in the folder and may not, or cannot, be downloaded.
    """
    from gatecli.data.arrays import array_split

    made = _library_class(request.kind)
    folder = request.path
    root = folder.parent if folder.name == made.base_folder else folder
    try:
        parts = {"train": made(root, train=True), "test": made(root, train=False)}
    except (OSError, RuntimeError, ValueError) as missing:
        if not request.trusted:
            raise DataError(
                f"{request.spec}: {request.kind} is not in {root}, or damaged: pass --data"
                f" {request.spec} again to have it downloaded"
            ) from missing
        parts = {"train": _download(request, root), "test": made(root, train=False)}
    splits = {}
    for name, part in parts.items():
        splits[name] = array_split(request.spec, name, part.data, part.targets)
    return Found(
        splits=splits,
        classes=tuple(parts["train"].classes),
        statistics=STATISTICS[request.kind],
    )


def _library_class(kind: str) -> Any:
    from torchvision import datasets

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]


def _download(request: Request, root: Path) -> Any:
    import http.client
    import tarfile

    failures = (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        http.client.HTTPException,
        tarfile.TarError,
    )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
            return _library_class(request.kind)(root, train=True, download=True)
    except failures as error:
        raise DataError(
            f"{request.spec}: {request.kind} is not in {root} and downloading it failed"
            f" ({reason(error)}): put its files there"
        ) from error


for _kind in STATISTICS:
    register(Form(kind=_kind, operand="DIR", read=read, augment="crop-flip", is_path=True))
