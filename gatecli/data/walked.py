"""All files below a folder."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["files_within"]


def files_within(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """The files with such endings in a folder and its folders, sorted by folder, then by name.

    A folder is entered once, however many links lead to it.
    """
    found = []
    seen: set[tuple[int, int]] = set()
    _seen(str(folder), seen)
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not _seen(os.path.join(root, name), seen)]
        found.append((root, sorted(name for name in names if name.lower().endswith(endings))))
    files = []
    for root, names in sorted(found):
        prefix = os.path.join(root, "")
        files += [prefix + name for name in names]
    return files


def _seen(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder was seen before, under whatever name; from now on it was.

    One that is gone, or may not be looked at, counts as seen.
    """
    try:
        status = os.stat(folder)
    except OSError:
        return True
    key = (status.st_dev, status.st_ino)
    known = key in seen
    seen.add(key)
    return known
