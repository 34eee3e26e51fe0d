"""Where the samples of a tar shard lie, in WebDataset's layout: KEY.jpg beside KEY.cls.

A shard is read through once, and its index kept, so that any image is one read of the file. No
member is unpacked to the disk, and none is a pickle: those are refused.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from gatecli.checkpoint.atomic import replacing
from gatecli.data.arrays import MAX_CLASSES
from gatecli.data.cache import kept_name, writable_cache
from gatecli.errors import CheckpointError, DataError, reason

__all__ = ["ShardIndex", "index_of", "member_name"]

KEPT = "tar index 1"  # another number whenever what is kept changes
LABEL = "cls"
LABEL_BYTES = 32  # of a number
PICKLES = ("pyd", "pkl", "pickle", "pt", "pth")
FIELDS = ("offsets", "sizes", "labels")
CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """A shard's samples, in the order of the shard.

    Attributes:
        offsets: int64 (N,), the first byte of each image.
        sizes: int64 (N,), its bytes.
        labels: int64 (N,).
    """

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]

    def fits(self, stored: int) -> bool:
        """Whether it can be that of a shard of so many bytes."""
        arrays = (self.offsets, self.sizes, self.labels)
        if any(each.dtype != np.int64 or each.ndim != 1 for each in arrays):
            return False
        if not len(self.offsets) == len(self.sizes) == len(self.labels) > 0:
            return False
        inside = self.offsets.min() >= 0 and self.sizes.min() >= 0
        inside = inside and int((self.offsets + self.sizes).max()) <= stored
        return bool(inside and self.labels.min() >= 0 and self.labels.max() < MAX_CLASSES)


@dataclass(kw_only=True)
class _Sample:
    """The members of one key that have been seen."""

    key: str
    image: tuple[int, int] | None = None
    label: int | None = None


@dataclass(kw_only=True)
class _Gathered:
    """The samples of a shard that have been seen."""

    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add(self, sample: _Sample | None) -> None:
        """Close a sample; one without an image or a class is damage."""
        if sample is None:
            return
        if sample.image is None or sample.label is None:
            what = "image" if sample.image is None else f".{LABEL}"
            raise ValueError(f"its sample {sample.key} has no {what}")
        self.offsets.append(sample.image[0])
        self.sizes.append(sample.image[1])
        self.labels.append(sample.label)


def index_of(where: str, shard: Path) -> ShardIndex:
    """A shard's index: the one that is kept, else a new one.

    Args:
        where: what errors begin with.
        shard: an uncompressed tar file.

    Raises:
        DataError: it is none, is damaged, or holds what does not fit.
    """
    try:
        kept = writable_cache(where) / f"{kept_name(shard, KEPT)}.npz"
        stored = shard.stat().st_size
        found = _kept(kept, stored)
        if found is None:
            found = _built(shard, stored)
            with replacing(kept) as temporary, temporary.open("wb") as file:
                np.savez(file, **{name: getattr(found, name) for name in FIELDS})
        return found
    except DataError:
        raise
    except CheckpointError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # tarfile raises whatever it meets
        raise DataError(
            f"{where}: expected {shard} to be a whole tar file of images and .{LABEL} files, but"
            f" reading it failed ({reason(error)}): make it again"
        ) from error


def _kept(kept: Path, stored: int) -> ShardIndex | None:
    """The index that is kept; None where there is none, or it is of no use."""
    try:
        with kept.open("rb") as stream:  # np.load leaves a damaged file open
            arrays = np.load(stream, allow_pickle=False)
            found = ShardIndex(**{name: arrays[name] for name in FIELDS})
        return found if found.fits(stored) else None
    except Exception:  # none there, or damaged: zip, zlib and numpy raise whatever they meet
        return None


def _built(shard: Path, stored: int) -> ShardIndex:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    images = tuple(each.removeprefix(".") for each in IMG_EXTENSIONS)
    done = _Gathered()
    sample: _Sample | None = None
    with shard.open("rb") as file:
        for member in _members(file, stored):
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            key = f"{folder}{slash}{stem}"
            if sample is None or sample.key != key:
                done.add(sample)
                sample = _Sample(key=key)
            _take(sample, member, ending.lower(), file, images)
        done.add(sample)
    if not done.labels:
        raise ValueError("it has no samples")
    return ShardIndex(**{name: np.array(getattr(done, name), np.int64) for name in FIELDS})


def _take(
    sample: _Sample, member: tarfile.TarInfo, ending: str, file: IO[bytes], images: tuple[str, ...]
) -> None:
    """Note what one member says of its sample; other members than images and classes say nothing.

    Raises:
        ValueError: it is a pickle, or a second image, or no class.
    """
    if ending.rpartition(".")[2] in PICKLES:
        raise ValueError(f"its member {member.name} is a pickle, which is never read")
    if ending in images:
        if sample.image is not None:
            raise ValueError(f"its sample {sample.key} has two images")
        sample.image = (member.offset_data, member.size)
    elif ending == LABEL:
        file.seek(member.offset_data)
        sample.label = _label(member, file.read(min(member.size, LABEL_BYTES + 1)))


def _label(member: tarfile.TarInfo, text: bytes) -> int:
    spelt = text.strip()
    if not spelt.isdigit() or len(text) > LABEL_BYTES or int(spelt) >= MAX_CLASSES:
        raise ValueError(
            f"its member {member.name} is {text[:LABEL_BYTES]!r}, where the number of a class below"
            f" {MAX_CLASSES} is expected"
        )
    return int(spelt)


def _members(file: IO[bytes], stored: int) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar file, in order.

    tarfile takes a damaged header for the end, and follows sizes below 0 backwards for ever.

    Raises:
        ValueError: the file ends early, or is damaged, or has other members than files and folders.
    """
    with tarfile.open(fileobj=file, mode="r:") as archive:
        last = -1
        while True:
            member = archive.next()
            if member is None:
                break
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            if member.size < 0 or archive.offset <= last:
                raise ValueError(f"the header at byte {member.offset} is damaged")
            last = archive.offset
            if member.offset_data + member.size > stored:
                raise ValueError(f"it ends within its member {member.name}")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"its member {member.name} is no plain file")
            yield member
        _check_end(file, archive.offset)


def _check_end(file: IO[bytes], offset: int) -> None:
    """Check that nothing but zeros follows: what tarfile took for the end may be damage."""
    file.seek(offset)
    while True:
        chunk = file.read(CHUNK)
        if not chunk:
            return
        if chunk.strip(b"\0"):
            raise ValueError(f"it is damaged after byte {offset}, and more follows")


def member_name(shard: Path, offset: int) -> str:
    """The name in the header before a member's first byte, for errors."""
    with shard.open("rb") as file:
        file.seek(max(0, offset - tarfile.BLOCKSIZE))
        header = file.read(tarfile.BLOCKSIZE)
    return header[:100].rstrip(b"\0").decode("utf-8", "replace")
