"""Every error that a user can cause. The command line prints its text as one line and exits with 1.

    GatecliError
    ├── CheckpointError      a file that cannot be read, written, or trusted
    ├── ArchitectureError    a network that cannot be found, built or traced
    ├── SettingError         a method, setting or option with a wrong name, type or value
    ├── DataError            a data set or one of its files
    ├── TrainingError        training cannot start or go on
    ├── ExportError          a network cannot be written in a format, or not with what is installed
    └── Interrupted          Ctrl-C or SIGTERM; the state on disk is resumable

What other libraries raise is put into words by `blame`.

Texts read "expected `x` to be ... but got ...", name the file or setting, and say the way out.
"""

from __future__ import annotations

import errno
import zlib

__all__ = [
    "ArchitectureError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "GatecliError",
    "InternalError",
    "Interrupted",
    "SettingError",
    "TrainingError",
    "blame",
    "first_line",
    "not_utf8",
    "out_of_memory",
    "reason",
]

MEMORY = (  # what torch and others say where there is none left
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "unable to allocate",
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "alloc_failed",
    "memoryallocation",
)


class GatecliError(Exception):
    """Base of all errors that are the input's fault, not gatecli's."""

    exit_code = 1


class InternalError(Exception):
    """Something that cannot be, unless gatecli is wrong: a bug in gatecli."""


class CheckpointError(GatecliError):
    """A checkpoint cannot be read, written or trusted."""


class ArchitectureError(GatecliError):
    """An architecture cannot be found, built or traced, or has nothing to gate."""


class SettingError(GatecliError):
    """A method, setting or option has a wrong name, type or value."""


class DataError(GatecliError):
    """A data set, or one of its files, is missing, damaged or does not fit the network."""


class TrainingError(GatecliError):
    """Training cannot start or cannot go on."""


class ExportError(GatecliError):
    """A network cannot be written in a format, or a package for it is missing."""


class Interrupted(GatecliError):
    """Ctrl-C or SIGTERM arrived; what was saved last is resumable."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its name where it says nothing."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


def reason(error: BaseException, most: int | None = None) -> str:
    """What an error says, all of it in one line of at most `most` characters.

    Its name where it says nothing.
    """
    return " ".join((str(error) or type(error).__name__).split())[:most]


def blame(error: Exception) -> str:
    """What to tell of an error that is none of gatecli's own.

    Whose fault it is, and the way out.
    """
    text = f"{type(error).__name__}: {error}"
    if out_of_memory(error):
        return f"not enough memory: take smaller batches or images ({text[:160]})"
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    if isinstance(error, zlib.error):
        return (
            f"a file that was read is damaged, its compressed data make no sense ({error}):"
            " replace it"
        )
    if (
        isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason
    ):  # bytes of a name are surrogates in Python, which many libraries refuse
        return not_utf8(error.object)
    return f"{text} (a bug in gatecli: --debug shows where)"


def not_utf8(name: str) -> str:
    """What to tell of a name that libraries cannot open."""
    return (
        f"expected the names of files to be UTF-8, but got {name[:200]!a}: rename the file or its"
        " folder"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of an accelerator, in whatever words."""
    said = f"{type(error).__name__} {error}".lower()
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "outofmemory" in said
        or any(words in said for words in MEMORY)
    )
