"""What an eight-bit copy of an exported file costs in accuracy, and saves in time and bytes.

Its logits are not its source's to four digits, so the check behind every export cannot be made:
its accuracy is measured beside its source's, in the same runtime, and a copy that does no better
than guessing, where its source does, is not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gatecli.checkpoint.atomic import replacing
from gatecli.data import DataSet, Split, batches
from gatecli.errors import ExportError
from gatecli.exporting.export import Exported
from gatecli.exporting.registry import Logits, get
from gatecli.network.compare import require_finite
from gatecli.progress import Progress, silent
from gatecli.stages.chance import at_chance
from gatecli.stages.pairs import timed_pairs
from gatecli.stages.profile import Latency, latency_of
from gatecli.traced.images import InputSpec

__all__ = ["Both", "Int8", "Samples", "Side", "judged", "to_int8"]

BATCH = 32  # images at a time
REPEATS = 30  # timed calls of each file


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The images that an eight-bit copy is made and judged with; two disjoint splits.

    Attributes:
        data: Ranges are measured on its train split, accuracy on its val split.
        input: How the network wants images.
        calibration: How many images of train, drawn at random.
        val: How many images of val at most, likewise.
        seed: Of both draws.
    """

    data: DataSet
    input: InputSpec
    calibration: int = 512
    val: int = 5000
    seed: int = 0

    def drawn(self, name: str, count: int) -> Split:
        """So many images of a split; all, where it has no more."""
        split = self.data.splits[name]
        chance = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(split), generator=chance)[:count]
        return split.take(rows.sort().values)

    def shown(self, progress: Progress) -> Iterator[Tensor]:
        """The images of train in batches, each told to `progress`."""
        split = self.drawn("train", self.calibration)
        with progress.task("measuring ranges", -(-len(split) // BATCH)) as task:
            for images, _ in batches(split, input=self.input, batch_size=BATCH):
                yield images
                task.advance()


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two files: percent of val, bytes, and milliseconds of a single image."""

    top1: float
    file_bytes: int
    latency_ms: Latency


@dataclass(frozen=True, kw_only=True)
class Int8:
    """An eight-bit copy beside the full-precision file that it was made of.

    Attributes:
        before: The full-precision file.
        after: The copy.
        kept: Percent of the images whose likeliest class is the same in both.
        images: Of val, that accuracy was measured on.
        calibration_images: Of train, that ranges were measured on.
        max_difference: Between logits, relative to the largest.
        same_exit: Percent of the images that leave by the same exit in both; None: in one piece.
    """

    before: Side
    after: Side
    kept: float
    images: int
    calibration_images: int
    max_difference: float
    same_exit: float | None = None

    @property
    def speedup(self) -> float:
        """Of single images, by medians."""
        return self.before.latency_ms.median / self.after.latency_ms.median


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What both files say of the same images: top-1 in percent, and how far they agree."""

    top1: tuple[float, float]
    kept: float
    max_difference: float


def to_int8(
    full: Exported,
    out: Path,
    samples: Samples,
    *,
    accept_useless: bool = False,
    progress: Progress = silent,
) -> Int8:
    """Write an eight-bit copy of an exported file, and measure both.

    Args:
        full: The file, as `export` told.
        out: The copy.
        samples: What it is made and judged with.
        accept_useless: Write it also where it does no better than guessing.
        progress: Is told of each batch.

    Raises:
        ExportError: The file decides at run time, its format has no eight-bit files, or the copy
            is useless. Nothing is written then.
    """
    format = get(full.format)
    check_static(full)
    if format.quantise is None or format.logits is None:
        raise ExportError(f"{format.name} has no eight-bit files")
    with replacing(out) as copy:
        format.quantise(full.out, copy, samples.shown(progress))
        both = Both(
            runs=(format.logits(full.out), format.logits(copy)),
            sizes=(full.out.stat().st_size, copy.stat().st_size),
            images=_random(samples.input),
        )
        return judged(both, samples, accept_useless=accept_useless, progress=progress)


@dataclass(frozen=True, kw_only=True)
class Both:
    """The full-precision file and its copy, ready to run.

    Attributes:
        runs: Give their logits.
        sizes: In bytes.
        images: (n, C, H, W), to time them with.
    """

    runs: tuple[Logits, Logits]
    sizes: tuple[int, int]
    images: Tensor


def judged(both: Both, samples: Samples, *, accept_useless: bool, progress: Progress) -> Int8:
    """Measure both files.

    Args:
        both: The files.
        samples: What the copy was made with, and is judged with.
        accept_useless: Do not mind a copy that does no better than guessing.
        progress: Is told of each batch.

    Raises:
        ExportError: The copy is useless.
    """
    val = samples.drawn("val", samples.val)
    walk = batches(val, input=samples.input, batch_size=BATCH)
    answers = _asked(both.runs, walk, progress, len(val))
    if not accept_useless:
        _check_of_use(answers, len(val), len(samples.data.classes))
    times = zip(*timed_pairs(both.runs, both.images, REPEATS, progress), strict=True)
    sides = []
    for top1, size, each in zip(answers.top1, both.sizes, times, strict=True):
        sides.append(Side(top1=top1, file_bytes=size, latency_ms=latency_of(each)))
    return Int8(
        before=sides[0],
        after=sides[1],
        kept=answers.kept,
        images=len(val),
        calibration_images=len(samples.drawn("train", samples.calibration)),
        max_difference=answers.max_difference,
    )


def check_static(full: Exported) -> None:
    """Raise ExportError where a file decides at run time what to compute."""
    if full.dynamic:
        raise ExportError(
            "expected a network whose gates do not depend on the image for --int8, but gates or"
            " exits of this one do, and integers would decide otherwise: gatecli prune (--static)"
            " decides gates for good, --all-computed exports everything computed"
        )


def _random(input: InputSpec) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(4, input.channels, *input.size, generator=draw)


def _asked(
    runs: tuple[Logits, Logits],
    walk: Iterable[tuple[Tensor, Tensor]],
    progress: Progress,
    total: int,
) -> _Answers:
    """Ask both files about all images."""
    right, kept = [0, 0], 0
    largest, scale = 0.0, torch.finfo(torch.float32).tiny
    with progress.task("comparing", -(-total // BATCH)) as task:
        for images, labels in walk:
            before, after = (run(images) for run in runs)
            require_finite(after)
            answers = [each.argmax(1) for each in (before, after)]
            for side, answer in enumerate(answers):
                right[side] += int((answer == labels).sum())
            kept += int((answers[0] == answers[1]).sum())
            largest = max(largest, float((before - after).abs().max()))
            scale = max(scale, float(before.abs().max()))
            task.advance()
    return _Answers(
        top1=(100 * right[0] / total, 100 * right[1] / total),
        kept=100 * kept / total,
        max_difference=largest / scale,
    )


def _check_of_use(answers: _Answers, images: int, classes: int) -> None:
    """Raise ExportError where the copy guesses, and its source does not."""
    before, after = answers.top1
    if at_chance(after, images, classes) and not at_chance(before, images, classes):
        raise ExportError(
            f"the eight-bit file is right for {after:.2f} % of {images} images of val, no better"
            f" than guessing, where the full one is for {before:.2f} %: export without --int8, or"
            " write it nevertheless with --force"
        )
