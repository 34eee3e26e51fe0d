"""Pictures of other depths than 8 bit, brought to 8 bit or refused by name.

PIL's own conversion clips them: all of a 16-bit picture above 255 becomes white.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["to_bytes"]

DEEPEST = 65535


def to_bytes(picture: Image.Image) -> Image.Image:
    """The picture itself, or where its values are of 16 bits or float, one of 8 bits.

    16 bits are taken as shares of 65535, float values as they are, from 0 to 1.

    Raises:
        ValueError: its values lie elsewhere, or have 32 bits.
    """
    if picture.mode == "F":
        return _from_float(np.asarray(picture))
    if picture.mode == "I" and picture.format != "PNG":
        raise ValueError("its values have 32 bits: expected 8 or 16, or float from 0 to 1")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.float64)
        return Image.fromarray(np.rint(values * (255 / DEEPEST)).astype(np.uint8))
    return picture


def _from_float(values: np.ndarray) -> Image.Image:
    low = float(values.min())
    high = float(values.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"its values are float, from {low:g} to {high:g}: expected 0 to 1, or whole numbers of"
            " 8 or 16 bits"
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))
