"""The command `gatecli export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli import exporting
from gatecli.cli.for_processor import Processor, tell_processor, write_for_processor
from gatecli.cli.images import open_data, show_images
from gatecli.cli.int8 import Asked, EightBit, tell_int8, write_int8
from gatecli.cli.options import Checkpoint, Data, Output, reads_checkpoints
from gatecli.cli.parsing import check_between, remembered
from gatecli.cli.session import Session
from gatecli.cli.workspace import default_out
from gatecli.errors import DataError
from gatecli.exporting import titles
from gatecli.exporting.split.names import SUFFIX, split_files

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.data import DataSet
    from gatecli.exporting.export import Exported
    from gatecli.network import Network

__all__ = ["export"]

MOST_IMAGES = 10000


def _formats() -> str:
    """The formats, for the help."""
    told = []
    for each in exporting.registered():
        told.append(f"{each.name} ({each.about})" if each.about else each.name)
    return f"{', '.join(told[:-1])} or {told[-1]}."


@reads_checkpoints
def export(
    session: Session,
    *,
    checkpoint: Checkpoint = None,
    format: Annotated[str, typer.Option("--format", help=_formats())] = exporting.DEFAULT,
    all_computed: Annotated[
        bool,
        typer.Option(
            "--all-computed",
            help=(
                "Any batch size: compute every branch and multiply it by its gate's decision, for"
                " throughput."
            ),
        ),
    ] = False,
    decisions: Annotated[
        bool,
        typer.Option(
            "--decisions",
            help=(
                f"{titles('can_decisions')}: the gates' decisions and the exit taken as further"
                " outputs."
            ),
        ),
    ] = False,
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help=(
                f"{titles('pieces')}: cut at the exits, one file a stage, and a runner beside them"
                " that needs their runtime alone: who leaves, leaves the batch."
            ),
        ),
    ] = False,
    opset: Annotated[int, typer.Option(help=f"Of {titles('can_opset')}.")] = 20,
    data: Data = None,
    images: Annotated[
        int, typer.Option(help="Images of val to compare the file with the network on.")
    ] = 8,
    eight_bit: EightBit = EightBit(),
    processor: Processor = Processor(),
    output: Output = Output(),
) -> dict[str, Any]:
    """Write the network for machines without gatecli, and check what was written.

    --force also exports exits that are not calibrated.
    """
    from gatecli.exporting.export import export as write

    kind = exporting.get(format)
    check_between("images", images, 1, MOST_IMAGES)
    eight_bit.check(kind)
    processor.check(kind, int8=eight_bit.int8, split=split)
    path = session.checkpoint(checkpoint)
    name = eight_bit.suffix + processor.suffix + (SUFFIX if split else kind.suffix)
    target = _target(path, kind, output, name, split=split)
    network = session.open(path)
    if split:  # only now is it known how many files there may be
        _check_files(split_files(target, kind, len(network.site_exits)), path, output)
    given = _given(session, network, remembered(data), images)
    make = partial(
        write,
        network,
        format=format,
        images=given.images,
        opset=opset,
        all_computed=all_computed,
        decisions=decisions,
        split=split,
        uncalibrated=output.force,
        classes=given.classes,
    )
    order = _Order(network=network, given=given, make=make, target=target, force=output.force)
    written = _written(session, order, eight_bit, processor)
    _tell(session, written.result)
    return {
        "checkpoint": str(path),
        "out": str(target),
        "arch": network.recipe.source.arch,
        "format": format,
        **_facts(written.result),
        "int8": written.int8,
        "for_processor": written.for_processor,
        "real_images": given.real,
    }


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What is to be written.

    Attributes:
        network: Of what.
        given: What to compare on.
        make: Writes the file as it is, in float32 and for any machine.
        target: The first file.
        force: Write it also where it is useless.
    """

    network: Network
    given: _Given
    make: Callable[[Path], Exported]
    target: Path
    force: bool


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What was written, and what it gains or costs against the file as it would be else."""

    result: Exported
    int8: dict[str, Any] | None = None
    for_processor: dict[str, Any] | None = None


def _written(
    session: Session, order: _Order, eight_bit: EightBit, processor: Processor
) -> _Written:
    """Write the file in the form asked for, and say how good it is."""
    from gatecli.network.compare import random_images

    given, network, target = order.given, order.network, order.target
    if eight_bit.int8:
        asked = Asked(write=order.make, data=given.data, input=network.input, force=order.force)
        result, facts = write_int8(session, eight_bit, asked, target)
        tell_int8(session, result, facts)
        return _Written(result=result, int8=facts)
    if processor.for_this_processor:
        shown = random_images(network, 4).cpu() if given.images is None else given.images
        result, facts = write_for_processor(session, order.make, target, shown)
        _tell_agreement(session, result, real=given.real)
        tell_processor(session, facts)
        return _Written(result=result, for_processor=facts)
    result = order.make(target)
    _tell_agreement(session, result, real=given.real)
    return _Written(result=result)


def _target(
    path: Path, format: exporting.Format, output: Output, name: str, *, split: bool
) -> Path:
    """Where to write the first file, `name` at its end; refuses here what may not be written."""
    stem = str(default_out(path, "_")).removesuffix("._.safetensors")
    target = output.out or Path(stem + name)
    _check_files([target] if split else format.files(target), path, output)
    return target


def _check_files(files: Sequence[Path], path: Path, output: Output) -> None:
    """Refuse files that may not be written."""
    from gatecli.checkpoint import check_output

    for file in files:
        check_output(file, force=output.force, inputs=[path])


def _facts(result: Exported) -> dict[str, Any]:
    """What the JSON says of the files written."""
    return {
        "files": [str(file) for file in result.files],
        "dynamic": result.dynamic,
        "stages": result.stages,
        "batch": result.batch,
        "max_logit_change": result.max_difference,
        "images": result.images,
        "undecided": result.undecided,
        "masked": result.masked,
    }


def _tell_agreement(session: Session, result: Exported, *, real: bool) -> None:
    """Say how near the file is to the network; `real`: compared on images of val."""
    files = ", ".join(str(file) for file in result.files)
    images = "images of val" if real else "random images"
    session.say(
        f"wrote {files}: logits differ from the network's by at most {result.max_difference:.1e} of"
        f" the largest, on {result.images} {images}"
    )
    if result.undecided:
        session.say(
            f"note: {result.undecided} more images were left out: a gate is so near to its"
            " threshold there that rounding decides"
        )


def _tell(session: Session, result: Exported) -> None:
    """Say what the file takes, and what it does not save."""
    if result.stages is not None:
        session.say(
            f"{result.stages} stages: they take batches of any size, and who leaves at an exit"
            f" leaves the batch (python {result.files[1]} images.npy, or its load())"
        )
    elif result.dynamic:
        session.say(
            "it takes one image at a time, and computes only what runs (--all-computed: any batch,"
            " everything computed)"
        )
    else:
        session.say("it takes batches of any size")
    if result.masked:
        session.say(
            f"note: {len(result.masked)} gates remain that save nothing in this file:"
            f" {', '.join(result.masked)}"
        )


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What to compare on.

    Attributes:
        images: of val, normalised, (N, C, H, W); None: random ones are to be taken.
        data: of which they are.
        classes: their names; none: not known.
    """

    images: Tensor | None = None
    data: DataSet | None = None
    classes: tuple[str, ...] = ()

    @property
    def real(self) -> bool:
        """Whether there are images of a data set."""
        return self.images is not None


def _given(session: Session, network: Network, data: str | None, count: int) -> _Given:
    """Images of val to compare on.

    None where there is no data set, or the one remembered is not to be had.
    """
    from gatecli.data import batches

    if data is None and not network.recipe.data:
        session.say("note: no data set is known: comparing on random images (--data names one)")
        show_images(session, network.input)
        return _Given()
    try:
        dataset = open_data(session, network, data)
    except DataError as error:
        if data is not None:
            raise
        session.say(f"note: comparing on random images, as the data set cannot be read ({error})")
        return _Given()
    first, _ = next(iter(batches(dataset.splits["val"], input=network.input, batch_size=count)))
    return _Given(images=first, data=dataset, classes=dataset.classes)
