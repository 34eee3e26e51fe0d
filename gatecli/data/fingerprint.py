"""Whether a data set is the one it was: counts and hashes of what a training sees."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from gatecli.data.spec import DataSet
from gatecli.data.splits import Split
from gatecli.errors import DataError

__all__ = ["check_same", "fingerprint"]

USED = ("train", "val")  # what a training looks at


def fingerprint(data: DataSet, *, pixels: bool = True) -> dict[str, str]:
    """For each split that a training uses: how many images, and a hash.

    The hash is of the labels and the images; of image files, of their names.

    Args:
        data: the data set.
        pixels: false leaves the images out: a user's function may make other ones each time.
    """
    found = {}
    for name in USED:
        if name in data.splits:
            split = data.splits[name]
            found[name] = f"{len(split)} images, {_digest(split, pixels=pixels)}"
    return found


def check_same(data: DataSet, found: Mapping[str, str], begun: Mapping[str, str]) -> None:
    """Compare a data set with the one that a training began with.

    Args:
        data: the data set, for errors.
        found: its fingerprint.
        begun: the fingerprint when the training began.

    Raises:
        DataError: they differ.
    """
    for name, was in begun.items():
        now = found.get(name, "nothing")
        if now == was:
            continue
        then_count = was.partition(",")[0]
        now_count = now.partition(",")[0]
        what = f"then {then_count}, now {now_count}"
        if then_count == now_count:
            what = f"its {then_count} are others, or in another order"
        raise DataError(
            f"{data.spec} has changed since the run began ({name}: {what}): put the data back,"
            " or start a new run without --resume"
        )


def _digest(split: Split, *, pixels: bool) -> str:
    digest = hashlib.sha256(split.labels.numpy().tobytes())
    split.identify(digest, with_pixels=pixels)
    return digest.hexdigest()
