"""export: write a network for machines without gatecli, and compare what was written with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gatecli.checkpoint.atomic import replacing
from gatecli.errors import ExportError
from gatecli.exporting.facts import facts_of
from gatecli.exporting.onnx_file import write_onnx
from gatecli.exporting.opened import decided, masked, opened
from gatecli.exporting.pt2 import write_pt2
from gatecli.exporting.weights import module_path, write_weights
from gatecli.gates import Exit
from gatecli.network import Network
from gatecli.probe import logits, random_images, relative_change
from gatecli.record import record_gates

FORMATS = {
    "onnx": ".onnx",
    "pt2": ".pt2",
    "weights": ".weights.safetensors",
}  # and how their files' names end
TOLERANCE = 1e-4  # of the largest logit: what differs by more is not the same network
# log-odds so near to their threshold are decided by rounding, which differs from runtime to runtime
CLOSE = 1e-4


@dataclass(frozen=True)
class Exported:
    """What was written.

    `dynamic`: it skips; `batch`: 1 where it takes single images only, None: any.

    `max_difference`: of the logits, relative to the largest, on `images` images; `undecided`
    further ones had a gate so close to its threshold that rounding decides, and were left out.
    `masked`: sites with gates that remain, but save nothing in this format.
    """

    out: Path
    format: str
    files: list[Path]
    dynamic: bool
    batch: int | None
    max_difference: float
    images: int
    undecided: int = 0
    masked: list[str] = field(default_factory=list)


def export(
    network: Network,
    out: str | Path,
    format: str = "onnx",
    *,
    images: Tensor | None = None,
    opset: int = 20,
    all_computed: bool = False,
    decisions: bool = False,
    uncalibrated: bool = False,
    classes: Sequence[str] = (),
) -> Exported:
    """Write `network` to `out`, and compare the file's logits with its own.

    Gates that do not look at the images are decided first.

    Args:
        images: normalised ones (n, C, H, W) to compare on; none: random ones.
        opset: of ONNX. all_computed: for any batch, all branches computed and multiplied by their
            decisions, also where the network is dynamic.
        decisions: ONNX: the gates' decisions and the exit taken as further outputs.
        uncalibrated: export a network with exits of which none has been calibrated, so that nobody
            leaves.
        classes: their names, for the file's metadata.
    Raises: ExportError.
    """
    _check(network, format, decisions, uncalibrated)
    out, plain = Path(out), decided(network)
    images = random_images(plain, 4) if images is None else images.cpu()
    parts = opened(plain)
    dynamic = parts.dynamic and not all_computed and format != "weights"
    facts = facts_of(plain, dynamic, classes).to_metadata()
    with ExitStack() as stack:
        temporary, *beside = [
            stack.enter_context(replacing(file)) for file in files_of(out, format)
        ]
        if format == "onnx":
            run = write_onnx(
                parts if dynamic else masked(plain, decisions),
                images[:1],
                temporary,
                opset,
                facts,
                decisions,
            )
        elif format == "pt2":
            run = write_pt2(plain, dynamic, images[:1], temporary, facts)
        else:
            run = write_weights(plain, temporary, beside[0], out, facts)
        change, compared = _difference(plain, run, images, dynamic)
    saving = {branch.site for branch in parts.branches} if dynamic else set()
    rest = [
        site
        for site in plain.site_gates
        if site not in saving and not (dynamic and site in plain.site_exits)
    ]
    return Exported(
        out,
        format,
        files_of(out, format),
        dynamic,
        1 if dynamic else None,
        change,
        compared,
        len(images) - compared,
        rest,
    )


def suffix_of(format: str) -> str:
    """How a file's name of this format ends. Raises ExportError."""
    if format not in FORMATS:
        raise ExportError(
            f"expected --format to be one of {', '.join(FORMATS)}, but got `{format}`"
        )
    return FORMATS[format]


def files_of(out: Path, format: str) -> list[Path]:
    """The files that export writes."""
    return [out, module_path(out)] if format == "weights" else [out]


def _check(network: Network, format: str, decisions: bool, uncalibrated: bool) -> None:
    suffix_of(format)
    if decisions and format != "onnx":
        raise ExportError(f"--decisions is for ONNX files: {format} has the logits alone")
    exits = network.site_exits.values()
    if (
        exits
        and not uncalibrated
        and all(bool(exit_.threshold.isposinf().all()) for exit_ in exits)
    ):
        raise ExportError(
            "the exits have not been calibrated, so nobody would leave and the file would have"
            " none: gatecli calibrate first, or go on with --force"
        )


def _difference(
    network: Network, run: Callable[[Tensor], Tensor], images: Tensor, single: bool
) -> tuple[float, int]:
    """How far the file's logits are from the network's, relative to the largest, and on how many
    images that could be told. Raises ExportError.
    """
    sure = [image for image in torch.split(images, 1) if _sure(network, image)]
    if not sure:
        raise ExportError(
            f"none of the {len(images)} images to compare on is decided clearly enough by the"
            " gates: compare on others, with --data"
        )
    expected = torch.cat([logits(network, image) for image in sure])
    written = torch.cat([run(image) for image in sure]) if single else run(torch.cat(sure))
    change = relative_change(expected, written)
    if not change <= TOLERANCE:
        raise ExportError(
            f"the file's logits differ by {change:.1e} of the largest from the network's: this is a"
            " bug in gatecli; nothing was written"
        )
    return change, len(sure)


def _sure(network: Network, image: Tensor) -> bool:
    """Whether no gate is so close to its threshold that rounding may decide."""
    with record_gates(network) as record:
        logits(network, image)
    gates = network.site_gates
    for site, odds in record.odds.items():
        gate = gates[site]
        limit = (
            gate.threshold if isinstance(gate, Exit) else torch.logit(gate.threshold.clamp(0, 1))
        )
        if bool(((odds[-1] - limit).abs() < CLOSE).any()):
            return False
    return True
