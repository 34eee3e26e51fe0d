"""Folders as hubs lay them out: which files in one hold the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gatecli import limits
from gatecli.checkpoint.formats import file_sha256, read_file, tensors_in
from gatecli.errors import CheckpointError, reason
from gatecli.traced.recipe import BROKEN, parsed

__all__ = ["HUB_NAMES", "Weights", "listed_weights", "weights_at"]

HUB_NAMES = ("model.safetensors", "pytorch_model.bin")
INDEXES = tuple(f"{name}.index.json" for name in HUB_NAMES)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.tar")
# What trainers keep beside the weights.
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The files that hold a checkpoint's weights.

    Attributes:
        files: one, or the shards in order.
        index: the file that lists the shards; None where there is but one file.
        again: the same weights in the hubs' older format; None where there is no such file.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    again: Path | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def title(self) -> str:
        """What they are called in a recipe and in notes."""
        return self.files[0].name if self.index is None else self.index.name

    def read(self, *, trust_pickle: bool) -> Any:
        """What they hold: of shards, all their tensors.

        Raises:
            CheckpointError: one cannot be read, or lacks what the index says it has.
        """
        if self.index is None:
            content = read_file(self.files[0], trust_pickle=trust_pickle)
            if self.again is not None:
                _check_same(content, self.files[0], self.again)
            return content
        found: dict[str, Any] = {}
        for path in self.files:
            found.update(tensors_in(read_file(path, trust_pickle=trust_pickle), path))
        missing = sorted(set(_weight_map(self.index)) - set(found))
        if missing:
            raise CheckpointError(
                f"{self.index} says that there is a tensor `{missing[0]}`, but no shard has it"
            )
        return found

    def sha256(self) -> str:
        """Of the one file; of several, of their hashes in a row."""
        hashes = [file_sha256(path) for path in self.files]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()


def weights_at(path: Path) -> Weights:
    """The weights that a path names: a file, one of several shards, or a folder.

    Raises:
        CheckpointError: a folder has none or several, or a shard is missing.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.name in INDEXES:
        return _sharded(path)
    for name in INDEXES:
        index = path.with_name(name)
        if path.is_file() and index.is_file() and path.name in set(_weight_map(index).values()):
            return _sharded(index)
    return Weights(files=(path,))


def listed_weights(folder: Path) -> list[Path]:
    """The files of weights in a folder, gatecli's own left out."""
    from gatecli.checkpoint.loading import read_recipe

    found = []
    for path in sorted(folder.iterdir()):
        is_weights = path.name.endswith(SUFFIXES) and not path.name.startswith((".", *NO_WEIGHTS))
        if is_weights and path.is_file() and not _is_own(path, read_recipe):
            found.append(path)
    return found


def _is_own(path: Path, read_recipe: Any) -> bool:
    if path.suffix != ".safetensors":
        return False
    try:
        return read_recipe(path) is not None
    except CheckpointError:
        return True  # gatecli's, of a newer version


def _in_folder(folder: Path) -> Weights:
    indexes = [folder / name for name in INDEXES if (folder / name).is_file()]
    if indexes:
        return _sharded(indexes[0])
    files = listed_weights(folder)
    if not files:
        raise CheckpointError(
            f"{folder} is a folder without weights: expected a checkpoint, or a folder with one,"
            f" as {' or '.join(HUB_NAMES)}"
        )
    if [file.name for file in files] == list(HUB_NAMES):
        return Weights(files=(files[0],), again=files[1])
    if len(files) > 1:
        raise CheckpointError(_several(files))
    return Weights(files=(files[0],))


def _several(files: Sequence[Path]) -> str:
    names = ", ".join(file.name for file in files[:8]) + (", ..." if len(files) > 8 else "")
    return (
        f"{files[0].parent} holds {len(files)} files of weights ({names}): name the one to read, as"
        f" {files[0]}"
    )


def _check_same(content: Any, first: Path, second: Path) -> None:
    """Raises CheckpointError where two files of one folder are not the same network."""
    ours = tensors_in(content, first)
    try:
        theirs = tensors_in(read_file(second, trust_pickle=False), second)
    except CheckpointError as error:
        raise CheckpointError(_several([first, second])) from error
    same = ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )
    if not same:
        raise CheckpointError(_several([first, second]))


def _sharded(index: Path) -> Weights:
    names = sorted(set(_weight_map(index).values()))
    if len(names) > limits.SHARDS:
        raise CheckpointError(
            f"{index} lists {len(names)} shards: expected at most {limits.SHARDS}"
        )
    files = [index.with_name(name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {_few(missing)}, which {index.name} lists: all {len(files)}"
            " shards are needed"
        )
    return Weights(files=tuple(files), index=index)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> shard, by an index file.

    Raises:
        CheckpointError: it cannot be read, or names files elsewhere.
    """
    try:
        if index.stat().st_size > limits.HEADER_BYTES:
            raise ValueError(f"more than {limits.HEADER_BYTES:,} bytes")
        found = parsed(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(found, dict) or not found or len(found) > limits.TENSORS:
            raise ValueError("no weight_map of tensors")
        for name in found.values():
            if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
                raise ValueError(f"shard {name!r}")
    except (OSError, *BROKEN) as error:
        raise CheckpointError(
            f"{index} is no readable list of shards ({reason(error, 120)}): expected"
            ' {"weight_map": {tensor: file beside it}}'
        ) from error
    return found
