"""npz:FILE, arrays under MedMNIST's keys: train_images, train_labels, val_images and so on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gatecli import limits
from gatecli.data.forms.base import SPLITS, Form, Found, Request, register
from gatecli.errors import DataError, reason

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

__all__ = ["read"]


def read(request: Request) -> Found:
    """The splits of a file.

    Raises:
        DataError: there is no such file, it lacks keys, or holds what does not fit.
    """
    from gatecli.data.arrays import array_split

    arrays = _arrays(request.spec, request.path)
    splits = {}
    for name in SPLITS:
        if f"{name}_images" in arrays:
            images = arrays[f"{name}_images"]
            labels = arrays[f"{name}_labels"]
            splits[name] = array_split(request.spec, name, images, labels)
    return Found(splits=splits)


def _arrays(where: str, file: Path) -> dict[str, Any]:
    """The arrays of all splits, by key. Errors begin with `where`."""
    import numpy as np

    if not file.is_file():
        is_other = file.exists() and not file.is_dir()
        there = "it is a pipe or a device" if is_other else "there is no such file"
        raise DataError(f"{where}: expected {file} to be an npz file, but {there}: check the path")
    try:
        with file.open("rb") as stream:  # np.load leaves a damaged file open
            members = np.load(stream, allow_pickle=False)
            if not isinstance(members, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            keys = _keys(where, members)
            _check_claims(members, keys, file.stat().st_size)
            return {key: members[key] for key in keys}
    except DataError:
        raise
    except Exception as error:  # of zip, zlib, or Python's parser, which reads the arrays' headers
        raise DataError(
            f"{where}: expected an npz file of plain arrays, but reading it failed"
            f" ({reason(error)}): save it with np.savez"
        ) from error


def _keys(where: str, members: NpzFile) -> list[str]:
    """The keys to read: images and labels of train, and of val and test where there are any."""
    keys = []
    for name in SPLITS:
        pair = [f"{name}_images", f"{name}_labels"]
        if name == "train" or any(key in members.files for key in pair):
            keys += pair
    missing = [key for key in keys if key not in members.files]
    if missing:
        raise DataError(
            f"{where}: expected the keys {', '.join(missing)}, but the file has"
            f" {', '.join(members.files) or 'none'}: rename them so"
        )
    return keys


def _check_claims(members: NpzFile, keys: list[str], stored: int) -> None:
    """Compare what arrays claim with what the file holds, before any is allocated.

    Args:
        members: the file.
        keys: the arrays that will be read.
        stored: the file's size in bytes.

    Raises:
        ValueError: they claim more than a file of this size can hold.
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
    from numpy.lib import format as npy

    if array.read(6) != npy.MAGIC_PREFIX:
        return 0
    array.seek(0)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(array)
    if version not in readers:
        raise ValueError(f"it has an array of format version {version}")
    shape, _order, kind = readers[version](array)
    return 0 if kind.hasobject else math.prod(shape) * int(kind.itemsize)  # np.load refuses objects


register(Form(kind="npz", operand="FILE", read=read, is_path=True))
