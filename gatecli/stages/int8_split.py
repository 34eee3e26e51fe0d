"""An eight-bit copy of a network in pieces, a file a stage, beside its source.

Thresholds stay as they are: an image whose score lies near one may leave by another exit.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gatecli.checkpoint.atomic import replacing
from gatecli.data import batches
from gatecli.exporting.export import Exported
from gatecli.exporting.registry import get
from gatecli.exporting.split.int8 import opened_pieces, quantise_pieces
from gatecli.exporting.split.names import split_files
from gatecli.exporting.split.standalone import Pieces
from gatecli.progress import Progress, silent
from gatecli.stages.int8 import Both, Int8, Samples, judged

__all__ = ["pieces_to_int8"]

TIMED = 32  # images of val to time with: what an image takes depends on where it leaves


def pieces_to_int8(
    full: Exported,
    out: Path,
    samples: Samples,
    *,
    accept_useless: bool = False,
    progress: Progress = silent,
) -> Int8:
    """Write an eight-bit copy of a network in pieces, and measure both.

    Args:
        full: The pieces, as `export` told.
        out: The copy's description; the runner and the stages are put beside it.
        samples: What it is made and judged with.
        accept_useless: Write it also where it does no better than guessing.
        progress: Is told of each batch.

    Raises:
        ExportError: No image of train comes to a stage, a stage cannot be quantised, or the copy is
            useless. Nothing is written then.
    """
    format = get(full.format)
    assert full.stages is not None
    with ExitStack() as stack:
        copy = Path(stack.enter_context(tempfile.TemporaryDirectory()), out.name)
        quantise_pieces(full.out, copy, format, lambda: samples.shown(progress))
        files = split_files(copy, format, full.stages - 1)
        networks = (opened_pieces(full.out, format), opened_pieces(copy, format))
        asked = (_Asked(networks[0]), _Asked(networks[1]))
        both = Both(
            runs=asked,
            sizes=(_bytes(full.files), _bytes(files)),
            images=_real(samples),
        )
        found = judged(both, samples, accept_useless=accept_useless, progress=progress)
        for source, target in zip(files, split_files(out, format, full.stages - 1), strict=True):
            shutil.copyfile(source, stack.enter_context(replacing(target)))
    taken = [torch.cat(each.taken)[: found.images] for each in asked]  # those of val come first
    same = (taken[0] == taken[1]).double().mean()
    return replace(found, same_exit=100 * float(same))


class _Asked:
    """Pieces that give logits, and keep by which exits images left."""

    def __init__(self, network: Pieces) -> None:
        self.network = network
        self.taken: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        logits, taken = self.network(images.numpy())
        self.taken.append(torch.from_numpy(taken))
        return torch.from_numpy(logits)


def _bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _real(samples: Samples) -> Tensor:
    """Images of val, the same each time."""
    split = samples.drawn("val", min(samples.val, TIMED))
    images, _ = next(batches(split, input=samples.input, batch_size=TIMED))
    return images
