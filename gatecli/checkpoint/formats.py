"""Read the tensors of any checkpoint a user may have: safetensors, and PyTorch files old and new.

What a file is is decided by its content, not by its name. Nothing in a file is executed unless the
caller says `trust_pickle`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gatecli import limits
from gatecli.checkpoint.candidates import collected
from gatecli.checkpoint.opening import open_file
from gatecli.checkpoint.state_dicts import check_sizes, dense, describe
from gatecli.checkpoint.torch_files import begins_a_pickle, read_pickle, read_zip
from gatecli.errors import CheckpointError, reason

__all__ = ["file_sha256", "header_fits", "read_file", "tensors_in"]

SAFETENSORS_HEADER = 100_000_000  # bytes, that format's own limit


def tensors_in(held: Any, path: Path) -> dict[str, Tensor]:
    """The first dict of tensors in what a file holds, by the names that it has.

    Args:
        held: what the file holds.
        path: the file; of shards, their folder, whose size says nothing.

    Raises:
        CheckpointError: there is none, or one of its tensors cannot be read.
    """
    candidates = collected(held)
    if not candidates:
        raise CheckpointError(f"{path}: expected a state dict but got {describe(held)}")
    if path.is_file():
        check_sizes(candidates[0].tensors, path)
    return dense(candidates[0].tensors, path)


def read_file(path: Path, *, trust_pickle: bool) -> Any:
    """Whatever a file holds, its tensors still on the disk where that is possible.

    Raises:
        CheckpointError: the file is missing, damaged, or needs code.
    """
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "zip":
        return read_zip(path, trust_pickle=trust_pickle)
    return read_pickle(path, trust_pickle=trust_pickle)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open_file(Path(path)) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _kind(path: Path) -> str:
    """safetensors, zip (torch since 1.6) or pickle (torch before it, or no torch at all)."""
    with open_file(path) as file:
        start = file.read(64)
        if not start:
            raise CheckpointError(
                f"{path} is empty: expected a checkpoint, a .safetensors or .pt file"
            )
        if start.startswith(b"PK"):
            return "zip"
        header = int.from_bytes(start[:8], "little")
        has_header = start[8:9] == b"{" and header <= SAFETENSORS_HEADER
        if path.suffix == ".safetensors" or has_header:
            return "safetensors"
        if start.startswith(b"\x80") or begins_a_pickle(start + file.read(1 << 16)):
            return "pickle"
    raise CheckpointError(
        f"{path} is neither safetensors nor a PyTorch file: it begins with {start[:12]!r}"
    )


def header_fits(path: Path) -> bool:
    """Whether a safetensors file's header is of a size that one may have.

    It is parsed into far more memory than it takes.
    """
    with open_file(path) as file:
        return int.from_bytes(file.read(8), "little") <= limits.HEADER_BYTES


def _read_safetensors(path: Path) -> Any:
    if not header_fits(path):
        raise CheckpointError(
            f"{path} is no readable safetensors file, it is damaged or cut off: its header has more"
            f" than {limits.HEADER_BYTES:,} bytes"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no readable safetensors file, it is damaged or cut off:"
            f" {reason(error, 160)}"
        ) from error
