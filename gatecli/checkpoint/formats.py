"""Read the tensors of any checkpoint a user may have: safetensors, and PyTorch files old and new.

What a file is is decided by its content, not by its name. Nothing in a file is executed unless the
caller says `trust_pickle`.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gatecli import limits
from gatecli.architectures.build import current_folder_importable
from gatecli.checkpoint.survey import PASSENGERS, Odd, Survey, survey
from gatecli.errors import CheckpointError

WRAPPINGS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "state_dict_ema",
    "ema",
)  # the model itself before its average
PREFIXES = ("module.", "_orig_mod.")
DEEPEST = 8  # prefixes before prefixes
MOST = 64  # dicts that are looked into for a state dict
SAFETENSORS_HEADER = 100_000_000  # bytes, that format's own limit


def read_tensors(path: str | os.PathLike[str], trust_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, floating ones as contiguous float32.

    Wrappings and prefixes are taken off.

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
    check_sizes(tensors, path)
    try:
        return {name: _plain(tensor) for name, tensor in _strip(tensors).items()}
    except (RuntimeError, NotImplementedError, MemoryError) as error:
        raise CheckpointError(
            f"{path} holds a tensor that cannot be read as a dense one: {_line(error)}"
        ) from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes in hexadecimal digits.

    Raises CheckpointError if it cannot be read.
    """
    digest = hashlib.sha256()
    with _open(Path(path)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist: expected a checkpoint, a .safetensors or .pt file"
        )
    if not path.is_file():
        raise CheckpointError(
            f"{path} is a folder: expected a checkpoint, a .safetensors or .pt file"
            if path.is_dir()
            else f"{path} is not a file"
        )
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
            raise CheckpointError(
                f"{path} is empty: expected a checkpoint, a .safetensors or .pt file"
            )
        if start.startswith(b"PK"):
            return "zip"
        if path.suffix == ".safetensors" or (
            start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= SAFETENSORS_HEADER
        ):
            return "safetensors"
        if start.startswith(b"\x80") or _begins_a_pickle(start + file.read(1 << 16)):
            return "pickle"
    raise CheckpointError(
        f"{path} is neither safetensors nor a PyTorch file: it begins with {start[:12]!r}"
    )


def header_fits(path: Path) -> bool:
    """Whether a safetensors file's header is of a size that one may have.

    It is parsed into far more memory than it takes.
    """
    with _open(path) as file:
        return int.from_bytes(file.read(8), "little") <= limits.HEADER_BYTES


def _read_safetensors(path: Path, _: bool) -> Any:
    if not header_fits(path):
        raise CheckpointError(
            f"{path} is no readable safetensors file, it is damaged or cut off: "
            f"its header has more than {limits.HEADER_BYTES:,} bytes"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no readable safetensors file, it is damaged or cut off: {_line(error)}"
        ) from error


def _read_zip(path: Path, trust_pickle: bool) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(path, archive)
            data = archive.read(records["data.pkl"])
    except CheckpointError:
        raise
    except (
        Exception
    ) as error:  # zipfile raises zlib.error, struct.error and whatever else it comes to
        raise CheckpointError(f"{path} is damaged or cut off: {_line(error)}") from error
    found = _survey(path, data, pickles=1, whole=True, trust_pickle=trust_pickle)
    if found is not None:
        _compare_records(path, found, records)
        found.value = None  # torch makes it anew
    return _torch_load(path, trust_pickle, found, mmap=True)


