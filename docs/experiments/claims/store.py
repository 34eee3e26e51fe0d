"""The file of JSON lines: one a run, appended when the run is over."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["KEY", "Store"]

KEY = ("paper", "variant", "seed", "epochs", "settings", "problem")  # what makes a run the same


class Store:
    """What has been run, and is not to be run again.

    A run that was stopped while its line was written leaves half a line at the end of the file,
    which is dropped.

    Args:
        path: Of the file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All runs, the oldest first."""
        return [json.loads(line) for line in self._whole().splitlines()]

    def find(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """The latest line of a run, which has what KEY names; None: it has not been run."""
        wanted = _key(run)
        return next((line for line in reversed(self.lines()) if _key(line) == wanted), None)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a run, in a file that then ends with a whole line."""
        whole = self._whole()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(len(whole))
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole(self) -> bytes:
        """The file up to its last line's end."""
        text = self.path.read_bytes() if self.path.exists() else b""
        return text[: text.rfind(b"\n") + 1]


def _key(line: Mapping[str, Any]) -> str:
    return json.dumps([line[name] for name in KEY], sort_keys=True)
