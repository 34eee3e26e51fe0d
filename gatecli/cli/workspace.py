"""The working folder: the current checkpoint, where runs are kept, how outputs are named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gatecli.checkpoint.atomic import replacing
from gatecli.errors import CheckpointError

if TYPE_CHECKING:
    from gatecli.cli.options import Output

__all__ = [
    "CURRENT",
    "FOLDER",
    "RUNS",
    "current",
    "default_out",
    "make_current",
    "output_of",
    "run_folder",
]

FOLDER = Path(".gatecli")
CURRENT = FOLDER / "current"
RUNS = FOLDER / "runs"
LONGEST = 65536  # bytes of a path
SUFFIXES = (".safetensors", ".pth.tar", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")


def current() -> Path:
    """Return the current checkpoint.

    Raises:
        CheckpointError: There is none, or it is gone.
    """
    name = _written()
    if not name:
        raise CheckpointError(
            "there is no current checkpoint in this folder: name one, or begin with gatecli attach"
            " CHECKPOINT --method NAME"
        )
    if not Path(name).is_file():
        raise CheckpointError(
            f"the current checkpoint {name} is gone: name another, or make one current with gatecli"
            " use FILE"
        )
    return Path(name)


def _written() -> str:
    """The name in the file `current`, every character of it: a name may begin or end with a space.

    Empty where there is none.
    """
    try:
        if not CURRENT.is_file():
            return ""
        with CURRENT.open("rb") as file:
            return os.fsdecode(file.read(LONGEST).removesuffix(b"\n"))
    except OSError:
        return ""


def make_current(path: Path) -> None:
    """Make `path` the current checkpoint.

    Raises:
        CheckpointError: The working folder cannot be written.
    """
    try:
        FOLDER.mkdir(exist_ok=True)
        with replacing(CURRENT) as temporary:
            temporary.write_bytes(os.fsencode(path) + b"\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {CURRENT}: {error.strerror}") from error


def default_out(checkpoint: Path, done: str) -> Path:
    """Name an output in this folder by what was done.

    `resnet50.pt` and `aig-perbatch` make `resnet50.aig-perbatch.safetensors`.
    """
    name = checkpoint.name.removeprefix("torchvision:").removeprefix("timm:")
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            name = name.removesuffix(suffix)
            break
    return Path(f"{name}.{done}.safetensors")


def output_of(checkpoint: Path, done: str, output: Output) -> Path:
    """Return where to write what is made from a checkpoint, and refuse it before any work.

    Args:
        checkpoint: The file read.
        done: What is done, for the name where the user gives none.
        output: What the options say.

    Raises:
        CheckpointError: It exists and may not be replaced, or cannot be written.
    """
    from gatecli.checkpoint import check_output

    target = output.out or default_out(checkpoint, done)
    check_output(target, force=output.force, inputs=[checkpoint])
    return target


def run_folder(target: Path) -> Path:
    """Where the run is kept that writes `target`."""
    return RUNS / target.name.removesuffix(".safetensors")
