"""The option `--for-this-processor` of `gatecli export`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli import exporting
from gatecli.cli.progress import Reporter
from gatecli.cli.session import Session
from gatecli.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.exporting.export import Exported

__all__ = ["Processor", "tell_processor", "write_for_processor"]

ABLE = exporting.titles("lay_out")  # the formats that have such files


@dataclass(frozen=True, kw_only=True)
class Processor:
    """Whether to write a file for this machine's kind of processor alone."""

    for_this_processor: Annotated[
        bool,
        typer.Option(
            "--for-this-processor",
            help=(
                f"{ABLE}, dynamic networks: laid out for this machine's processor, and wrong on"
                " others; written where it measures no slower."
            ),
        ),
    ] = False

    def check(self, format: exporting.Format, *, int8: bool, split: bool) -> None:
        """Check the option.

        Raises:
            ExportError: The format has no such files, or --int8 or --split is given too.
        """
        if self.for_this_processor and format.lay_out is None:
            raise ExportError(
                f"--for-this-processor is for {ABLE} files: {format.name} has portable ones alone"
            )
        if self.for_this_processor and int8:
            raise ExportError(
                "--int8 is for networks that decide nothing at run time, --for-this-processor for"
                " those that do: leave one of them out"
            )
        if self.for_this_processor and split:
            raise ExportError(
                "--for-this-processor is for networks in one file: leave it or --split out"
            )

    @property
    def suffix(self) -> str:
        """What the file's name has before its format's suffix."""
        return ".for-processor" if self.for_this_processor else ""


def write_for_processor(
    session: Session, write: Callable[[Path], Exported], target: Path, images: Tensor
) -> tuple[Exported, dict[str, Any]]:
    """Write the file for this processor.

    Args:
        session: The command's.
        write: Writes the portable file.
        target: The file.
        images: To compare and time both on, (n, C, H, W).

    Returns:
        What was written, and the facts for the JSON.

    Raises:
        ExportError: Nothing is decided at run time, or the file is not faster.
    """
    from gatecli.stages.for_processor import for_processor

    with tempfile.TemporaryDirectory() as folder:
        full = write(Path(folder, target.name))
        found = for_processor(full, target, images, progress=Reporter(session))
    return replace(full, out=target, files=[target]), asdict(found)


def tell_processor(session: Session, facts: dict[str, Any]) -> None:
    """Say for what processor the file is, and what it gains."""
    session.say(
        f"it is for {facts['processor']} alone: {facts['speedup']:.3f} times as fast here as the"
        f" portable file ({facts['before']['median']:.2f} -> {facts['after']['median']:.2f} ms)"
    )
