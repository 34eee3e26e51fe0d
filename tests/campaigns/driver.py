"""Run a gatecli command, and kill it at the n-th file operation: python driver.py N REPORT ARGS...

N = 0 kills nothing; the number of operations is written to REPORT when the command is over.
Operations are those that change files in the working folder, seen by Python's audit events before
they happen, and calls of fsync. A tensors' file counts twice: before it is there, and half written.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkstemp")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Counter:
    """Counts operations, and kills at one of them."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.count = fatal, 0
        self.home = os.getcwd()

    def operation(self) -> None:
        """One more operation is about to happen."""
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """A hook for `sys.addaudithook`."""
        if event in EVENTS and self._here(arguments[0]):
            self.operation()
        if event == "open" and _writes(arguments[2]) and self._here(arguments[0]):
            self.operation()

    def _here(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.home + os.sep)


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & WRITING)


def _torn(counter: Counter, write: Callable[..., None]) -> Callable[..., None]:
    """`safetensors.torch.save_file`, of which a kill may leave one half."""

    def save_file(tensors: Any, filename: Any, *more: Any, **named: Any) -> None:
        counter.operation()
        write(tensors, filename, *more, **named)
        whole = Path(filename).read_bytes()
        if counter.count + 1 == counter.fatal:
            os.truncate(filename, len(whole) // 2)
        counter.operation()

    return save_file


def main() -> None:
    """See above."""
    fatal, report = int(sys.argv[1]), Path(sys.argv[2])
    counter = Counter(fatal)
    import safetensors.torch

    from gatecli.cli.app import app

    safetensors.torch.save_file = _torn(counter, safetensors.torch.save_file)
    synchronise = os.fsync

    def fsync(fd: Any) -> None:
        counter.operation()
        synchronise(fd)

    os.fsync = fsync
    sys.addaudithook(counter.audit)
    sys.argv = ["gatecli", *sys.argv[3:]]
    try:
        app()
    finally:
        report.write_text(str(counter.count), encoding="utf-8")


if __name__ == "__main__":
    main()
