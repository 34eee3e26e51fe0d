"""What a walk through a split is, and how several processes share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gatecli.data.augment import Place
from gatecli.data.changes import UNCHANGED, Changes
from gatecli.traced.recipe import InputSpec

__all__ = ["DEALT", "SLICED", "Plan", "Walk"]

DEALT = "dealt"
SLICED = "sliced"


@dataclass(frozen=True)
class Plan:
    """What a split must know to read its images for one walk.

    Attributes:
        input: the images that the network takes.
        augment: the augmentation, one of the split's own.
        seed: what all chance follows.
        epoch: the number of the walk, which chance follows too.
        place: which of a batch's images are read; None: all.
        changes: what happens to single images then.
    """

    input: InputSpec
    augment: str
    seed: int
    epoch: int
    place: Place | None = None
    changes: Changes = UNCHANGED


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How one walk through a split goes: by default through every image as it is, in order.

    Attributes:
        augment: how images are cut out at random.
        changes: what happens to single images then.
        shuffle: whether the order is drawn; else it is the split's own.
        seed: what all chance follows.
        epoch: the number of the walk, which chance follows too.
        drop_last: whether a last, smaller batch is left out.
        divided: how several processes (gatecli.together) share it: None: each walks through all;
            DEALT: batches go round, a whole one to each; SLICED: each has its part of every batch,
            a smaller last one being left out.
        device: where images are wanted; None: on the CPU. Those for a GPU are normalised there, all
            others on the CPU. Labels stay on the CPU.
        channels_last: whether images lie in memory pixel by pixel.
    """

    augment: str = "none"
    changes: Changes = UNCHANGED
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0
    drop_last: bool = False
    divided: str | None = None
    device: torch.device | None = None
    channels_last: bool = False
