"""parquet:PATH, Parquet files with a column of encoded images and one of classes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from gatecli.data.forms.base import Form, Found, Request, register
from gatecli.errors import DataError

__all__ = ["read"]


def read(request: Request) -> Found:
    """The splits of a file or a folder; classes.txt beside them names classes that are numbers.

    Raises:
        DataError: pyarrow is missing, there are no files, or one is damaged or does not fit.
    """
    if find_spec("pyarrow") is None:
        raise DataError(
            "--data parquet needs pyarrow, which is not installed: pip install 'gatecli[parquet]'"
        )
    import pyarrow

    from gatecli.data.columns import labelled
    from gatecli.data.listed_classes import listed_classes
    from gatecli.data.parquet import parquet_columns, parquet_table
    from gatecli.data.split_files import split_files
    from gatecli.data.tables import table_split

    spec = request.spec
    found = split_files(spec, request.path, ".parquet")
    columns = parquet_columns(spec, found.files["train"][0])
    tables = {}
    labels: dict[str, Any] = {}
    for name, files in found.files.items():
        tables[name] = tuple(parquet_table(spec, file, columns) for file in files)
        chunks = [chunk for table in tables[name] for chunk in table.labels.chunks]
        labels[name] = pyarrow.chunked_array(chunks, tables[name][0].labels.type)
    told = labelled(spec, labels, columns.names)
    count = 1 + max(int(each.max()) for each in told.labels.values())
    return Found(
        splits={name: table_split(tables[name], own) for name, own in told.labels.items()},
        classes=told.classes or listed_classes(spec, found.folder, count),
        sorted_names=told.sorted_names,
        notes=(*found.notes, *told.notes),
    )


register(
    Form(
        kind="parquet",
        operand="PATH",
        read=read,
        augment="imagenet",
        is_path=True,
        is_cropped=True,
    )
)
