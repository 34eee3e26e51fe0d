"""Read the tensors of any checkpoint a user may have: safetensors, and PyTorch files old and new.

What a file is is decided by its content, not by its name. Nothing in a file is executed unless the caller says `trust_pickle`.
"""
from __future__ import annotations

import argparse
import hashlib
import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gatecli.architectures.build import current_folder_importable
from gatecli.errors import CheckpointError

WRAPPINGS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "ema")  # the model itself before its average
PREFIXES = ("module.", "_orig_mod.")
DEEPEST = 8  # wrappings in wrappings; a pickle can hold itself
HARMLESS = re.compile(r"torch\._utils\._rebuild_\w+|torch\.storage\.\w+|torch\.\w+Storage|collections\.\w+|argparse\.Namespace")
SAFETENSORS_HEADER = 100_000_000  # bytes, that format's own limit



def read_tensors(path: str | os.PathLike[str], trust_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, floating ones as contiguous float32; wrappings and prefixes are taken off.

    `trust_pickle` allows a file to run code while it is read, which whole pickled modules need.

    Raises:
        CheckpointError: the file is missing, damaged, needs code, or holds no tensors.
    """
    path = Path(path)
    read = {"safetensors": _read_safetensors, "zip": _read_zip, "pickle": _read_pickle}[_kind(path)]
    found = read(path, trust_pickle)
    tensors = _unwrap(found)
    if tensors is None:
        raise CheckpointError(f"{path}: expected a state dict but got {_describe(found)}")
    try:
        return {name: _plain(tensor) for name, tensor in _strip(tensors).items()}
    except (RuntimeError, NotImplementedError, MemoryError) as error:
        raise CheckpointError(f"{path} holds a tensor that cannot be read as a dense one: {_line(error)}") from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits. Raises CheckpointError if it cannot be read."""
    digest = hashlib.sha256()
    with _open(Path(path)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: expected a checkpoint, a .safetensors or .pt file")
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder: expected a checkpoint, a .safetensors or .pt file" if path.is_dir() else f"{path} is not a file")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _kind(path: Path) -> str:
    """safetensors, zip (torch since 1.6) or pickle (torch before it, or no torch at all)."""
    with _open(path) as file:
        start = file.read(64)
        if not start:
            raise CheckpointError(f"{path} is empty: expected a checkpoint, a .safetensors or .pt file")
        if start.startswith(b"PK"):
            return "zip"
        if path.suffix == ".safetensors" or (start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= SAFETENSORS_HEADER):
            return "safetensors"
        file.seek(0)
        if start.startswith(b"\x80") or _globals(file, pickles=1) is not None:
            return "pickle"
    raise CheckpointError(f"{path} is neither safetensors nor a PyTorch file: it begins with {start[:12]!r}")


def _read_safetensors(path: Path, _: bool) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file, it is damaged or cut off: {_line(error)}") from error


def _read_zip(path: Path, trust_pickle: bool) -> Any:
    damaged = f"{path} is damaged or cut off"
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.split("/", 1)[-1]: name for name in archive.namelist()}
            if "constants.pkl" in inside:
                way_out = "torch.save(torch.jit.load(FILE).state_dict(), NEW) makes one"
                raise CheckpointError(f"{path}: expected a state dict but got a TorchScript archive: {way_out}")
            if "data.pkl" not in inside:
                raise CheckpointError(f"{path} is a zip archive but not a PyTorch file: it has no data.pkl")
            for entry in archive.infolist():
                _compare_checksum(archive, entry)
            needed = _globals(io.BytesIO(archive.read(inside["data.pkl"])), pickles=1)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{damaged}: {_line(error)}") from error
    if needed is None:
        raise CheckpointError(f"{damaged}: its data.pkl ends early")
    return _torch_load(path, trust_pickle, needed, mmap=True)


def _read_pickle(path: Path, trust_pickle: bool) -> Any:
    with _open(path) as file:
        old_torch = _first_value(file) == torch.serialization.MAGIC_NUMBER
        file.seek(0)
        needed = _globals(file, pickles=4 if old_torch else 1)  # magic number, version, platform, the object
    if needed is None:
        raise CheckpointError(f"{path} is damaged or cut off: its pickle ends early")
    if old_torch:
        return _torch_load(path, trust_pickle, needed, mmap=False)
    if not trust_pickle:
        if needed:
            raise CheckpointError(_needs_code(path, needed))
        raise CheckpointError(f"{path}: expected a state dict but got a plain pickle without tensors")
    with _open(path) as file, _trusted(path):
        return pickle.load(file)


def _torch_load(path: Path, trust_pickle: bool, needed: list[str], mmap: bool) -> Any:
    """`mmap` leaves an optimizer's state on the disk. `needed` are the names that the pickle refers to."""
    if trust_pickle:
        with _open(path) as file, _trusted(path):
            return torch.load(file, map_location="cpu", weights_only=False)
    try:
        mmap = mmap and path.suffix != ".safetensors"  # torch goes by that suffix, and can map only what it opens itself
        # Training scripts store their parsed options beside the weights; a Namespace is only a bag of values.
        with _open(path) as file, warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_needs_code(path, needed)) from error
    except Exception as error:  # whatever a damaged file may bring torch to
        raise CheckpointError(f"{path} is damaged or cut off: {_line(error)}") from error