def _records(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries of a torch file by name, each read once to compare its checksum."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    records = {entry.filename.split("/", 1)[-1]: entry for entry in entries}
    if "constants.pkl" in records:
        way_out = "torch.save(torch.jit.load(FILE).state_dict(), NEW) makes one"
        raise CheckpointError(
            f"{path}: expected a state dict but got a TorchScript archive: {way_out}"
        )
    if "data.pkl" not in records:
        raise CheckpointError(f"{path} is a zip archive but not a PyTorch file: it has no data.pkl")
    wrong = _why_not_torchs(entries, records, path.stat().st_size)
    if wrong is not None:
        raise CheckpointError(
            f"{path} is not as torch.save writes files: {wrong}: save it anew with torch.save"
        )
    for entry in entries:
        _compare_checksum(archive, entry)
    return records


def _why_not_torchs(
    entries: Sequence[zipfile.ZipInfo], records: Mapping[str, zipfile.ZipInfo], size: int
) -> str | None:
    """What is wrong with the sizes in a zip archive's list, before anything is read."""
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        return f"its entry {packed[0]} is compressed"
    if len(records) < len(entries):
        return "it has an entry twice"
    if records["data.pkl"].file_size > limits.PICKLE_BYTES:
        return f"its data.pkl has more than {limits.PICKLE_BYTES:,} bytes"
    if sum(entry.file_size for entry in entries) > size:
        return "its entries overlap"
    return None


def _compare_records(path: Path, found: Survey, records: Mapping[str, zipfile.ZipInfo]) -> None:
    """Torch itself fills a storage whose entry is short with what comes behind it."""
    for storage in found.storages.values():
        entry = records.get(f"data/{storage.key}")
        there = 0 if entry is None else entry.file_size
        if there != storage.nbytes:
            asked = (
                f"its storage {storage.key} has {there} bytes, but {storage.nbytes} are asked for"
            )
            raise CheckpointError(f"{path} is damaged or cut off: {asked}")


def _read_pickle(path: Path, trust_pickle: bool) -> Any:
    with _open(path) as file:
        data = file.read(limits.PICKLE_BYTES + 1)
    whole = len(data) <= limits.PICKLE_BYTES
    if _first_value(data) == torch.serialization.MAGIC_NUMBER:
        # magic number, version, platform, the object, and the storages' keys in the order in which
        # they follow
        found = _survey(path, data, pickles=5, whole=whole, trust_pickle=trust_pickle)
        if found is not None and not found.foreign:
            _compare_storages(path, found)
        return _torch_load(path, trust_pickle, found, mmap=False)
    if not trust_pickle:
        _survey(path, data, pickles=1, whole=whole, trust_pickle=False)
        raise CheckpointError(
            f"{path}: expected a state dict but got a plain pickle without tensors"
        )
    with _open(path) as file, _trusted(path):
        return pickle.load(file)


def _survey(
    path: Path, data: bytes, pickles: int, whole: bool, trust_pickle: bool
) -> Survey | None:
    """What the pickles hold; None where that is odd but trusted.

    Raises CheckpointError where it is neither.
    """
    try:
        found = survey(data, pickles, whole)
    except Odd as error:
        if trust_pickle:
            return None
        raise CheckpointError(
            f"{path} is refused: {error}: save its state_dict() anew with torch.save"
        ) from error
    except Exception as error:  # whatever damage brings about
        raise CheckpointError(
            f"{path} is damaged or cut off: its pickle cannot be read ({_line(error)})"
        ) from error
    if found.foreign and not trust_pickle:
        raise CheckpointError(_needs_code(path, found.foreign))
    return found


def _compare_storages(path: Path, found: Survey) -> None:
    """An older file's storages follow its pickles, each behind its count of numbers.

    Torch leaves one that is missing as memory happens to be.
    """
    damaged = f"{path} is damaged or cut off"
    if not isinstance(found.value, list) or sorted(map(str, found.value)) != sorted(found.storages):
        raise CheckpointError(f"{damaged}: it does not have the storages that its pickle asks for")
    place, size = found.end, path.stat().st_size
    with _open(path) as file:
        for storage in (found.storages[key] for key in found.value):
            file.seek(place)
            count = int.from_bytes(file.read(8), "little")
            place += 8 + storage.nbytes
            if count * storage.itemsize != storage.nbytes or place > size:
                raise CheckpointError(
                    f"{damaged}: its storage {storage.key} has not the {storage.nbytes} bytes that"
                    " are asked for"
                )


def _torch_load(path: Path, trust_pickle: bool, found: Survey | None, mmap: bool) -> Any:
    """`mmap` leaves an optimizer's state on the disk. What is trusted runs only where it has to."""
    if found is None or found.foreign:
        return _load_all(path)
    try:
        mmap = (
            mmap and path.suffix != ".safetensors"
        )  # torch goes by that suffix, and can map only what it opens itself
        passengers: list[Any] = [(stand_in, name) for name, stand_in in PASSENGERS.items()]
        with (
            _open(path) as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(passengers),
        ):
            warnings.simplefilter("ignore")
            return torch.load(
                path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap
            )
    except pickle.UnpicklingError as error:
        if trust_pickle:
            return _load_all(path)
        way_out = (
            "save its state_dict() with torch.save, or if you trust the file, add --trust-pickle"
        )
        raise CheckpointError(
            f"{path} is pickled in a way that torch does not read without running code: {way_out}"
        ) from error
    except Exception as error:  # whatever a damaged file may bring torch to
        raise CheckpointError(f"{path} is damaged or cut off: {_line(error)}") from error


def _load_all(path: Path) -> Any:
    with _open(path) as file, _trusted(path):
        return torch.load(file, map_location="cpu", weights_only=False)


@contextmanager
def _trusted(path: Path) -> Iterator[None]:
    """Let a pickle find classes in the current folder, where its script probably lies."""
    try:
        with current_folder_importable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be unpickled, it is damaged or its code is missing: {_line(error)}"
        ) from error


