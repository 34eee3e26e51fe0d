"""The option `--int8` of `gatecli export`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli import exporting
from gatecli.cli.parsing import check_between
from gatecli.cli.progress import Reporter
from gatecli.cli.render import percent, table
from gatecli.cli.session import Session
from gatecli.errors import ExportError

if TYPE_CHECKING:
    from gatecli.data import DataSet
    from gatecli.exporting.export import Exported
    from gatecli.traced.images import InputSpec

__all__ = ["Asked", "EightBit", "tell_int8", "write_int8"]

ABLE = exporting.titles("quantise")  # the formats that have such files

MOST_IMAGES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class EightBit:
    """Whether to write an eight-bit file, and the images for that."""

    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help=(
                f"{ABLE}: compute with eight-bit integers; says what that costs in accuracy on"
                " val. Needs a data set."
            ),
        ),
    ] = False
    calibration_images: Annotated[
        int, typer.Option(help="Images of train on which --int8 measures ranges.")
    ] = 512
    val_images: Annotated[
        int, typer.Option(help="Images of val on which --int8 measures accuracy, at most.")
    ] = 5000

    def check(self, format: exporting.Format) -> None:
        """Check the options.

        Raises:
            ExportError: The format has no eight-bit files.
            SettingError: A number is out of range.
        """
        check_between("calibration-images", self.calibration_images, 1, MOST_IMAGES)
        check_between("val-images", self.val_images, 1, MOST_IMAGES)
        if self.int8 and format.quantise is None:
            raise ExportError(
                f"--int8 is for {ABLE} files: {format.name} computes in float32 alone"
            )

    @property
    def suffix(self) -> str:
        """What the file's name has before its format's suffix."""
        return ".int8" if self.int8 else ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an eight-bit file is made from.

    Attributes:
        write: Writes the full-precision file.
        data: The data set; None: none is known, or it cannot be read.
        input: How the network wants images.
        force: Write it also where it is useless.
    """

    write: Callable[[Path], Exported]
    data: DataSet | None
    input: InputSpec
    force: bool


def write_int8(
    session: Session, options: EightBit, asked: Asked, target: Path
) -> tuple[Exported, dict[str, Any]]:
    """Write the eight-bit file, and say what it costs.

    Returns:
        What was written, and the facts for the JSON.

    Raises:
        ExportError: There is no data set, the network decides at run time, or the file is useless.
    """
    from gatecli.stages.int8 import Samples, to_int8
    from gatecli.stages.int8_split import pieces_to_int8

    if asked.data is None:
        raise ExportError(
            "expected a data set with --int8, which measures ranges on images of train and accuracy"
            " on val, but none is to be had: name it with --data"
        )
    samples = Samples(
        data=asked.data,
        input=asked.input,
        calibration=options.calibration_images,
        val=options.val_images,
        seed=session.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        full = asked.write(Path(folder, target.name))
        make = to_int8 if full.stages is None else pieces_to_int8
        found = make(full, target, samples, accept_useless=asked.force, progress=Reporter(session))
    written = replace(
        full,
        out=target,
        files=[target.with_name(file.name) for file in full.files],
        max_difference=found.max_difference,
        images=found.images,
    )
    return written, {**asdict(found), "speedup": found.speedup}


def tell_int8(session: Session, written: Exported, facts: dict[str, Any]) -> None:
    """Say what was written, and what it costs."""
    if not session.json_:
        rows = []
        for name, key in (("float32", "before"), ("int8", "after")):
            side = facts[key]
            size = f"{side['file_bytes'] / 1e6:.2f}"
            latency = f"{side['latency_ms']['median']:.2f}"
            rows.append((name, percent(side["top1"]), latency, size))
        columns = ("<file", "val top-1", "ms", "MB")
        table(session, "", columns, rows, f"{facts['images']} images of val; a call of one image")
    kept = facts["images"] * facts["kept"] / 100
    files = ", ".join(map(str, written.files))
    session.say(
        f"wrote {files}: {kept:.0f} of {facts['images']} images of val keep their class"
        f" ({percent(facts['kept'])}); ranges measured on {facts['calibration_images']} of train"
    )
    if facts["same_exit"] is not None:
        session.say(f"{percent(facts['same_exit'])} leave by the same exit as before")
    if facts["speedup"] < 1:
        session.say("note: it is no faster here than the float32 file")
