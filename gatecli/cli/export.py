"""gatecli export: the network for machines without gatecli."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gatecli.cli.options import Checkpoint, Data, Force, Out, reads_checkpoints
from gatecli.cli.parsing import check_between, remembered
from gatecli.cli.session import Session
from gatecli.cli.workspace import default_out
from gatecli.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from gatecli.exporting import Exported
    from gatecli.network import Network

__all__ = ["export"]

MOST_IMAGES = 10000


@dataclass(frozen=True, kw_only=True)
class Images:
    """What to compare the file with the network on.

    Attributes:
        x: Images of val, (N, C, H, W); None: random ones.
        classes: The classes' names, where the data set is known.
    """

    x: Tensor | None = None
    classes: tuple[str, ...] = ()

    @property
    def real(self) -> bool:
        """Whether they are of a data set."""
        return self.x is not None


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
    from gatecli import exporting
    from gatecli.checkpoint import check_output

    check_between("images", images, 1, MOST_IMAGES)
    path = session.checkpoint(checkpoint)
    target = out or _default_out(path, format)
    for file in exporting.files_of(target, format):
        check_output(file, force=force, inputs=[path])
    network = session.open(path)
    compared = _images(session, network, remembered(data), images)
    result = exporting.export(
        network,
        target,
        format,
        images=compared.x,
        opset=opset,
        all_computed=all_computed,
        decisions=decisions,
        uncalibrated=force,
        classes=compared.classes,
    )
    _report(session, result, compared)
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
        "real_images": compared.real,
        "undecided": result.undecided,
        "masked": result.masked,
    }


def _default_out(path: Path, format: str) -> Path:
    from gatecli import exporting

    stem = str(default_out(path, "_")).removesuffix("._.safetensors")
    return Path(stem + exporting.suffix_of(format))


def _report(session: Session, result: Exported, compared: Images) -> None:
    files = ", ".join(str(file) for file in result.files)
    images = "images of val" if compared.real else "random images"
    session.say(
        f"wrote {files}: logits differ from the network's by at most {result.max_difference:.1e} of"
        f" the largest, on {result.images} {images}"
    )
    if result.undecided:
        session.say(
            f"note: {result.undecided} more images were left out: a gate is so near to its"
            " threshold there that rounding decides"
        )
    if result.dynamic:
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


def _images(session: Session, network: Network, data: str | None, count: int) -> Images:
    """Up to `count` images of val, and the classes' names.

    There are neither where no data set is known, or the one remembered is not to be had.

    Raises:
        DataError: The data set that `data` names cannot be read.
    """
    from gatecli.data import batches
    from gatecli.inputs import open_data

    if data is None and not network.recipe.data:
        session.say("note: no data set is known: comparing on random images (--data names one)")
        return Images()
    try:
        dataset = open_data(network, data)
    except DataError as error:
        if data is not None:
            raise
        session.say(f"note: comparing on random images, as the data set cannot be read ({error})")
        return Images()
    val = dataset.splits["val"]
    x, _ = next(iter(batches(val, input=network.input, batch_size=count)))
    return Images(x=x, classes=dataset.classes)
