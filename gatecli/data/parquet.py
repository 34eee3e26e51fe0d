"""Parquet files, each copied once into an Arrow file that any row can be read of.

A Parquet file is compressed in groups of hundreds of rows, so that one image costs a group: in
random order nothing could be kept of that. The copy is mapped into memory, not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatecli import limits
from gatecli.checkpoint.atomic import replacing
from gatecli.data.cache import kept_name, writable_cache
from gatecli.data.columns import Columns, columns_of
from gatecli.data.tables import ImageTable
from gatecli.errors import CheckpointError, DataError, reason

__all__ = ["ParquetTable", "parquet_columns", "parquet_table"]

KEPT = "parquet copy 1"  # another number whenever what is kept changes
ROWS = 256  # copied at a time
LABEL_BYTES = 8


class ParquetTable(ImageTable):
    """The copy of a Parquet file."""

    def __init__(self, file: Path, copy: Path) -> None:
        self.name = str(file)
        self.identity = f"{file.name} {file.stat().st_size}"
        self.copy = copy
        self._opened: Any = None
        self.count = len(self._table())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # a mapped table would be pickled whole

    def image(self, row: int) -> bytes:
        content = self._table().column("image")[row].as_py()
        if content is None:
            raise ValueError("it has no bytes, and paths are not followed")
        return bytes(content)

    @property
    def labels(self) -> Any:
        """The labels, pyarrow's."""
        return self._table().column("label")

    def _table(self) -> Any:
        if self._opened is None:
            import pyarrow

            with pyarrow.memory_map(str(self.copy)) as stream:
                self._opened = pyarrow.ipc.open_file(stream).read_all()
        return self._opened


def parquet_columns(where: str, file: Path) -> Columns:
    """The columns of a file, by its schema.

    Raises:
        DataError: it cannot be read, or no columns are the images' and the classes'.
    """
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(file)
    except Exception as error:  # pyarrow has many
        raise _unreadable(where, file, error) from error
    return columns_of(where, schema)


def parquet_table(where: str, file: Path, columns: Columns) -> ParquetTable:
    """A file's copy: the one that is kept, else a new one.

    Raises:
        DataError: the file is damaged, or unpacks to more than is taken from one of its size.
    """
    try:
        what = "\0".join((KEPT, columns.image, columns.label))
        copy = writable_cache(where) / f"{kept_name(file, what)}.arrow"
        found = _kept(file, copy)
        if found is None:
            with replacing(copy) as temporary:
                _copy(file, temporary, columns)
            found = ParquetTable(file, copy)
        return found
    except DataError:
        raise
    except CheckpointError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # pyarrow has many
        raise _unreadable(where, file, error) from error


def _unreadable(where: str, file: Path, error: Exception) -> DataError:
    return DataError(
        f"{where}: expected {file} to be a whole Parquet file of images and classes, but reading it"
        f" failed ({reason(error, 200)}): make it again"
    )


def _kept(file: Path, copy: Path) -> ParquetTable | None:
    """The copy that is kept; None where there is none, or it is damaged."""
    if not copy.is_file():
        return None
    try:
        return ParquetTable(file, copy)
    except Exception:  # pyarrow has many
        return None


def _copy(file: Path, copy: Path, columns: Columns) -> None:
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(file, page_checksum_verification=True) as source:
        most = limits.unpacked(file.stat().st_size)
        if source.metadata.num_rows * LABEL_BYTES > most:
            raise ValueError(f"it claims {source.metadata.num_rows:,} rows")
        kind = _label_type(source.schema_arrow.field(columns.label).type)
        schema = pyarrow.schema([("image", pyarrow.large_binary()), ("label", kind)])
        with pyarrow.ipc.new_file(str(copy), schema) as sink:
            for images, labels in _batches(source, columns, most):
                arrays = [images.cast(pyarrow.large_binary()), labels.cast(kind)]
                sink.write_batch(pyarrow.record_batch(arrays, schema=schema))


def _label_type(kind: Any) -> Any:
    """What labels are kept as: one type of numbers, one of names, so that files go together."""
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return pyarrow.int64() if pyarrow.types.is_integer(kind) else pyarrow.large_string()


def _batches(source: Any, columns: Columns, most: int) -> Iterator[tuple[Any, Any]]:
    """Images and labels, some rows at a time; a small file may claim the same bytes many times."""
    from pyarrow import types

    unpacked = 0
    asked = [columns.image, columns.label]
    for batch in source.iter_batches(batch_size=ROWS, columns=asked, use_threads=False):
        images = batch.column(columns.image)
        if types.is_struct(images.type):
            images = images.field("bytes")
        unpacked += images.nbytes
        if unpacked > most:
            raise ValueError(f"it unpacks to more than {most:,} bytes")
        yield images, batch.column(columns.label)
