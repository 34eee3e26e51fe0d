"""What is kept of a row of steps, in a small JSON file of the working folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gatecli.checkpoint.atomic import replacing
from gatecli.cli.workspace import FOLDER
from gatecli.errors import CheckpointError, TrainingError

__all__ = ["SLIM", "Done", "State", "keep", "latest", "read", "road_file"]

SLIM = "slim"
FORMAT = 1  # of the file
LARGEST = 64 << 20  # bytes of a file that is read
BROKEN = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A step that has been done.

    Attributes:
        line: What a user would have typed behind `gatecli`.
        inputs: The SHA-256 of each file that it read.
        out: The file that it wrote, if any, and `sha256` that file's.
        result: What it came to, as JSON.
        seconds: What it took, a resumed training only since it was resumed.
    """

    line: str
    inputs: dict[str, str]
    out: str | None
    sha256: str | None
    result: dict[str, Any]
    seconds: float


@dataclass(kw_only=True)
class State:
    """What the file holds.

    Attributes:
        about: The row's options, by the parameter's name.
        threads: CPU threads of its trainings.
        done: The steps behind it.
        begun: The line that was running, or nothing.
        out: What that line writes, or nothing.
        finished: Whether the row has come to its end.
        format: The file's.
    """

    about: dict[str, Any]
    threads: int
    done: list[Done] = field(default_factory=list)
    begun: str = ""
    out: str = ""
    finished: bool = False
    format: int = FORMAT


def read(path: Path) -> State:
    """What a file says.

    Raises:
        CheckpointError: It is damaged, or another gatecli's.
    """
    from gatecli.traced.strict import checked, parsed

    try:
        if path.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        raw = parsed(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']!r}")
        done = [checked(Done(**each)) for each in raw.pop("done")]
        state = State(**raw, done=done)
        if not isinstance(state.about, dict) or not 1 <= state.threads <= 1024:
            raise ValueError("no options")
        return state
    except BROKEN as error:
        raise CheckpointError(
            f"{path} is damaged ({' '.join(str(error).split())[:160]}): remove it, and begin again"
            " without --resume"
        ) from error


def latest() -> tuple[Path, State]:
    """The row of gatecli slim that was stopped last.

    Raises:
        TrainingError: None is unfinished.
        CheckpointError: One of the files is damaged.
    """
    paths = sorted(
        (FOLDER / SLIM).glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    for path in paths:
        state = read(path)
        if not state.finished:
            return path, state
    raise TrainingError(
        f"there is nothing unfinished to resume in {FOLDER / SLIM}: name a checkpoint"
    )


def road_file(command: str, out: Path) -> Path:
    """Where a command keeps its row of steps that ends in the file `out`."""
    return FOLDER / command / f"{out.name.removesuffix('.safetensors')}.json"


def keep(path: Path, state: State) -> None:
    """Write a state into its file.

    Raises:
        CheckpointError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
