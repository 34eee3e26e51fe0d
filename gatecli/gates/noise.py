"""What gates draw: a function of a generator and of an image's place in its batch.

Where a batch is divided among processes, each draws for the whole batch and takes what its own
images' places get. So an image gets the same, however many processes there are. The generator is
the gates' own: what the network draws besides, for dropout, does not move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Noise", "coin", "draw_from", "drawn", "generator"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Whence gates draw.

    Attributes:
        generator: Of the device on which they draw.
        start: The place of the first image here in the whole batch.
        here: How many of its images are here.
        total: How many images the whole batch has.
    """

    generator: torch.Generator
    start: int
    here: int
    total: int


_noise: Noise | None = None


@contextmanager
def draw_from(noise: Noise) -> Iterator[None]:
    """Let gates draw from `noise` inside the block, rather than from torch's generator."""
    global _noise
    before, _noise = _noise, noise
    try:
        yield
    finally:
        _noise = before


def generator() -> torch.Generator | None:
    """What is drawn from for all images together; None: torch's own generator."""
    return None if _noise is None else _noise.generator


def drawn(
    shape: Sequence[int],
    draw: Callable[[Sequence[int], torch.Generator | None], Tensor],
) -> Tensor:
    """Draw for the images that are here.

    Args:
        shape: (N, ...), N of the whole batch's images being here.
        draw: From a shape and a generator to what is drawn, the images along the first dimension.
    """
    if _noise is None:
        return draw(shape, None)
    if shape[0] != _noise.here:  # not images, or several of each
        return draw(shape, _noise.generator)
    whole = draw((_noise.total, *shape[1:]), _noise.generator)
    return whole[_noise.start : _noise.start + shape[0]]


def coin(chances: Tensor) -> Tensor:
    """1 with these chances, else 0.

    Drawn for the images that are here: evaluation gives each process whole batches.
    """
    return torch.bernoulli(chances, generator=generator())
