"""Where arrays come from: scikit-learn's digits, CIFAR, npz files, and users' own functions."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import math
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from gatecli import limits
from gatecli.data.arrays import ArraySplit, array_split
from gatecli.errors import DataError

NAMES = ("train", "val", "test")
CIFARS = {"cifar10": CIFAR10, "cifar100": CIFAR100}
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)  # what np.load makes of a damaged file


def cut(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide samples by chance, `fraction` of every class (at least one, never all) going to the
    second part: rows, rows.

    RandomState is frozen by numpy's policy, so that a recorded seed gives the same division for
    ever.
    """
    chance, classes = np.random.RandomState(seed % 2**32), labels.numpy()
    second = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
        second[chance.permutation(rows)[:count]] = True
    return torch.from_numpy(np.flatnonzero(~second)), torch.from_numpy(np.flatnonzero(second))


def digits(where: str) -> dict[str, ArraySplit]:
    """scikit-learn's 1,797 handwritten digits, 8x8.

    65 % train, 15 % val, 20 % test, always the same. Raises DataError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install 'gatecli[demo]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    everything = array_split(
        where, "train", np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels
    )
    fit, test = cut(everything.labels, 0.2, 0)
    train, val = cut(everything.labels[fit], 0.15 / 0.8, 0)
    return {
        name: everything.take(rows)
        for name, rows in zip(NAMES, (fit[train], fit[val], test), strict=True)
    }


def cifar(
    where: str, kind: str, folder: Path, download: bool
) -> tuple[tuple[str, ...], dict[str, ArraySplit]]:
    """Class names, train and test.

    Raises DataError where the files are not in `folder` and may not or can't be downloaded.
    """
    made = CIFARS[kind]
    root = folder.parent if folder.name == made.base_folder else folder
    try:
        parts = {"train": made(root, train=True), "test": made(root, train=False)}
    except (OSError, RuntimeError, ValueError) as missing:
        if not download:
            raise DataError(
                f"{where}: {kind} is not in {root}, or damaged: pass --data {where} again to have"
                " it downloaded"
            ) from missing
        parts = {"train": _download(where, kind, root), "test": made(root, train=False)}
    return tuple(parts["train"].classes), {
        name: array_split(where, name, part.data, part.targets) for name, part in parts.items()
    }


def _download(where: str, kind: str, root: Path) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to --json
            return CIFARS[kind](root, train=True, download=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        http.client.HTTPException,
        tarfile.TarError,
    ) as error:
        raise DataError(
            f"{where}: {kind} is not in {root} and downloading it failed ({_line(error)}): put its"
            " files there"
        ) from error


def npz(where: str, file: Path) -> dict[str, ArraySplit]:
    """The splits of a file with MedMNIST's keys.

    Raises DataError for a file that is none, lacks keys or holds what does not fit.
    """
    if not file.is_file():
        there = (
            "it is a pipe or a device"
            if file.exists() and not file.is_dir()
            else "there is no such file"
        )
        raise DataError(f"{where}: expected {file} to be an npz file, but {there}: check the path")
    try:
        with file.open("rb") as stream:  # np.load leaves a damaged file open
            members = np.load(stream, allow_pickle=False)
            if not isinstance(members, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            keys = _keys(where, members)
            _check_claims(members, keys, file.stat().st_size)
            arrays = {key: members[key] for key in keys}
    except BROKEN as error:
        raise DataError(
            f"{where}: expected an npz file of plain arrays, but reading it failed"
            f" ({_line(error)}): save it with np.savez"
        ) from error
    names = [name for name in NAMES if f"{name}_images" in arrays]
    return {
        name: array_split(where, name, arrays[f"{name}_images"], arrays[f"{name}_labels"])
        for name in names
    }


def _check_claims(members: np.lib.npyio.NpzFile, keys: list[str], stored: int) -> None:
    """Compare what arrays claim with what the file holds, before any is allocated.

    Raises ValueError.
    """
    assert members.zip is not None
    names = set(members.zip.namelist())
    entries = {key: members.zip.getinfo(key if key in names else f"{key}.npy") for key in keys}
    unpacked = sum(entry.file_size for entry in entries.values())
    if unpacked > limits.unpacked(stored):
        raise ValueError(
            f"its {stored:,} bytes unpack to {unpacked:,}, more than is taken from a compressed"
            " file of that size"
        )
    for key, entry in entries.items():
        with members.zip.open(entry) as array:
            asked = _array_bytes(array)
        if asked > entry.file_size:
            raise ValueError(f"its array {key} claims {asked:,} bytes, but has {entry.file_size:,}")


def _array_bytes(array: IO[bytes]) -> int:
    """The bytes of an array by its header; 0 where np.load finds none."""
    if array.read(6) != np.lib.format.MAGIC_PREFIX:
        return 0
    array.seek(0)
    version = np.lib.format.read_magic(array)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has an array of format version {version}")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _order, kind = read(array)
    return 0 if kind.hasobject else math.prod(shape) * int(kind.itemsize)  # np.load refuses objects


def _keys(where: str, members: np.lib.npyio.NpzFile) -> list[str]:
    """The keys to read: images and labels of train, and of val and test where there are any."""
    wanted = [
        n
        for n in NAMES
        if n == "train" or f"{n}_images" in members.files or f"{n}_labels" in members.files
    ]
    keys = [f"{name}_{what}" for name in wanted for what in ("images", "labels")]
    missing = [key for key in keys if key not in members.files]
    if missing:
        raise DataError(
            f"{where}: expected the keys {', '.join(missing)}, but the file has"
            f" {', '.join(members.files) or 'none'}: rename them so"
        )
    return keys


def function(where: str, module: str, name: str) -> dict[str, ArraySplit]:
    """Import and call a user's function: {"train": (images, labels), and perhaps "val", "test"}.

    Raises DataError whatever goes wrong in it.
    """
    try:
        with (
            _current_folder_first(),
            contextlib.redirect_stdout(sys.stderr),
        ):  # stdout belongs to --json
            given = getattr(importlib.import_module(module), name)()
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        reason = f"{type(error).__name__}: {_line(error)}"
        raise DataError(
            f"{where}: importing and calling it failed ({reason}): expected a function without"
            " arguments"
        ) from error
    wish = "a dict of 'train', and perhaps 'val' and 'test', each (images, labels)"
    if not isinstance(given, dict) or "train" not in given or not set(given) <= set(NAMES):
        got = (
            f"a dict of {', '.join(map(repr, given)) or 'nothing'}"
            if isinstance(given, dict)
            else type(given).__name__
        )
        raise DataError(f"{where}: expected it to return {wish}, but got {got}")
    for key, pair in given.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(
                f"{where}: expected it to return {wish}, but {key!r} is"
                f" {_line(type(pair).__name__)}"
            )
    return {key: array_split(where, key, *given[key]) for key in NAMES if key in given}


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _line(error: object) -> str:
    return " ".join(str(error).split())
