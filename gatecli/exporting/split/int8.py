"""Eight-bit copies of networks in pieces: each stage quantised on what comes to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatecli.errors import ExportError
from gatecli.exporting.facts import KEY
from gatecli.exporting.registry import Format, Pieces
from gatecli.exporting.split import standalone
from gatecli.exporting.split.names import piece_files, runner_file
from gatecli.exporting.split.write import digest, runner_source

__all__ = ["opened_pieces", "quantise_pieces"]


def opened_pieces(path: Path, format: Format) -> standalone.Pieces:
    """The pieces that a description names, ready to run, on as many threads as torch uses."""
    return standalone.Pieces(path, _way(format).open, torch.get_num_threads())


def quantise_pieces(
    source: Path, out: Path, format: Format, images: Callable[[], Iterable[Tensor]]
) -> None:
    """Write eight-bit copies of all pieces, their description and their runner.

    The ranges of a stage are measured on the images that the stages before it, in eight bits
    themselves, let through.

    Args:
        source: the description of pieces in full precision.
        out: that of the copies, in another folder.
        format: of the stages.
        images: gives the same images each time, in batches (n, C, H, W), normalised.

    Raises:
        ExportError: a stage cannot be quantised, or no image comes to it.
    """
    way = _way(format)
    assert way.quantise is not None
    about = json.loads(source.read_text(encoding="utf-8"))
    done: list[Any] = []
    limits = [np.float32(float(stage["threshold"])) for stage in about["stages"][:-1]]
    for number, stage in enumerate(about["stages"]):
        files = piece_files(out, format, number)
        reaching = _reaching(done, limits, images())
        way.quantise(source.parent / next(iter(stage["files"])), files[0], reaching)
        stage["files"] = {file.name: digest(file) for file in files}
        done.append(way.open(str(files[0]), torch.get_num_threads()))
    about[KEY]["precision"] = "int8"
    out.write_text(json.dumps(about, indent=1), encoding="utf-8")
    runner_file(out).write_text(runner_source(way, out), encoding="utf-8")


def _reaching(
    stages: Sequence[Any], limits: Sequence[Any], images: Iterable[Tensor]
) -> Iterator[list[Any]]:
    """What comes to the stage behind these, batch by batch, of images that have not left before.

    Raises:
        ExportError: nothing does.
    """
    total = came = 0
    for batch in images:
        total += len(batch)
        values = _through(stages, limits, [batch.numpy()])
        if len(values[0]):
            came += len(values[0])
            yield values
    if not came:
        raise ExportError(
            f"none of {total} images of train comes to stage {len(stages)}, so its ranges cannot be"
            " measured: take more (--calibration-images), or export without --int8"
        )


def _through(stages: Sequence[Any], limits: Sequence[Any], values: list[Any]) -> list[Any]:
    """The values behind these stages of the images that stay."""
    for stage, limit in zip(stages, limits, strict=False):
        if not len(values[0]):
            break
        _, score, *values = stage(values)
        left = score.reshape(-1) >= limit
        values = [value[~left] for value in values]
    return values


def _way(format: Format) -> Pieces:
    assert format.pieces is not None
    return format.pieces()
