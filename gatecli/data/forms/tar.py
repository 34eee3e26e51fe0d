"""tar:FOLDER, uncompressed tar shards in WebDataset's layout: KEY.jpg beside KEY.cls."""

from __future__ import annotations

from gatecli.data.forms.base import Form, Found, Request, register

__all__ = ["read"]


def read(request: Request) -> Found:
    """The splits of the shards; classes.txt or classes.json beside them names the classes.

    Raises:
        DataError: there are no shards, or one is damaged or holds what does not fit.
    """
    from gatecli.data.listed_classes import listed_classes
    from gatecli.data.shards import shard_split
    from gatecli.data.split_files import split_files

    found = split_files(request.spec, request.path, ".tar")
    splits = {name: shard_split(request.spec, files) for name, files in found.files.items()}
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    classes = listed_classes(request.spec, found.folder, count)
    return Found(splits=splits, classes=classes, notes=found.notes)


register(
    Form(
        kind="tar",
        operand="FOLDER",
        read=read,
        augment="imagenet",
        is_path=True,
        is_cropped=True,
    )
)
