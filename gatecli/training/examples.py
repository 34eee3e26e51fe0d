"""The images of a training, in batches: those that it fits on and those that it chooses by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from gatecli import together
from gatecli.data import DataSet, Walk, batches, steps
from gatecli.data.changes import RANDAUGMENT, Changes
from gatecli.data.walk import DEALT, SLICED
from gatecli.errors import DataError, SettingError
from gatecli.network import Network
from gatecli.training.options import TrainOptions

__all__ = ["Examples"]


class Examples:
    """The train and val splits of a data set, in batches normalised for a network.

    Attributes:
        batch_size: Images in a training batch: as the options say, or all where there are fewer.
        batches_per_epoch: Training batches in an epoch; what is left over is dropped.
        steps_per_epoch: Steps, of `accumulate` batches each; what is left over is dropped.
        val_steps: Batches of val.
    """

    def __init__(self, network: Network, data: DataSet, options: TrainOptions) -> None:
        """Look at what there is.

        Raises:
            DataError: There is no train or val split, or too few images.
            SettingError: A step would have more batches than an epoch.
        """
        for name in ("train", "val"):
            if name not in data.splits:
                raise DataError(
                    f"expected {data.spec} to have a {name} split: training fits on train and"
                    " chooses on val"
                )
        self.network = network
        self.data = data
        self.options = options
        is_random = options.augment == RANDAUGMENT
        own = None if is_random else options.augment
        self.augment = own or data.augment
        self.changes = Changes(randaugment=is_random, erase=options.erase)
        split = data.splits["train"]
        self.batch_size = min(options.batch_size, len(split))
        if self.batch_size < 2:
            raise DataError(
                f"expected {data.spec} to have at least 2 training images, but it has {len(split)}"
            )
        self.batches_per_epoch = steps(split, self.batch_size, drop_last=True)
        self.steps_per_epoch = self.batches_per_epoch // options.accumulate
        if not self.steps_per_epoch:
            raise SettingError(
                f"expected --accumulate to be at most the {self.batches_per_epoch} batches of an"
                f" epoch ({self.batch_size} of {len(split)} images each), but got"
                f" {options.accumulate}"
            )
        self.val_steps = self.steps_in_order("val")

    def training(
        self, epoch: int, start: int = 0, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The shuffled and augmented training batches of an epoch, from index `start` on.

        Of several processes each gets its part of every batch.

        Args:
            epoch: From 0.
            start: The first batch.
            batch_size: Images in each, at most all; None: as in training.
        """
        seed = self.options.seed
        return batches(
            self.data.splits["train"],
            input=self.network.input,
            batch_size=self.size(batch_size),
            walk=Walk(
                augment=self.augment,
                changes=self.changes,
                shuffle=True,
                seed=seed,
                epoch=epoch,
                drop_last=True,
                divided=SLICED,
                **self._wanted,
            ),
            start=start,
            workers=self.options.workers,
        )

    @property
    def _wanted(self) -> dict[str, Any]:
        """Where images are wanted, and how they shall lie in memory there."""
        return {"device": self.network.device, "channels_last": self.options.channels_last}

    def size(self, asked: int | None) -> int:
        """Images in a training batch of the size asked for, at most all; None: as in training."""
        return min(asked or self.batch_size, len(self.data.splits["train"]))

    def in_order(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """All batches of a split, in order and as they are; several processes share them."""
        return batches(
            self.data.splits[split],
            input=self.network.input,
            batch_size=self.options.batch_size,
            walk=Walk(divided=DEALT, **self._wanted),
            workers=self.options.workers,
        )

    def steps_in_order(self, split: str) -> int:
        """The number of batches that `in_order` gives, at most."""
        return -(-steps(self.data.splits[split], self.options.batch_size) // together.count())
