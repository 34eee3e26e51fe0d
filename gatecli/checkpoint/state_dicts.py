"""Check a state dict's tensors, and copy them as dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gatecli import limits
from gatecli.checkpoint.values import plain
from gatecli.errors import CheckpointError, reason

__all__ = ["check_sizes", "dense", "describe"]


def check_sizes(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare the tensors with the file's size: a tensor may repeat one number.

    Raises:
        CheckpointError: they would take far more memory than the file has bytes.
    """
    if len(tensors) > limits.TENSORS:
        raise CheckpointError(
            f"{path} has {len(tensors)} tensors: expected at most {limits.TENSORS:,}"
        )
    stored = path.stat().st_size
    asked = sum(tensor.numel() * _bytes_once_read(tensor) for tensor in tensors.values())
    if asked > limits.copied(stored):
        raise CheckpointError(
            f"{path} has {stored:,} bytes, but tensors of {asked:,}: expected each to be stored in"
            " full, not expanded: save them with .contiguous()"
        )


def _bytes_once_read(tensor: Tensor) -> int:
    return 4 if tensor.is_floating_point() else tensor.element_size()


def dense(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Copies of the tensors, floating ones as float32.

    Raises:
        CheckpointError: one is no dense tensor, or there is no memory for it.
    """
    try:
        return {name: plain(tensor) for name, tensor in tensors.items()}
    except (RuntimeError, NotImplementedError, MemoryError) as error:
        raise CheckpointError(
            f"{path} holds a tensor that cannot be read as a dense one: {reason(error, 160)}"
        ) from error


def describe(found: Any) -> str:
    """What was found in place of a state dict, for an error."""
    if isinstance(found, Mapping):
        keys = ", ".join(map(str, list(found)[:5])) or "none"
        return f"a dict without tensors (keys: {keys})"
    name = type(found).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return f"{article} {name}"
