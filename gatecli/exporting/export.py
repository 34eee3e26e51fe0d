"""export: write a network for machines without gatecli, and compare what was written with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gatecli.checkpoint.atomic import replacing
from gatecli.errors import ExportError
from gatecli.exporting.facts import facts_of
from gatecli.exporting.formats import DEFAULT
from gatecli.exporting.marks import Branch, Opened, decided, opened
from gatecli.exporting.registry import Format, Logits, Task, get, titles
from gatecli.exporting.split.names import split_files
from gatecli.exporting.split.write import check_split, write_split
from gatecli.gates.exit import Exit
from gatecli.gates.observe import record_gates
from gatecli.network import Network
from gatecli.network.compare import logits, random_images, relative_change

__all__ = ["Exported", "export"]

TOLERANCE = 1e-4  # of the largest logit: what differs by more is not the same network
# log-odds so near to their threshold are decided by rounding, which differs from runtime to runtime
CLOSE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how near it is to the network.

    Attributes:
        out: the file.
        format: the format's name.
        files: all files, `out` first.
        dynamic: the file computes only what runs.
        stages: how many pieces it is in, the files of each of which follow the description and
            the runner; None: it is in one piece.
        batch: 1 where it takes single images only; None: any number.
        max_difference: between its logits and the network's, relative to the largest.
        images: how many images were compared.
        undecided: how many further ones were left out, as a gate was so close to its threshold
            that rounding decides.
        masked: sites with gates that remain, but save nothing in this format.
    """

    out: Path
    format: str
    files: list[Path]
    dynamic: bool
    stages: int | None = None
    batch: int | None
    max_difference: float
    images: int
    undecided: int = 0
    masked: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """How far logits differ, relative to the largest, and on how many images that was told."""

    difference: float
    images: int


def export(  # noqa: PLR0913 - its command's options, by keyword
    network: Network,
    out: str | Path,
    format: str = DEFAULT,
    *,
    images: Tensor | None = None,
    opset: int = 20,
    all_computed: bool = False,
    decisions: bool = False,
    split: bool = False,
    uncalibrated: bool = False,
    classes: Sequence[str] = (),
) -> Exported:
    """Write a network to a file, and compare the file's logits with its own.

    Gates that do not look at the images are decided first.

    Args:
        network: stays as it is.
        out: the file; a format may put further ones beside it.
        format: name of a registered format.
        images: to compare on, normalised, (n, C, H, W); None: random ones.
        opset: version of ONNX's operations, for formats that have one.
        all_computed: write for any batch, all branches computed and multiplied by their decisions,
            also where the network is dynamic.
        decisions: the gates' decisions and the exit taken as further outputs, in formats that can.
        split: cut the network at its exits, and write a file for each stage, for batches of any
            size; `out` then describes them, and a runner beside it needs their runtime alone.
        uncalibrated: also export a network with exits none of which has been calibrated, so that
            nobody leaves.
        classes: their names, for the file's metadata.

    Raises:
        ExportError: the format cannot take the network or these options, or the file's logits
            differ. Nothing is written then.
    """
    kind = get(format)
    if split:
        check_split(kind, all_computed=all_computed, decisions=decisions)
    _check(network, kind, decisions=decisions, uncalibrated=uncalibrated)
    out = Path(out)
    plain = decided(network)
    images = random_images(plain, 4) if images is None else images.cpu()
    parts = opened(plain)
    dynamic = parts.dynamic and kind.can_skip and not (all_computed or split)
    way = _in_pieces(plain, kind, out) if split else _in_one(parts, kind, out)
    with ExitStack() as stack:
        task = Task(
            network=plain,
            parts=parts,
            dynamic=dynamic,
            image=images[:1],
            opset=opset,
            decisions=decisions,
            facts=facts_of(plain, single=dynamic, classes=classes).to_metadata(),
            out=out,
            files=[stack.enter_context(replacing(file)) for file in way.files],
        )
        compared = _compared(plain, way.write(task), images, single=dynamic)
    return Exported(
        out=out,
        format=format,
        files=way.files,
        dynamic=dynamic or split,
        stages=way.stages,
        batch=1 if dynamic else None,
        max_difference=compared.difference,
        images=compared.images,
        undecided=len(images) - compared.images,
        masked=_masked(plain, way.branches, dynamic=dynamic or split),
    )


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How a network is written: to which files, in how many stages, which branches may skip."""

    files: list[Path]
    write: Callable[[Task], Logits]
    branches: Sequence[Branch]
    stages: int | None = None


def _in_one(parts: Opened, format: Format, out: Path) -> _Way:
    return _Way(files=format.files(out), write=format.write, branches=parts.branches)


def _in_pieces(network: Network, format: Format, out: Path) -> _Way:
    exits = len(network.site_exits)
    files = split_files(out, format, exits)
    write = partial(write_split, format=format)
    return _Way(files=files, write=write, branches=[], stages=exits + 1)


def _check(network: Network, format: Format, *, decisions: bool, uncalibrated: bool) -> None:
    """Raise ExportError where a format lacks an option, or nobody would leave by any exit."""
    if decisions and not format.can_decisions:
        able = titles("can_decisions", " files")
        raise ExportError(f"--decisions is for {able}: {format.name} has the logits alone")
    exits = network.site_exits.values()
    if exits and not uncalibrated and not any(map(_lets_go, exits)):
        raise ExportError(
            "the exits have not been calibrated, so nobody would leave and the file would have"
            " none: gatecli calibrate first, or go on with --force"
        )


def _lets_go(exit_: Exit) -> bool:
    """Whether an exit has a threshold that an image can reach."""
    return not bool(exit_.threshold.isposinf().all())


def _masked(network: Network, branches: Sequence[Branch], *, dynamic: bool) -> list[str]:
    """The sites whose gates save nothing in a file that skips these branches."""
    if not dynamic:
        return list(network.site_gates)
    saving = {branch.site for branch in branches} | set(network.site_exits)
    return [site for site in network.site_gates if site not in saving]


def _compared(network: Network, run: Logits, images: Tensor, *, single: bool) -> _Comparison:
    """Compare a file's logits with the network's, on the images that are clearly decided.

    Args:
        network: the network.
        run: gives the file's logits.
        images: (n, C, H, W).
        single: the file takes one image at a time.

    Raises:
        ExportError: they differ, or no image is clearly decided.
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
    return _Comparison(difference=change, images=len(sure))


def _sure(network: Network, image: Tensor) -> bool:
    """Whether no gate is so close to its threshold that rounding may decide."""
    with record_gates(network) as record:
        logits(network, image)
    gates = network.site_gates
    for site, odds in record.odds.items():
        if bool(((odds[-1] - gates[site].limit()).abs() < CLOSE).any()):
            return False
    return True
