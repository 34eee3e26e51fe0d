"""One split of a data set, and the walk through it in batches."""

from __future__ import annotations

import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gatecli import together
from gatecli.data import forms
from gatecli.data.augment import AUGMENTS, ORDER, Place, generator
from gatecli.data.changes import changed
from gatecli.data.delivery import delivered, is_pinned, suitable_workers
from gatecli.data.prepare import normalisation
from gatecli.data.walk import DEALT, SLICED, Plan, Walk
from gatecli.errors import DataError, SettingError, reason
from gatecli.traced.recipe import InputSpec

__all__ = ["Digest", "Split", "batches", "cut", "steps"]


class Digest(Protocol):
    """A hash that grows."""

    def update(self, data: Any, /) -> None:
        """Take more bytes."""


class Split(ABC):
    """Images and their labels.

    Attributes:
        labels: int64 (N,).
        augments: the augmentations that it can do.
        parallel: whether reading gains from worker processes.
    """

    labels: Tensor
    augments: tuple[str, ...] = AUGMENTS
    parallel = False

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def take(self, rows: Tensor) -> Split:
        """The split of the samples `rows` (int64 (n,)) alone."""

    @abstractmethod
    def check(self, channels: int) -> None:
        """Check that the images can be given to a network with so many input channels.

        Raises:
            DataError: they cannot.
        """

    @abstractmethod
    def read(self, rows: Tensor, number: int, plan: Plan) -> Tensor:
        """Read samples as one batch, augmented.

        Args:
            rows: the samples, int64 (n,); the images `plan.place` of their batch.
            number: of the batch in its walk.
            plan: what the walk is.

        Returns:
            uint8 (n, 1 or input.channels, H, W) in input.size.

        Raises:
            DataError: an image cannot be read.
        """

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of each channel's values in [0, 1]; None: not measured."""
        return None

    @abstractmethod
    def identify(self, digest: Digest, *, with_pixels: bool) -> None:
        """Put what tells these images from others into a hash.

        Args:
            digest: of hashlib.
            with_pixels: whether images in memory are compared.
        """


def cut(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide samples by chance, class by class.

    RandomState is frozen by numpy's policy, so that a recorded seed gives the same division for
    ever.

    Args:
        labels: of all samples, int64 (N,).
        fraction: of every class, goes to the second part: at least one sample, never all.
        seed: of the division.

    Returns:
        The rows of both parts, int64, in order.
    """
    chance = np.random.RandomState(seed % 2**32)
    classes = labels.numpy()
    second = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
        second[chance.permutation(rows)[:count]] = True
    return torch.from_numpy(np.flatnonzero(~second)), torch.from_numpy(np.flatnonzero(second))


def steps(split: Split, batch_size: int, *, drop_last: bool = False) -> int:
    """How many batches one walk has.

    Raises:
        SettingError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise SettingError(f"expected `batch_size` to be at least 1, but got {batch_size}")
    return len(split) // batch_size if drop_last else math.ceil(len(split) / batch_size)


def batches(
    split: Split,
    *,
    input: InputSpec,
    batch_size: int,
    walk: Walk = Walk(),
    start: int = 0,
    workers: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk through a split once.

    What comes is a function of the arguments alone: not of `workers`, nor of `start`, nor of
    torch's global generator, which stays as it is.

    Args:
        split: the samples.
        input: the images that the network takes, with their normalisation.
        batch_size: images a batch.
        walk: the order, the augmentation, and what they are drawn from.
        start: the first batch to yield.
        workers: processes that read, where that gains anything; None: as many as help.

    Yields:
        Images, float32 (n, input.channels, H, W), normalised, and labels, int64 (n,).

    Raises:
        DataError: on the call, where the augmentation, the channels or the normalisation do not
            fit; on the way, where an image can't be read.
        SettingError: a `batch_size` below 1, or `start` or `workers` below 0.
    """
    total = steps(split, batch_size, drop_last=walk.drop_last)
    if workers is None:
        workers = suitable_workers(walk)
    if start < 0 or workers < 0:
        raise SettingError(
            f"expected `start` and `workers` to be at least 0, but got {start} and {workers}"
        )
    _check_augment(split, walk.augment)
    split.check(input.channels)
    normalisation(input)  # refuse now what would be refused at the first batch
    order = torch.arange(len(split))
    if walk.shuffle:
        order = torch.randperm(len(split), generator=generator(ORDER, walk.seed, walk.epoch))
    plan = Plan(
        input=input,
        augment=walk.augment,
        seed=walk.seed,
        epoch=walk.epoch,
        changes=walk.changes,
    )
    reader = _Reader(split, plan, order, batch_size, sliced=walk.divided == SLICED)
    numbers = range(start, total)
    if walk.divided == DEALT:
        numbers = numbers[together.rank() :: together.count()]
    return _walk(reader, numbers, workers if split.parallel else 0, walk)


def _check_augment(split: Split, augment: str) -> None:
    if augment not in AUGMENTS:
        raise DataError(
            f"expected `augment` to be one of {', '.join(split.augments)}, but got {augment!r}"
        )
    if augment not in split.augments:
        raise DataError(
            f"augment {augment} needs an {' or '.join(forms.with_augment(augment))}: expected one"
            f" of {', '.join(split.augments)} for this data set"
        )


class _Reader(Dataset["tuple[Tensor, Tensor] | DataError"]):
    """Batches by number, still uint8: four times less to pass between processes.

    An error is returned, not raised: DataLoader would wrap it in the worker's many-line traceback.
    """

    def __init__(
        self, split: Split, plan: Plan, order: Tensor, batch_size: int, *, sliced: bool
    ) -> None:
        # asked here: a worker process is none of those that share the walk
        self.part = together.part(batch_size) if sliced else None
        self.split = split
        self.plan = plan
        self.order = order
        self.batch_size = batch_size

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | DataError:
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        plan = self.plan
        if self.part is not None:
            plan = replace(plan, place=Place(start=self.part.start, total=len(rows)))
            rows = rows[self.part]
        try:
            images = self.split.read(rows, number, plan)
            return changed(images, rows, plan), self.split.labels[rows]
        except DataError as error:
            return error


def _walk(
    reader: _Reader, numbers: range, workers: int, walk: Walk
) -> Iterator[tuple[Tensor, Tensor]]:
    items: Iterator[tuple[Tensor, Tensor] | DataError]
    if workers:
        items = _in_workers(reader, numbers, workers, pinned=is_pinned(walk))
    else:
        items = map(reader.__getitem__, numbers)
    for item in items:
        if isinstance(item, DataError):
            raise item
        images, labels = item
        yield delivered(images, reader.plan.input, walk), labels


def _in_workers(
    reader: _Reader, numbers: range, workers: int, *, pinned: bool
) -> Iterator[tuple[Tensor, Tensor] | DataError]:
    """The same batches from worker processes.

    DataLoader draws its workers' seeds: from a generator of its own here.
    """
    loader = DataLoader(
        reader,
        None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_on_start,
        generator=torch.Generator(),
        pin_memory=pinned,
    )
    items = iter(loader)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                raise
            # killed by lack of memory, or of shared memory in a container; a batch half handed over
            # shows as one of the other errors
            raise DataError(
                f"a worker process that reads images died ({reason(error)}): try --workers 0"
            ) from error
        yield item


def _as_is(item: Any) -> Any:
    return item


def _on_start(worker: int) -> None:
    """Ctrl-C reaches workers too; what becomes of it is the main process's decision."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
