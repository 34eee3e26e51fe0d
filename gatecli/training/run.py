"""A run's folder: the resumable state, the best and the last tensors, and the log.

No pickle: safetensors and JSON lines.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gatecli.checkpoint import save_tensors
from gatecli.checkpoint.atomic import replacing
from gatecli.errors import CheckpointError, TrainingError
from gatecli.traced.recipe import finite_number

__all__ = ["LOG_EVERY", "Run", "intact"]

STATE = "state.safetensors"
BEST = "best.safetensors"
LAST = "last.safetensors"
EPOCH = "epoch.safetensors"
LOG = "log.jsonl"
TABLE = "latency.json"
LOG_EVERY = 20  # steps between lines of the log
FORMAT = "3"  # of the state: another one whenever what it holds changes
DAMAGE = (  # what reading a damaged file raises
    SafetensorError,
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,
)


class Run:
    """One training run on disk.

    Attributes:
        folder: Where it is.
        about: What `--resume` needs to start it again: input, output, options.
        listeners: Each is given what is logged.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = dict(about)
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []

    @classmethod
    def begin(cls, folder: Path, about: Mapping[str, Any]) -> Run:
        """A new run in `folder`, in place of an earlier one there.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (STATE, BEST, LAST, EPOCH, LOG, TABLE):
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the run's folder {folder}: {error.strerror}"
            ) from error
        return cls(folder, about)

    @classmethod
    def unfinished(cls, runs: Path) -> Run:
        """The run under `runs` whose state was saved last.

        Raises:
            TrainingError: None is unfinished.
            CheckpointError: Its state is of no use.
        """
        states = [path for path in runs.glob(f"*/{STATE}") if path.is_file()]
        if not states:
            raise TrainingError(f"there is no unfinished run to resume in {runs}")
        latest = sorted(states, key=lambda path: path.stat().st_mtime)[-1]
        with intact(latest), safe_open(latest, "pt") as file:
            metadata = file.metadata()
            if metadata["format"] != FORMAT:
                raise CheckpointError(
                    f"{latest} was saved by another gatecli (its format is"
                    f" {metadata['format']}, not {FORMAT}): start a new run without --resume"
                )
            about = json.loads(metadata["about"], parse_constant=finite_number)
            return cls(latest.parent, about)

    @property
    def state(self) -> Path:
        """The file of the resumable state."""
        return self.folder / STATE

    def save(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Save the state, all or nothing."""
        metadata = {
            "format": FORMAT,
            "about": json.dumps(self.about),
            "position": json.dumps(position),
        }
        save_tensors(tensors, self.state, metadata)

    def keep_epoch(self) -> None:
        """Keep the state that was saved last as that of an epoch's beginning."""
        with replacing(self.folder / EPOCH) as temporary:
            shutil.copyfile(self.state, temporary)

    def epoch(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `keep_epoch` kept last, as `saved` gives a state.

        Raises:
            CheckpointError: It is damaged.
        """
        return _read(self.folder / EPOCH, "position")

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state's tensors and position, or None before the first save.

        Raises:
            CheckpointError: The state is damaged.
        """
        return _read(self.state, "position") if self.state.exists() else None

    def save_best(self, tensors: Mapping[str, Tensor]) -> None:
        """Save the network's tensors of the best epoch."""
        save_tensors(tensors, self.folder / BEST, {})

    def best(self) -> dict[str, Tensor]:
        """The network's tensors of the best epoch.

        Raises:
            CheckpointError: They are damaged.
        """
        return _read(self.folder / BEST, None)[0]

    def save_last(self, tensors: Mapping[str, Tensor]) -> None:
        """Save the network's tensors after the last step."""
        save_tensors(tensors, self.folder / LAST, {})

    def keep_table(self, facts: Mapping[str, Any]) -> None:
        """Keep the latency table that the run goes by.

        Raises:
            CheckpointError: It cannot be written.
        """
        with replacing(self.folder / TABLE) as temporary:
            temporary.write_text(json.dumps(facts), encoding="utf-8")

    def table(self) -> dict[str, Any] | None:
        """The latency table's facts, or None where the run keeps none.

        Raises:
            CheckpointError: They are damaged.
        """
        path = self.folder / TABLE
        if not path.exists():
            return None
        with intact(path):
            return dict(json.loads(path.read_text(encoding="utf-8"), parse_constant=finite_number))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to the log, and tell the listeners.

        Raises:
            CheckpointError: The log cannot be written.
        """
        path = self.folder / LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
        for listener in self.listeners:
            listener(row)

    def rewind_log(self, step: int, closed: int) -> None:
        """Drop of the log what comes again, and a line that a kill cut off.

        Args:
            step: Later steps come again.
            closed: Later epochs come again.
        """
        path = self.folder / LOG
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        with intact(path):
            rows = [json.loads(line) for line in lines if line.endswith("\n")]
            kept = [row for row in rows if _is_past(row, step, closed)]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def finish(self) -> None:
        """The run is over: nothing is left to resume.

        The log, the best and the last tensors stay.
        """
        self.state.unlink(missing_ok=True)
        (self.folder / EPOCH).unlink(missing_ok=True)


def _is_past(row: Mapping[str, Any], step: int, closed: int) -> bool:
    """Whether a line of the log is of a closed epoch, or of a step up to `step`."""
    is_epoch = "val_top1" in row
    return bool(row["epoch"] <= closed if is_epoch else row["step"] <= step)


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file brings about, into an error that names it.

    Raises:
        CheckpointError: Reading the file inside the block failed.
    """
    try:
        yield
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged ({' '.join(str(error).split())[:160]}): start a new run without"
            " --resume"
        ) from error


def _read(path: Path, key: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, and the JSON object in its metadata under `key`, if any."""
    with intact(path), safe_open(path, "pt") as file:
        text = file.metadata()[key] if key else "{}"
        position = json.loads(text, parse_constant=finite_number)
        names = file.keys()  # the file itself is no mapping
        return {name: file.get_tensor(name) for name in names}, position
