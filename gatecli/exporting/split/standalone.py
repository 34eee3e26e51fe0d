"""Run a network in pieces, one file a stage: who leaves at an exit, leaves the batch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Pieces", "PiecesError", "main"]


class PiecesError(Exception):
    """A file is missing or damaged, or images are not as they should be."""


class Pieces:
    """The network: images (N, C, H, W) -> logits (N, K), and the exit that each took (N,)."""

    def __init__(self, path: Path, opened: Callable[[str, int], Any], threads: int = 0) -> None:
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            self.facts, stages = about["gatecli"], about["stages"]
            self.exits = [stage["exit"] for stage in stages[:-1]]
            self.limits = [np.float32(float(stage["threshold"])) for stage in stages[:-1]]
            self.image = (int(self.facts["channels"]), *map(int, self.facts["input_size"]))
            self.classes = int(self.facts["num_classes"])
            files = [_checked(path.parent, stage["files"]) for stage in stages]
            self.stages = [opened(str(file), threads) for file in files]
        except Exception as error:  # the runtime's own too, for whatever is wrong with a file
            said = f"{type(error).__name__}: {error}"
            raise PiecesError(" ".join(f"cannot open {path}: {said}".split())[:500]) from error

    def __call__(self, images: Any) -> tuple[Any, Any]:
        """Compute normalised images; an exit is told by its number, the number of exits: none."""
        if images.shape[1:] != self.image:
            raise PiecesError(f"expected images (N, *{self.image}), but got {images.shape}")
        rows = np.arange(len(images))  # of the batch, that are still here
        logits = np.zeros((len(rows), self.classes), np.float32)
        taken = np.full(len(rows), len(self.exits))
        values = [np.ascontiguousarray(images, np.float32)]
        for number, limit in enumerate(self.limits):
            if not len(rows):
                return logits, taken
            said, score, *values = self.stages[number](values)
            left = score.reshape(-1) >= limit
            logits[rows[left]], taken[rows[left]] = said[left], number
            if left.any():
                rows, values = rows[~left], [value[~left] for value in values]
        if len(rows):
            logits[rows] = self.stages[-1](values)[0]
        return logits, taken

    def normalised(self, pixels: Any) -> Any:
        """Pixels (N, H, W, C) from 0 to 255, of the network's size, as it wants its images."""
        if self.facts["mean"] is None:
            raise PiecesError("how images are normalised is not known: give them as float32")
        return np.moveaxis((pixels / 255 - self.facts["mean"]) / self.facts["std"], 3, 1)


def _checked(folder: Path, files: dict[str, str]) -> Path:
    """The file to open of a stage, once all of its files are those that were written."""
    paths = [folder / Path(name).name for name in files]
    for path, digest in zip(paths, files.values(), strict=True):
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{path} is damaged, or of another export: export again")
    return paths[0]


def main(load: Callable[[], Pieces]) -> None:
    """Classify the images of a file of numpy: uint8 pixels, or normalised float32."""
    try:
        network, images = load(), np.load(sys.argv[1])
        logits, taken = network(network.normalised(images) if images.dtype == np.uint8 else images)
    except (PiecesError, OSError, ValueError, IndexError) as error:
        sys.exit(f"error: {error}")
    names = network.facts["classes"] or range(network.classes)
    for best, number in zip(logits.argmax(1), taken, strict=True):
        print(names[best], [*network.exits, "end"][number])
