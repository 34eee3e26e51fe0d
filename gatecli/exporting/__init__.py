"""export: write a network for machines that have no gatecli, and compare what was written with it."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gatecli.errors import ExportError
from gatecli.exporting.onnx_file import facts_of, write_onnx
from gatecli.exporting.opened import decided, masked, opened
from gatecli.exporting.pt2 import write_pt2
from gatecli.files import replacing
from gatecli.network import Network
from gatecli.probe import logits, random_images

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "weights": ".safetensors"}
TOLERANCE = 1e-3  # of the largest logit: what differs by more is not the same network


@dataclass(frozen=True)
class Exported:
    """What was written. `dynamic`: for single images, skipping; else any batch. `max_difference`: of the logits, relative to the largest, on `images` images."""

    out: Path
    format: str
    files: list[Path]
    dynamic: bool
    max_difference: float
    images: int


def export(
    network: Network, out: Path, format: str = "onnx", *, images: Tensor | None = None, opset: int = 20, all_computed: bool = False, decisions: bool = False, uncalibrated: bool = False
) -> Exported:
    """Write `network` to `out`, and compare the file's logits with its own; gates that do not look at the images are decided first.

    Args:
        images: normalised ones (n, C, H, W) to compare on; none: random ones.
        opset: of ONNX. all_computed: ONNX for any batch, all branches computed and multiplied by their decisions, also where the network is dynamic.
        decisions: ONNX: the exit taken and the gates' decisions as further outputs.
        uncalibrated: export exits at which nobody leaves, as they have not been calibrated.
    Raises: ExportError.
    """
    if format not in FORMATS:
        raise ExportError(f"expected --format to be one of {', '.join(FORMATS)}, but got `{format}`")
    exits = network.site_exits.values()
    if exits and not uncalibrated and all(bool(exit_.threshold.isposinf().all()) for exit_ in exits):
        raise ExportError("the exits have not been calibrated, so nobody would leave: gatecli calibrate first, or --force")
    plain = decided(network)
    parts = masked(plain) if all_computed or not opened(plain).dynamic else opened(plain)
    if images is None:
        images = random_images(plain, 4)
    with replacing(out) as temporary:
        run, files = _write(plain, parts.dynamic, out, temporary, format, lambda path: write_onnx(parts, images[:1], path, opset, facts_of(plain), decisions), images[:1])
        change = _difference(network, run, images, parts.dynamic)
        if not change <= TOLERANCE:
            raise ExportError(f"the file's logits differ by {change:.1e} of the largest from the network's: this is a bug in gatecli; nothing was written")
    return Exported(out, format, files, parts.dynamic, change, len(images))
