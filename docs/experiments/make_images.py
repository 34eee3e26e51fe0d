"""Make an image folder to try commands on: coloured shapes on noise, 4 classes.

python docs/experiments/make_images.py shapes --train 60 --val 15
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def picture(kind: str, draw: np.random.Generator, side: int = 256) -> Image.Image:
    """One shape of random place, size and colour."""
    image = Image.fromarray(draw.integers(0, 90, (side, side, 3), dtype=np.uint8))
    pen, (x, y), r = (
        ImageDraw.Draw(image),
        draw.integers(70, side - 70, 2).tolist(),
        int(draw.integers(30, 65)),
    )
    colour = tuple(draw.integers(100, 256, 3).tolist())
    if kind == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif kind == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
    elif kind == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    else:
        pen.line((x - r, y - r, x + r, y + r), fill=colour, width=12)
        pen.line((x - r, y + r, x + r, y - r), fill=colour, width=12)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--val", type=int, default=15)
    args = parser.parse_args()
    draw = np.random.default_rng(0)
    for split, count in (("train", args.train), ("val", args.val)):
        for kind in ("circle", "cross", "square", "triangle"):
            folder = args.folder / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                picture(kind, draw).save(folder / f"{index:04}.jpg")


if __name__ == "__main__":
    main()
