"""A run's folder: the resumable state, the best and the last tensors, and the log. No pickle: safetensors and JSON lines."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from gatecli.checkpoint import save_tensors
from gatecli.errors import CheckpointError, TrainingError

STATE, BEST, LAST, LOG = "state.safetensors", "best.safetensors", "last.safetensors", "log.jsonl"


class Run:
    """One training run on disk; `about` is what `--resume` needs to start it again: input, output, options."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, dict(about)

    @classmethod
    def begin(cls, folder: Path, about: Mapping[str, Any]) -> Run:
        """A new run in `folder`, in place of an earlier one there."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (STATE, BEST, LAST, LOG):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot write the run's folder {folder}: {error.strerror}") from error
        return cls(folder, about)

    @classmethod
    def unfinished(cls, runs: Path) -> Run:
        """The run under `runs` whose state was saved last. Raises TrainingError if none is unfinished."""
        states = sorted(runs.glob(f"*/{STATE}"), key=lambda path: path.stat().st_mtime)
        if not states:
            raise TrainingError(f"there is no unfinished run to resume in {runs}")
        with safe_open(states[-1], "pt") as file:
            return cls(states[-1].parent, json.loads(file.metadata()["about"]))

    def save(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Save the state atomically."""
        save_tensors(tensors, self.folder / STATE, {"about": json.dumps(self.about), "position": json.dumps(position)})

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state's tensors and position, or None before the first save."""
        return _read(self.folder / STATE, "position") if (self.folder / STATE).exists() else None

    def save_best(self, tensors: Mapping[str, Tensor]) -> None:
        save_tensors(tensors, self.folder / BEST, {})

    def best(self) -> dict[str, Tensor]:
        return _read(self.folder / BEST, None)[0]

    def save_last(self, tensors: Mapping[str, Tensor]) -> None:
        save_tensors(tensors, self.folder / LAST, {})

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to the log."""
        with open(self.folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop the lines of steps after `step`: they will come again. A line cut off by a kill is dropped too."""
        path = self.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step), encoding="utf-8")

    def finish(self) -> None:
        """The run is over: nothing is left to resume; the log, the best and the last tensors stay."""
        (self.folder / STATE).unlink(missing_ok=True)


def _read(path: Path, key: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        position = json.loads(file.metadata()[key]) if key else {}
        return {name: file.get_tensor(name) for name in file.keys()}, position
