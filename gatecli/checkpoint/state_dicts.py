"""Find the state dict in what a file holds, and check its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatecli import limits
from gatecli.errors import CheckpointError

__all__ = ["check_sizes", "describe", "plain", "stripped", "unwrapped"]

# The model itself before its average.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "ema")
PREFIXES = ("module.", "_orig_mod.")
DEEPEST = 8  # prefixes before prefixes
MOST = 64  # dicts that are looked into for a state dict


def unwrapped(found: Any, seen: set[int] | None = None) -> dict[str, Tensor] | None:
    """The innermost state dict; None if there are no tensors.

    Args:
        found: what a file holds.
        seen: what was looked into, by identity: a pickle can hold the same dict in many places,
            and itself.
    """
    seen = set() if seen is None else seen
    if not isinstance(found, (Mapping, nn.Module)) or id(found) in seen or len(seen) > MOST:
        return None
    seen.add(id(found))
    if isinstance(found, nn.Module):
        found = found.state_dict()
    for key in WRAPPINGS:
        inner = unwrapped(found.get(key), seen)
        if inner is not None:
            return inner
    tensors = {}
    for name, value in found.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
    return tensors or None


def stripped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DataParallel and torch.compile put before every name."""
    for _ in range(DEEPEST):
        prefix = _common_prefix(tensors)
        if prefix is None:
            break
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return tensors


def _common_prefix(names: Mapping[str, Tensor]) -> str | None:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in names):
            return prefix
    return None


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


def plain(tensor: Tensor) -> Tensor:
    """A copy, floating ones as float32: the file may be replaced while its memory is mapped.

    Raises:
        RuntimeError: the tensor is not a dense one.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "sparse or empty (meta)"
        raise RuntimeError(f"a {kind} tensor of shape {tuple(tensor.shape)}")
    tensor = tensor.detach()
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor)


def describe(found: Any) -> str:
    """What was found in place of a state dict, for an error."""
    if isinstance(found, Mapping):
        keys = ", ".join(map(str, list(found)[:5])) or "none"
        return f"a dict without tensors (keys: {keys})"
    name = type(found).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return f"{article} {name}"
