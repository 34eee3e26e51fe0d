"""A data set's images as addresses that hold them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from gatecli.report.blocks import Picture
from gatecli.report.looking import Example
from gatecli.words import printable

__all__ = ["SIDE", "picture_of"]

SIDE = 96  # pixels of the longer side, at most


def picture_of(example: Example, classes: Sequence[str]) -> Picture:
    """An image with what it shows and what the network says, for the page."""
    label = printable(classes[example.label])
    answer = printable(classes[example.answer])
    right = example.label == example.answer
    said = f"{answer}, right" if right else f"{answer}, but it is {label}"
    return Picture(
        source=_address(example),
        alternative=f"An image of class {label}; the network says {said}",
        label=label if right else f"{answer} (is {label})",
        right=right,
    )


def _address(example: Example) -> str:
    pixels = example.pixels
    colour = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels[0].numpy()
    image = Image.fromarray(colour)
    image.thumbnail((SIDE, SIDE))
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
