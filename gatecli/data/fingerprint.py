"""Whether a data set is the one it was: counts and hashes of what a training sees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from gatecli.data.arrays import ArraySplit
from gatecli.data.folders import FolderSplit
from gatecli.data.spec import DataSet
from gatecli.data.splits import Split
from gatecli.errors import DataError

USED = ("train", "val")  # what a training looks at


def fingerprint(data: DataSet, pixels: bool = True) -> dict[str, str]:
    """For each split that a training uses: how many images, and a hash of labels and images.

    Of image files, of their names.

    `pixels` False leaves the images out: a user's function may make other ones each time.
    """
    return {
        name: f"{len(data.splits[name])} images, {_digest(data.splits[name], pixels)}"
        for name in USED
        if name in data.splits
    }


def check_same(data: DataSet, found: Mapping[str, str], begun: Mapping[str, str]) -> None:
    """Raises DataError where `found` is not the fingerprint that the training began with."""
    for name, was in begun.items():
        now = found.get(name, "nothing")
        if now != was:
            counts = [each.partition(",")[0] for each in (was, now)]
            what = (
                f"then {counts[0]}, now {counts[1]}"
                if counts[0] != counts[1]
                else f"its {counts[0]} are others, or in another order"
            )
            raise DataError(
                f"{data.spec} has changed since the run began ({name}: {what}): put the data back,"
                " or start a new run without --resume"
            )


def _digest(split: Split, pixels: bool) -> str:
    digest = hashlib.sha256(split.labels.numpy().tobytes())
    if isinstance(split, FolderSplit):
        digest.update(b"\0".join(split.files.tolist()))
    elif isinstance(split, ArraySplit) and pixels:
        digest.update(str(tuple(split.images.shape)).encode())
        digest.update(split.images.numpy().data)
    return digest.hexdigest()
