"""Every error that a user can cause. The command line prints its text as one line and exits with 1.

    GatecliError
    ├── CheckpointError      a file that cannot be read, written, or trusted
    ├── ArchitectureError    a network that cannot be found, built or traced
    ├── SettingError         a method, setting or option with a wrong name, type or value
    ├── DataError            a data set or one of its files
    ├── TrainingError        training cannot start or go on
    ├── ExportError          a network cannot be written in a format, or not with what is installed
    └── Interrupted          Ctrl-C or SIGTERM; the state on disk is resumable

Texts read "expected `x` to be ... but got ...", name the file or setting, and say the way out.
"""


class GatecliError(Exception):
    """Base of all errors that are the input's fault, not gatecli's."""

    exit_code = 1


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
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