@contextmanager
def _trusted(path: Path) -> Iterator[None]:
    """Let a pickle find classes in the current folder, where the script that made it probably lies."""
    try:
        with current_folder_importable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise CheckpointError(f"{path} cannot be unpickled, it is damaged or its code is missing: {_line(error)}") from error


def _needs_code(path: Path, needed: list[str]) -> str:
    strange = [name for name in needed if not HARMLESS.fullmatch(name)][:3]
    what = f" ({', '.join(strange)})" if strange else ""
    return f"{path} holds Python objects that run code when read{what}: save its state_dict() instead, or if you trust the file, add --trust-pickle"


def _globals(file: IO[bytes], pickles: int) -> list[str] | None:
    """The classes and functions that so many pickles in a row refer to, found without running them; None: one of them is damaged."""
    names: dict[str, None] = {}
    strings: list[str] = []
    try:
        for _ in range(pickles):
            for op, value, _position in pickletools.genops(file):
                if op.name == "GLOBAL":
                    names[str(value).replace(" ", ".")] = None
                elif op.name == "STACK_GLOBAL":
                    names[".".join(strings[-2:])] = None
                elif isinstance(value, str):
                    strings.append(value)
    except Exception:  # pickletools raises what it likes on garbage
        return None
    return list(names)


def _first_value(file: IO[bytes]) -> object:
    try:
        return next(value for op, value, _ in pickletools.genops(file) if op.name not in ("PROTO", "FRAME"))
    except Exception:
        return None


def _compare_checksum(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry to its end, where zipfile compares the checksum; torch itself never does, so a flipped bit would go unseen."""
    if entry.CRC == 0:  # torch can write files without checksums; zipfile compares none where there is none
        del entry.CRC
        return
    with archive.open(entry) as file:
        while file.read(1 << 20):
            pass


def _unwrap(found: Any, depth: int = 0) -> dict[str, Tensor] | None:
    """The innermost state dict, or None if there are no tensors."""
    if isinstance(found, nn.Module):
        found = found.state_dict()
    if not isinstance(found, Mapping) or depth > DEEPEST:
        return None
    for key in WRAPPINGS:
        if (inner := _unwrap(found.get(key), depth + 1)) is not None:
            return inner
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)} or None


def _strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DataParallel and torch.compile put before every name."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _strip({name[len(prefix) :]: tensor for name, tensor in tensors.items()})
    return tensors


def _plain(tensor: Tensor) -> Tensor:
    """A copy of its own: the file may be replaced or cut while its mapped memory is in use."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise RuntimeError(f"a {'quantized' if tensor.is_quantized else 'sparse or empty (meta)'} tensor of shape {tuple(tensor.shape)}")
    tensor = tensor.detach()
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor)


def _describe(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"a dict without tensors (keys: {', '.join(map(str, list(found)[:5])) or 'none'})"
    name = type(found).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _line(error: BaseException) -> str:
    """An error's text as one short line."""
    return " ".join((str(error) or type(error).__name__).split())[:160]
