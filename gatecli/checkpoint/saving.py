"""Write checkpoints, all or nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gatecli.checkpoint.atomic import check_name, replacing
from gatecli.checkpoint.loading import KEY, Reading, read_own
from gatecli.errors import CheckpointError, GatecliError, SettingError
from gatecli.network import Network
from gatecli.network.precision import is_half

__all__ = ["check_output", "save_tensors", "write"]


def check_output(out: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output before any work.

    Args:
        out: the file to be written.
        force: whether one that exists may be replaced.
        inputs: files that are read, which are never overwritten.

    Raises:
        CheckpointError: it exists, is an input, or lies where nothing can be written.
    """
    check_name(out)
    if any(out.exists() and given.exists() and out.samefile(given) for given in inputs):
        raise CheckpointError(
            f"{out} is the input: gatecli never overwrites what it reads; name another file with"
            " --out"
        )
    if out.exists() and not force:
        raise CheckpointError(
            f"{out} exists already: use --force to replace it, or --out to name another file"
        )
    if out.is_dir():
        raise CheckpointError(f"cannot write {out}: it is a folder; name a file with --out")
    if not out.parent.is_dir():
        raise CheckpointError(f"cannot write {out}: the folder {out.parent} does not exist")
    if not os.access(out.parent, os.W_OK):
        raise CheckpointError(f"cannot write {out}: the folder {out.parent} is not writable")


def write(network: Network, path: str | os.PathLike[str], *, reload: bool = False) -> None:
    """Write the network and its recipe, all or nothing.

    Args:
        network: with an architecture that a file can name.
        path: the file.
        reload: read what was written again before it takes the place of `path`, and compare every
            tensor, and the MACs of every node.

    Raises:
        CheckpointError: it cannot be written (a full disk, say).
        GatecliError: it could not be read again.
    """
    path = Path(path)
    if not network.recipe.source.arch:
        raise SettingError(
            "this network has no architecture that a file could name: attach with"
            " arch='package.module:callable'"
        )
    if is_half(network):
        raise SettingError(
            "expected a network with float32 weights to write, but this one's are bf16, rounded:"
            " load it without precision='bf16'"
        )
    check = partial(_check_reload, network) if reload else None
    save_tensors(network.state_dict(), path, {KEY: network.recipe.to_json()}, check)


def _check_reload(network: Network, path: Path) -> None:
    """Read the file at `path`. Raises GatecliError unless it holds `network`."""
    recipe = network.recipe
    try:
        again = read_own(path, recipe, Reading(arch=recipe.source.arch))
    except GatecliError as error:
        raise GatecliError(
            f"what was to be written cannot be read again ({error}): this is a bug in gatecli;"
            " nothing was written"
        ) from error
    ours = network.state_dict()
    theirs = again.state_dict()
    other = [name for name in ours if not _equal(ours[name].cpu(), theirs[name])]
    is_other = again.macs_dense != network.macs_dense or again.gated_by != network.gated_by
    if other or is_other:
        what = f"`{other[0]}`" if other else "the structure"
        raise GatecliError(
            f"what was to be written reads as another network ({what} differs): this is a bug in"
            " gatecli; nothing was written"
        )


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours.to(theirs.dtype), theirs)


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a safetensors file, all or nothing.

    Args:
        tensors: by name.
        path: the file.
        metadata: text by key.
        check: looks at the file before it takes its place.

    Raises:
        CheckpointError: it cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    owners = Counter(_storage(tensor) for tensor in plain.values())
    alone = {}
    for name, tensor in plain.items():  # the format refuses tensors that share memory
        is_shared = _is_view(tensor) or owners[_storage(tensor)] > 1
        alone[name] = tensor.clone() if is_shared else tensor
    try:
        with replacing(path) as temporary:
            save_file(alone, temporary, dict(metadata))
            if check is not None:
                check(temporary)
    except SafetensorError as error:
        raise CheckpointError(
            f"cannot write {path}: {str(error).rpartition('error: ')[2]}"
        ) from error


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_view(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
