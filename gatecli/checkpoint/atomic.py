"""Files that appear in full or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gatecli.errors import CheckpointError, not_utf8

__all__ = ["FORGOTTEN", "OURS", "check_name", "replacing"]

# Names of temporary files: which machine's, which process's.
OURS = re.compile(r"\..*\.gatecli-([0-9a-f]{8})-([0-9]{1,9})-\w+\.tmp", re.DOTALL)
# Seconds after which a temporary file of another machine is one of a writer that is dead.
FORGOTTEN = 24 * 3600.0


def check_name(path: Path) -> None:
    """Check that safetensors, torch, ONNX Runtime and TensorBoard can open a name.

    Raises:
        CheckpointError: they cannot.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(not_utf8(str(path))) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, to be written inside the block.

    Flushed to the disk, it then takes the place of `path`, and its permissions and owner. Where the
    block fails, it is gone and `path` is as it was. What writers that were killed have left in the
    folder is removed.

    Raises:
        CheckpointError: writing fails (a full disk, say).
    """
    temporary = None
    try:
        _sweep(path.parent)
        handle, name = tempfile.mkstemp(
            prefix=f".{_short(path.name)}.gatecli-{_machine()}-{os.getpid()}-",
            suffix=".tmp",
            dir=path.parent,
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _permit(temporary, path)
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _short(name: str) -> str:
    """The beginning of a name, so that a temporary file's is never too long; in UTF-8."""
    return os.fsencode(name)[:100].decode("utf-8", "ignore")


def _permit(temporary: Path, path: Path) -> None:
    """Give a file the mode, and where possible the owner, of the one that it will replace.

    Where there is none, give it what a new file has here.
    """
    try:
        before = path.stat()
    except OSError:
        temporary.chmod(0o666 & ~_umask())
        return
    if hasattr(os, "chown"):
        with suppress(OSError):  # for the system's manager alone
            os.chown(temporary, before.st_uid, before.st_gid)
    temporary.chmod(stat.S_IMODE(before.st_mode) & 0o777)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sweep(folder: Path) -> None:
    """Remove the temporary files of writers that are dead."""
    with os.scandir(folder) as entries:
        found = [(Path(entry.path), OURS.fullmatch(entry.name)) for entry in entries]
    for file, ours in found:
        if ours is None:
            continue
        with suppress(OSError):  # another process may sweep too
            if _abandoned(file, ours[1], int(ours[2])):
                file.unlink()


def _abandoned(file: Path, machine: str, process: int) -> bool:
    if machine != _machine() or os.name != "posix":  # who runs there cannot be seen from here
        return time.time() - file.lstat().st_mtime > FORGOTTEN
    try:
        os.kill(process, 0)  # no signal: only a question
    except ProcessLookupError:
        return True
    return False


def _machine() -> str:
    """The computer, or container, in which a process number means the same process."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]
