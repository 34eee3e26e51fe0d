"""hf:NAME_OR_FOLDER, a map-style data set of Hugging Face's library."""

from __future__ import annotations

from importlib.util import find_spec

from gatecli.data.forms.base import Form, Found, Request, register
from gatecli.errors import DataError

__all__ = ["read"]


def read(request: Request) -> Found:
    """The splits of a folder, or of a name on the hub.

    Raises:
        DataError: datasets is missing, it cannot be loaded, or holds what does not fit.
    """
    if find_spec("datasets") is None:
        raise DataError(
            "--data hf needs Hugging Face's datasets, which is not installed: pip install"
            " 'gatecli[hf]'"
        )
    from gatecli.data.columns import columns_of, labelled
    from gatecli.data.hugging_face import HuggingFaceTable, by_split, loaded
    from gatecli.data.tables import table_split

    spec = request.spec
    parts = by_split(spec, loaded(spec, request.operand, trusted=request.trusted))
    columns = columns_of(spec, parts["train"].features.arrow_schema)
    labels = {}
    for name, part in parts.items():
        labels[name] = part.select_columns([columns.label]).with_format("arrow")[:].column(0)
    told = labelled(spec, labels, columns.names)
    splits = {}
    for name, own in told.labels.items():
        table = HuggingFaceTable(f"{spec} ({name})", parts[name], columns.image)
        splits[name] = table_split((table,), own)
    return Found(
        splits=splits,
        classes=told.classes,
        sorted_names=told.sorted_names,
        notes=told.notes,
    )


register(
    Form(
        kind="hf",
        operand="NAME_OR_FOLDER",
        read=read,
        augment="imagenet",
        is_path=True,
        is_cropped=True,
    )
)
