"""A copy of an exported file for this machine's processor: the same logits, and faster, or none."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gatecli.checkpoint.atomic import replacing
from gatecli.errors import ExportError
from gatecli.exporting.export import TOLERANCE, Exported
from gatecli.exporting.registry import Logits, get
from gatecli.network.compare import relative_change
from gatecli.progress import Progress, silent
from gatecli.runtimes.machine import kind
from gatecli.stages.pairs import timed_pairs
from gatecli.stages.profile import Latency, latency_of

__all__ = ["ForProcessor", "for_processor"]

REPEATS = 40  # timed rounds


@dataclass(frozen=True, kw_only=True)
class ForProcessor:
    """A file for one kind of processor beside the portable one.

    Attributes:
        processor: The kind.
        before: Milliseconds of single images with the portable file.
        after: With this one.
        speedup: The median of what single images gain.
    """

    processor: str
    before: Latency
    after: Latency
    speedup: float


def for_processor(
    full: Exported, out: Path, images: Tensor, *, progress: Progress = silent
) -> ForProcessor:
    """Write a copy of an exported file for this machine's processor.

    Args:
        full: The portable file, which decides at run time.
        out: The copy.
        images: (n, C, H, W), on which both are compared and timed, one by one.
        progress: Is told of each round.

    Raises:
        ExportError: The file does not decide at run time, its format has no such copies, or the
            copy's logits differ, or it is no faster. Nothing is written then.
    """
    format = get(full.format)
    if not full.dynamic:
        raise ExportError(
            "expected a file that decides at run time for --for-this-processor: others are laid"
            " out for the processor whenever they are loaded; export without it"
        )
    if format.lay_out is None or format.logits is None:
        raise ExportError(f"{format.name} has no files for one processor")
    singles = torch.split(images, 1)
    with replacing(out) as copy:
        format.lay_out(full.out, copy)
        runs = (format.logits(full.out), format.logits(copy))
        _check_same(runs, singles)
        times = timed_pairs(runs, images, REPEATS, progress)
        speedup = statistics.median(before / after for before, after in times)
        if speedup < 1:
            raise ExportError(
                f"the file for this processor takes {1 / speedup:.3f} times as long as the portable"
                " one, so it was not written: export without --for-this-processor"
            )
    before, after = (latency_of(each) for each in zip(*times, strict=True))
    return ForProcessor(processor=kind(), before=before, after=after, speedup=speedup)


def _check_same(runs: tuple[Logits, Logits], singles: Sequence[Tensor]) -> None:
    """Raise ExportError where both files differ in their logits."""
    portable, own = (torch.cat([run(image) for image in singles]) for run in runs)
    change = relative_change(portable, own)
    if not change <= TOLERANCE:
        raise ExportError(
            f"the logits of the file for this processor differ by {change:.1e} of the largest from"
            " the portable one's: nothing was written; export without --for-this-processor"
        )
