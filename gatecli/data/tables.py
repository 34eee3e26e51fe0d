"""Splits whose encoded images are the rows of tables."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gatecli.data.folders import PictureSplit, decoded
from gatecli.data.splits import Digest
from gatecli.errors import DataError, reason

__all__ = ["ImageTable", "TableSplit", "table_split"]


class ImageTable(ABC):
    """A table with a column of encoded images.

    Attributes:
        name: of it, for errors.
        identity: what tells it from others that have the same labels.
        count: its rows.
    """

    name: str
    identity: str
    count: int

    @abstractmethod
    def image(self, row: int) -> bytes:
        """The encoded image of a row.

        Raises:
            Exception: it cannot be read, or there is none.
        """


class TableSplit(PictureSplit):
    """Images in tables.

    Attributes:
        tables: one after the other.
        places: int64 (N, 2): the number of the table, and the row.
        labels: int64 (N,).
    """

    def __init__(
        self, tables: tuple[ImageTable, ...], places: NDArray[np.int64], labels: Tensor
    ) -> None:
        self.tables = tables
        self.places = places
        self.labels = labels

    def take(self, rows: Tensor) -> TableSplit:
        return TableSplit(self.tables, self.places[rows.numpy()], self.labels[rows])

    def picture(self, row: int, mode: str) -> Image.Image:
        number, place = self.places[row].tolist()
        table = self.tables[number]
        try:
            return decoded(io.BytesIO(table.image(place)), mode)
        except Exception as error:  # PIL's decoders raise whatever they meet
            raise DataError(
                f"expected row {place} of {table.name} to be a readable image, but reading it"
                f" failed ({reason(error)}): repair or remove it"
            ) from error

    def identify(self, digest: Digest, *, with_pixels: bool) -> None:
        digest.update("\0".join(table.identity for table in self.tables).encode(errors="replace"))
        digest.update(self.places.tobytes())


def table_split(tables: tuple[ImageTable, ...], labels: Tensor) -> TableSplit:
    """All rows of tables, one table after the other."""
    places = []
    for number, table in enumerate(tables):
        rows = np.arange(table.count, dtype=np.int64)
        places.append(np.stack([np.full_like(rows, number), rows], axis=1))
    return TableSplit(tables, np.concatenate(places), labels)
