"""gatecli export"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.cli.session import Checkpoint, Data, Force, Out, Session, reads_checkpoints, remembered
from gatecli.cli.workspace import default_out
from gatecli.errors import DataError, SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.network import Network


@reads_checkpoints
def export(
    session: Session,
    checkpoint: Checkpoint = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help=(
                "onnx, pt2 (torch.export) or weights (safetensors and a Python module that needs"
                " torch alone)."
            ),
        ),
    ] = "onnx",
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
            "--decisions", help="ONNX: the gates' decisions and the exit taken as further outputs."
        ),
    ] = False,
    opset: Annotated[int, typer.Option(help="Of ONNX.")] = 20,
    data: Data = None,
    images: Annotated[
        int, typer.Option(help="Images of val to compare the file with the network on.")
    ] = 8,
    out: Out = None,
    force: Force = False,
) -> dict[str, Any]:
    """Write the network for machines without gatecli, and check what was written.

    --force also exports exits that are not calibrated.
    """
    from gatecli.checkpoint import check_output
    from gatecli.exporting import export as exporting

    if not 1 <= images <= 10000:
        raise SettingError(f"expected --images to be between 1 and 10000, but got {images}")
    path = session.checkpoint(checkpoint)
    target = out or Path(
        str(default_out(path, "_")).removesuffix("._.safetensors") + exporting.suffix_of(format)
    )
    for file in exporting.files_of(target, format):
        check_output(file, force, [path])
    network = session.open(path)
    given, classes, real = _images(session, network, remembered(data), images)
    result = exporting.export(
        network,
        target,
        format,
        images=given,
        opset=opset,
        all_computed=all_computed,
        decisions=decisions,
        uncalibrated=force,
        classes=classes,
    )
    compared = (
        f"logits differ from the network's by at most {result.max_difference:.1e} of the largest,"
        f" on {result.images} {'images of val' if real else 'random images'}"
    )
    session.say(f"wrote {', '.join(str(file) for file in result.files)}: {compared}")
    if result.undecided:
        session.say(
            f"note: {result.undecided} more images were left out: a gate is so near to its"
            " threshold there that rounding decides"
        )
    session.say(
        "it takes one image at a time, and computes only what runs (--all-computed: any batch,"
        " everything computed)"
        if result.dynamic
        else "it takes batches of any size"
    )
    if result.masked:
        session.say(
            f"note: {len(result.masked)} gates remain that save nothing in this file:"
            f" {', '.join(result.masked)}"
        )
    return {
        "checkpoint": str(path),
        "out": str(target),
        "files": [str(file) for file in result.files],
        "arch": network.recipe.source.arch,
        "format": format,
        "dynamic": result.dynamic,
        "batch": result.batch,
        "max_logit_change": result.max_difference,
        "images": result.images,
        "real_images": real,
        "undecided": result.undecided,
        "masked": result.masked,
    }


def _images(
    session: Session, network: Network, data: str | None, count: int
) -> tuple[Tensor | None, tuple[str, ...], bool]:
    """Images of val to compare on, and the classes' names.

    Random images where there is no data set, or the one remembered is not to be had.
    """
    from gatecli.data import batches
    from gatecli.inputs import open_data

    if data is None and not network.recipe.data:
        session.say("note: no data set is known: comparing on random images (--data names one)")
        return None, (), False
    try:
        dataset = open_data(network, data)
    except DataError as error:
        if data is not None:
            raise
        session.say(f"note: comparing on random images, as the data set cannot be read ({error})")
        return None, (), False
    return (
        next(iter(batches(dataset.splits["val"], input=network.input, batch_size=count)))[0],
        dataset.classes,
        True,
    )
