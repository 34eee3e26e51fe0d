"""What is made once of a data file and kept: indices of shards, images out of tables.

A file here belongs to one data file as it is: another size or time of change, another name. All of
it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gatecli.errors import DataError

__all__ = ["cache_folder", "kept_name", "writable_cache"]

PLACE = "GATECLI_CACHE"  # the variable that names another folder


def cache_folder() -> Path:
    """The folder: $GATECLI_CACHE, else gatecli in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get(PLACE):
        return Path(os.environ[PLACE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gatecli"


def kept_name(file: Path, what: str) -> str:
    """The name of what is kept of a file; another one once the file has changed.

    Args:
        file: the data file.
        what: is made of it, with the version of how.
    """
    status = file.stat()
    parts = (what, str(file.resolve()), str(status.st_size), str(status.st_mtime_ns))
    text = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()[:32]


def writable_cache(where: str) -> Path:
    """The folder, made if it is not there yet.

    Raises:
        DataError: it cannot be written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise DataError(
            f"{where}: expected to keep in {folder} what is made of the data once, but it cannot be"
            f" written ({error.strerror}): name another folder in {PLACE}"
        ) from error
    return folder
