"""A run's folder: the resumable state, the best and the last tensors, and the log.

No pickle: safetensors and JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gatecli.checkpoint import save_tensors
from gatecli.checkpoint.atomic import replacing
from gatecli.errors import CheckpointError, TrainingError
from gatecli.traced.recipe import parsed

STATE, BEST, LAST, LOG = "state.safetensors", "best.safetensors", "last.safetensors", "log.jsonl"
FORMAT = "3"  # of the state: another one whenever what it holds changes


class Run:
    """One training run on disk.

    `about` is what `--resume` needs to start it again: input, output, options.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, dict(about)
        self.listeners: list[
            Callable[[Mapping[str, Any]], None]
        ] = []  # each is given what is logged

    @classmethod
    def begin(cls, folder: Path, about: Mapping[str, Any]) -> Run:
        """A new run in `folder`, in place of an earlier one there."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (STATE, BEST, LAST, LOG):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the run's folder {folder}: {error.strerror}"
            ) from error
        return cls(folder, about)

    @classmethod
    def unfinished(cls, runs: Path) -> Run:
        """The run under `runs` whose state was saved last.

        Raises TrainingError if none is unfinished, CheckpointError if its state is of no use.
        """
        states = sorted(
            (path for path in runs.glob(f"*/{STATE}") if path.is_file()),
            key=lambda path: path.stat().st_mtime,
        )
        if not states:
            raise TrainingError(f"there is no unfinished run to resume in {runs}")
        with intact(states[-1]), safe_open(states[-1], "pt") as file:
            metadata = file.metadata()
            if metadata["format"] != FORMAT:
                raise CheckpointError(
                    f"{states[-1]} was saved by another gatecli (its format is"
                    f" {metadata['format']}, not {FORMAT}): start a new run without --resume"
                )
            return cls(states[-1].parent, parsed(metadata["about"]))

    @property
    def state(self) -> Path:
        return self.folder / STATE

    def save(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Save the state, all or nothing."""
        save_tensors(
            tensors,
            self.state,
            {"format": FORMAT, "about": json.dumps(self.about), "position": json.dumps(position)},
        )

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state's tensors and position, or None before the first save."""
        return _read(self.state, "position") if self.state.exists() else None

    def save_best(self, tensors: Mapping[str, Tensor]) -> None:
        save_tensors(tensors, self.folder / BEST, {})

    def best(self) -> dict[str, Tensor]:
        return _read(self.folder / BEST, None)[0]

    def save_last(self, tensors: Mapping[str, Tensor]) -> None:
        save_tensors(tensors, self.folder / LAST, {})

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to the log, and tell the listeners."""
        path = self.folder / LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
        for listener in self.listeners:
            listener(row)

    def rewind_log(self, step: int, closed: int) -> None:
        """Drop what comes again: steps after `step`, epochs after `closed`, and a line that a kill
        cut off.
        """
        path = self.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        with intact(path):
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            kept = [
                row
                for row in rows
                if (row["epoch"] <= closed if "val_top1" in row else row["step"] <= step)
            ]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def finish(self) -> None:
        """The run is over: nothing is left to resume.

        The log, the best and the last tensors stay.
        """
        self.state.unlink(missing_ok=True)


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file brings about, into an error that names it."""
    try:
        yield
    except (
        SafetensorError,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise CheckpointError(
            f"{path} is damaged ({' '.join(str(error).split())[:160]}): start a new run without"
            " --resume"
        ) from error


def _read(path: Path, key: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with intact(path), safe_open(path, "pt") as file:
        position = parsed(file.metadata()[key]) if key else {}
        names = file.keys()  # the file itself is no mapping
        return {name: file.get_tensor(name) for name in names}, position
