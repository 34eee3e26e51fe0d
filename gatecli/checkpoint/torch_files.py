"""Read PyTorch files, old and new, without running what is in them.

Torch itself reads them, once the survey has found that they ask for nothing but what they hold.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gatecli import limits
from gatecli.checkpoint.opening import open_file
from gatecli.checkpoint.stand_ins import PASSENGERS, Odd
from gatecli.checkpoint.survey import Survey, survey
from gatecli.errors import CheckpointError, reason
from gatecli.importing import current_folder_importable

__all__ = ["begins_a_pickle", "read_pickle", "read_zip"]


def read_zip(path: Path, *, trust_pickle: bool) -> Any:
    """What a zip archive that torch.save wrote holds (torch since 1.6).

    Args:
        path: the file.
        trust_pickle: whether code in it may run.

    Raises:
        CheckpointError: it is damaged, no PyTorch file, or needs code that is not trusted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(path, archive)
            data = archive.read(records["data.pkl"])
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises zlib.error, struct.error and what else it comes to
        raise CheckpointError(f"{path} is damaged or cut off: {reason(error, 160)}") from error
    found = _survey(path, data, pickles=1, whole=True, trust_pickle=trust_pickle)
    if found is not None:
        _compare_records(path, found, records)
        found.value = None  # torch makes it anew
    return _torch_load(path, found, trust_pickle=trust_pickle, mmap=True)


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
            raise CheckpointError(
                f"{path} is damaged or cut off: its storage {storage.key} has {there} bytes, but"
                f" {storage.nbytes} are asked for"
            )


def read_pickle(path: Path, *, trust_pickle: bool) -> Any:
    """What a pickle holds (torch before 1.6, or no torch at all). As `read_zip`."""
    with open_file(path) as file:
        data = file.read(limits.PICKLE_BYTES + 1)
    whole = len(data) <= limits.PICKLE_BYTES
    if _first_value(data) == torch.serialization.MAGIC_NUMBER:
        # magic number, version, platform, the object, and the storages' keys, in their order
        found = _survey(path, data, pickles=5, whole=whole, trust_pickle=trust_pickle)
        if found is not None and not found.foreign:
            _compare_storages(path, found)
        return _torch_load(path, found, trust_pickle=trust_pickle, mmap=False)
    if not trust_pickle:
        _survey(path, data, pickles=1, whole=whole, trust_pickle=False)
        raise CheckpointError(
            f"{path}: expected a state dict but got a plain pickle without tensors"
        )
    with open_file(path) as file, _trusted(path):
        return pickle.load(file)


def _survey(
    path: Path, data: bytes, *, pickles: int, whole: bool, trust_pickle: bool
) -> Survey | None:
    """What the pickles hold; None where that is odd but trusted.

    Raises CheckpointError where it is neither.
    """
    try:
        found = survey(data, pickles, whole=whole)
    except Odd as error:
        if trust_pickle:
            return None
        raise CheckpointError(
            f"{path} is refused: {error}: save its state_dict() anew with torch.save"
        ) from error
    except Exception as error:  # whatever damage brings about
        raise CheckpointError(
            f"{path} is damaged or cut off: its pickle cannot be read ({reason(error, 160)})"
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
    place = found.end
    size = path.stat().st_size
    with open_file(path) as file:
        for key in found.value:
            storage = found.storages[key]
            file.seek(place)
            count = int.from_bytes(file.read(8), "little")
            place += 8 + storage.nbytes
            if count * storage.itemsize != storage.nbytes or place > size:
                raise CheckpointError(
                    f"{damaged}: its storage {storage.key} has not the {storage.nbytes} bytes that"
                    " are asked for"
                )


def _torch_load(path: Path, found: Survey | None, *, trust_pickle: bool, mmap: bool) -> Any:
    """Have torch read the file. What is trusted runs only where it has to.

    Args:
        path: the file.
        found: what the survey says; None where that is odd but trusted.
        trust_pickle: whether code in it may run.
        mmap: leaves an optimizer's state on the disk.
    """
    if found is None or found.foreign:
        return _load_all(path)
    if path.suffix == ".safetensors":
        mmap = False  # torch goes by that suffix, and can map only what it opens itself
    passengers: list[Any] = [(stand_in, name) for name, stand_in in PASSENGERS.items()]
    allowed = torch.serialization.safe_globals(passengers)
    try:
        with open_file(path) as file, warnings.catch_warnings(), allowed:
            warnings.simplefilter("ignore")
            given = path if mmap else file
            return torch.load(given, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if trust_pickle:
            return _load_all(path)
        raise CheckpointError(
            f"{path} is pickled in a way that torch does not read without running code: save its"
            " state_dict() with torch.save, or if you trust the file, add --trust-pickle"
        ) from error
    except Exception as error:  # whatever a damaged file may bring torch to
        raise CheckpointError(f"{path} is damaged or cut off: {reason(error, 160)}") from error


def _load_all(path: Path) -> Any:
    with open_file(path) as file, _trusted(path):
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
            f"{path} cannot be unpickled, it is damaged or its code is missing:"
            f" {reason(error, 160)}"
        ) from error


def _needs_code(path: Path, foreign: Sequence[str]) -> str:
    what = ", ".join(foreign[:3])
    return (
        f"{path} holds Python objects that run code when read ({what}): save its state_dict()"
        " instead, or if you trust the file, add --trust-pickle"
    )


def _first_value(data: bytes) -> object:
    try:
        for operation, value, _ in pickletools.genops(data):
            if operation.name not in ("PROTO", "FRAME"):
                return value
    except Exception:  # pickletools raises what it likes on garbage
        pass
    return None


def begins_a_pickle(data: bytes) -> bool:
    """Whether these bytes are the beginning of a pickle."""
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
    if entry.CRC == 0:
        del entry.CRC  # torch can write files without checksums: zipfile compares none then
        return
    with archive.open(entry) as file:
        while file.read(1 << 20):
            pass
