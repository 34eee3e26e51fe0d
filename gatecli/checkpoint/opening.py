"""Open what a user names as a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gatecli.errors import CheckpointError

__all__ = ["open_file"]


@contextmanager
def open_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes.

    Raises:
        CheckpointError: it is not there, is no file, or reading inside the block fails.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist: expected a checkpoint, a .safetensors or .pt file"
        )
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder: expected a checkpoint, a .safetensors or .pt file"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
