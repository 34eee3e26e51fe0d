"""RandAugment and erasing: torchvision's own, drawn by seed, epoch and row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from gatecli import together
from gatecli.data import Split, Walk, batches
from gatecli.data.arrays import ArraySplit
from gatecli.data.augment import CHANGES, generator
from gatecli.data.changes import Changes
from gatecli.data.folders import FolderSplit
from gatecli.traced.recipe import InputSpec

SIDE = 12
BOTH = Changes(randaugment=True, erase=0.5)
# values stay as they are, and an erased rectangle is of the mean colour
AS_IT_IS = InputSpec((SIDE, SIDE), 3, (0.2, 0.4, 0.6), (1.0, 1.0, 1.0))


def split(count: int, channels: int = 3) -> ArraySplit:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, channels, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    return ArraySplit(images, torch.arange(count))


def walked(data: Split, changes: Changes, size: int = 8, workers: int = 0, **more: Any) -> Tensor:
    """What a walk gives, as uint8, in the order of the labels."""
    walk = Walk(changes=changes, shuffle=True, seed=3, **more)
    parts = list(batches(data, input=AS_IT_IS, batch_size=size, walk=walk, workers=workers))
    images = torch.cat([x for x, _ in parts])
    mean = torch.tensor(AS_IT_IS.mean).view(1, 3, 1, 1)
    pixels = ((images + mean) * 255).round().to(torch.uint8)
    return pixels[torch.cat([y for _, y in parts]).argsort()]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_against_torchvision_one_by_one(channels: int) -> None:
    data = split(16, channels)
    before = torch.get_rng_state()
    found = walked(data, BOTH, epoch=2)
    assert torch.equal(before, torch.get_rng_state())
    colour = [102] if channels == 1 else [51, 102, 153]
    erasing = v2.RandomErasing(0.5, value=colour)
    randaugment = v2.RandAugment(interpolation=InterpolationMode.BILINEAR)
    with torch.random.fork_rng():
        for row, image in enumerate(data.images):
            torch.set_rng_state(generator(CHANGES, 3, 2, row).get_state())
            expected = erasing(randaugment(image)).expand(3, -1, -1)
            assert torch.equal(found[row], expected)
    assert not torch.equal(found, walked(data, BOTH, epoch=1))


def test_erasing_alone() -> None:
    data = split(24)
    found = walked(data, Changes(erase=0.5))
    mean = torch.tensor([51, 102, 153], dtype=torch.uint8).view(3, 1, 1)
    erased = (found != data.images).any(1)
    count = int(erased.flatten(1).any(1).sum())
    assert 4 < count < 20
    assert torch.equal(found, torch.where(erased[:, None], mean, data.images))


def test_neither_batches_nor_processes_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    data = split(20)
    whole = walked(data, BOTH)
    assert torch.equal(whole, walked(data, BOTH, size=5))
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(together, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(together, "count", lambda: 2)
        parts.append(walked(data, BOTH, size=20, divided="sliced"))
    monkeypatch.undo()
    rows = torch.randperm(20, generator=generator(0, 3, 0))
    order = torch.cat([rows[:10].sort().values, rows[10:].sort().values])
    assert torch.equal(torch.cat(parts), whole[order])


def test_files_are_changed_in_workers_too(tmp_path: Path) -> None:
    names = []
    for number, image in enumerate(split(6).images):
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(names[-1])
    data = FolderSplit(np.array(names, dtype=np.bytes_), torch.arange(6))
    how = {"augment": "imagenet", "size": 3}
    here = walked(data, BOTH, **how)
    assert torch.equal(here, walked(data, BOTH, workers=1, **how))
    assert not torch.equal(here, walked(data, Changes(), **how))