def _needs_code(path: Path, foreign: Sequence[str]) -> str:
    what = ", ".join(foreign[:3])
    return (
        f"{path} holds Python objects that run code when read ({what}): save its state_dict()"
        " instead, or if you trust the file, add --trust-pickle"
    )


def _first_value(data: bytes) -> object:
    try:
        return next(
            value for op, value, _ in pickletools.genops(data) if op.name not in ("PROTO", "FRAME")
        )
    except Exception:  # pickletools raises what it likes on garbage
        return None


def _begins_a_pickle(data: bytes) -> bool:
    try:
        survey(data, whole=False)
    except Odd:
        return True  # so far it is one
    except Exception:
        return False
    return True


def _compare_checksum(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read an entry to its end, where zipfile compares the checksum.

    Torch itself never does, so a flipped bit would go unseen.
    """
    if (
        entry.CRC == 0
    ):  # torch can write files without checksums; zipfile compares none where there is none
        del entry.CRC
        return
    with archive.open(entry) as file:
        while file.read(1 << 20):
            pass


def _unwrap(found: Any, seen: set[int] | None = None) -> dict[str, Tensor] | None:
    """The innermost state dict, or None if there are no tensors.

    `seen`: what was looked into, for a pickle can hold the same dict in many places, and itself.
    """
    seen = set() if seen is None else seen
    if not isinstance(found, (Mapping, nn.Module)) or id(found) in seen or len(seen) > MOST:
        return None
    seen.add(id(found))
    if isinstance(found, nn.Module):
        found = found.state_dict()
    for key in WRAPPINGS:
        if (inner := _unwrap(found.get(key), seen)) is not None:
            return inner
    return {
        name: value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    } or None


def _strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DataParallel and torch.compile put before every name."""
    for _ in range(DEEPEST):
        prefix = next(
            (each for each in PREFIXES if all(name.startswith(each) for name in tensors)), None
        )
        if prefix is None:
            break
        tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return tensors


def check_sizes(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError where reading the tensors would take far more memory than the file has
    bytes: a tensor may repeat one number.
    """
    if len(tensors) > limits.TENSORS:
        raise CheckpointError(
            f"{path} has {len(tensors)} tensors: expected at most {limits.TENSORS:,}"
        )
    stored = path.stat().st_size
    asked = sum(
        tensor.numel() * (4 if tensor.is_floating_point() else tensor.element_size())
        for tensor in tensors.values()
    )
    if asked > limits.copied(stored):
        raise CheckpointError(
            f"{path} has {stored:,} bytes, but tensors of {asked:,}: expected each to be stored in"
            " full, not expanded: save them with .contiguous()"
        )


def _plain(tensor: Tensor) -> Tensor:
    """A copy of its own: the file may be replaced or cut while its mapped memory is in use."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise RuntimeError(
            f"a {'quantized' if tensor.is_quantized else 'sparse or empty (meta)'} tensor of shape"
            f" {tuple(tensor.shape)}"
        )
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
