"""A small file of the form that the experiments' laboratories read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["save_glyphs"]


def save_glyphs(path: Path) -> Path:
    """Save a file of glyphs36's form: 36 classes of noise at 8x8; returns its path."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 36 * 12), ("val", 36 * 2), ("test", 36 * 2)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 36
    np.savez(path, **arrays)
    return path
