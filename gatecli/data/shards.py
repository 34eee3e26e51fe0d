"""Splits whose images lie in tar shards: each is one read of a file, in any order."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gatecli.data.folders import PictureSplit, decoded
from gatecli.data.splits import Digest
from gatecli.data.tar_index import index_of, member_name
from gatecli.errors import DataError, reason

__all__ = ["ShardSplit", "shard_split"]


class ShardSplit(PictureSplit):
    """Images in tar shards.

    Attributes:
        shards: the files.
        places: int64 (N, 3): the number of the shard, the first byte and how many.
        labels: int64 (N,).
    """

    def __init__(self, shards: tuple[Path, ...], places: NDArray[np.int64], labels: Tensor) -> None:
        self.shards = shards
        self.places = places
        self.labels = labels

    def take(self, rows: Tensor) -> ShardSplit:
        return ShardSplit(self.shards, self.places[rows.numpy()], self.labels[rows])

    def picture(self, row: int, mode: str) -> Image.Image:
        number, offset, size = self.places[row].tolist()
        shard = self.shards[number]
        try:
            # opened anew: workers share nothing, and no shard's handle is kept
            with shard.open("rb", buffering=0) as file:
                file.seek(offset)
                content = file.read(size)
            if len(content) < size:
                raise ValueError("the file has been cut off")
            return decoded(io.BytesIO(content), mode)
        except Exception as error:  # PIL's decoders raise whatever they meet
            raise DataError(
                f"expected {_spelt(shard, offset)} to be a readable image, but reading it failed"
                f" ({reason(error)}): make the shard again"
            ) from error

    def identify(self, digest: Digest, *, with_pixels: bool) -> None:
        digest.update("\0".join(shard.name for shard in self.shards).encode(errors="replace"))
        digest.update(self.places.tobytes())


def shard_split(where: str, shards: tuple[Path, ...]) -> ShardSplit:
    """The samples of shards, one shard after the other.

    Raises:
        DataError: a shard is damaged or is none.
    """
    places = []
    labels = []
    for number, shard in enumerate(shards):
        index = index_of(where, shard)
        own = np.full_like(index.offsets, number)
        places.append(np.stack([own, index.offsets, index.sizes], axis=1))
        labels.append(index.labels)
    return ShardSplit(shards, np.concatenate(places), torch.from_numpy(np.concatenate(labels)))


def _spelt(shard: Path, offset: int) -> str:
    try:
        name = member_name(shard, offset)
    except OSError:
        name = "image"
    return f"the {name} at byte {offset} of {shard}"
