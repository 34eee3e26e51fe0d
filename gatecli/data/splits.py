"""One split of a data set, and the walk through it in batches."""

from __future__ import annotations

import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gatecli.data.augment import AUGMENTS, ORDER, generator
from gatecli.errors import DataError, SettingError
from gatecli.traced.recipe import InputSpec


@dataclass(frozen=True)
class Plan:
    """What a split must know to read its images for one walk."""

    input: InputSpec
    augment: str
    seed: int
    epoch: int


class Split(ABC):
    """Images with `labels` (int64 (N,)).

    `augments` are those it can do; `parallel` ones gain from worker processes.
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
        """Raises DataError where the images can't be given to a network with so many input
        channels.
        """

    @abstractmethod
    def read(self, rows: Tensor, number: int, plan: Plan) -> Tensor:
        """Samples `rows` as batch `number`.

        Uint8 (n, 1 or input.channels, H, W) in input.size, augmented.
        """


def steps(split: Split, batch_size: int, drop_last: bool = False) -> int:
    """How many batches one walk has. Raises SettingError where `batch_size` is below 1."""
    if batch_size < 1:
        raise SettingError(f"expected `batch_size` to be at least 1, but got {batch_size}")
    return len(split) // batch_size if drop_last else math.ceil(len(split) / batch_size)


def batches(
    split: Split,
    *,
    input: InputSpec,
    batch_size: int,
    augment: str = "none",
    shuffle: bool = False,
    seed: int = 0,
    epoch: int = 0,
    start: int = 0,
    workers: int = 0,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk through a split once: x float32 (n, input.channels, H, W), normalised, and y int64 (n,).

    What comes is a function of the arguments alone: not of `workers`, nor of `start` (the first
    batch to yield), nor of torch's global generator, which stays as it is.

    Raises:
        DataError: on the call, where the augmentation, the channels or the normalisation do not
            fit; on the way, where an image can't be read.
        SettingError: a `batch_size` below 1, or `start` or `workers` below 0.
    """
    total = steps(split, batch_size, drop_last)
    if start < 0 or workers < 0:
        raise SettingError(
            f"expected `start` and `workers` to be at least 0, but got {start} and {workers}"
        )
    if augment not in AUGMENTS:
        raise DataError(
            f"expected `augment` to be one of {', '.join(split.augments)}, but got {augment!r}"
        )
    if augment not in split.augments:
        raise DataError(
            f"augment {augment} needs an imagefolder: expected one of {', '.join(split.augments)}"
            " for this data set"
        )
    split.check(input.channels)
    mean, std = _normalisation(input)
    order = (
        torch.randperm(len(split), generator=generator(ORDER, seed, epoch))
        if shuffle
        else torch.arange(len(split))
    )
    reader = _Reader(split, Plan(input, augment, seed, epoch), order, batch_size)
    return _walk(reader, range(start, total), workers if split.parallel else 0, mean, std)


def _normalisation(input: InputSpec) -> tuple[Tensor, Tensor]:
    """mean and std as (1, 1 or channels, 1, 1).

    Raises DataError where they are unknown or do not fit.
    """
    if input.mean is None or input.std is None:
        raise DataError(
            "the normalisation of the network's input is not known: give --mean and --std as it was"
            " trained with"
        )
    if not {len(input.mean), len(input.std)} <= {1, input.channels}:
        raise DataError(
            f"expected `mean` and `std` to have 1 or {input.channels} values, as the network takes"
            f" {input.channels} channels, but got {len(input.mean)} and {len(input.std)}: give"
            " --mean and --std"
        )
    if not (
        all(map(math.isfinite, input.mean)) and all(0 < value < math.inf for value in input.std)
    ):
        raise DataError(
            f"expected `mean` to be finite and `std` above 0, but got {input.mean} and {input.std}:"
            " give --mean and --std"
        )
    mean, std = (
        torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
        for values in (input.mean, input.std)
    )
    return mean, std


class _Reader(Dataset["tuple[Tensor, Tensor] | DataError"]):
    """Batches by number, still uint8: four times less to pass between processes.

    An error is returned, not raised: DataLoader would wrap it in the worker's many-line traceback.
    """

    def __init__(self, split: Split, plan: Plan, order: Tensor, batch_size: int) -> None:
        self.split, self.plan, self.order, self.batch_size = split, plan, order, batch_size

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | DataError:
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        try:
            return self.split.read(rows, number, self.plan), self.split.labels[rows]
        except DataError as error:
            return error


def _walk(
    reader: _Reader, numbers: range, workers: int, mean: Tensor, std: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    channels = reader.plan.input.channels
    for item in (
        _in_workers(reader, numbers, workers) if workers else map(reader.__getitem__, numbers)
    ):
        if isinstance(item, DataError):
            raise item
        images, labels = item
        x = images.expand(-1, channels, -1, -1).to(
            torch.float32, memory_format=torch.contiguous_format
        )
        yield x.div_(255).sub_(mean).div_(std), labels


def _in_workers(
    reader: _Reader, numbers: range, workers: int
) -> Iterator[tuple[Tensor, Tensor] | DataError]:
    """The same batches from worker processes.

    DataLoader draws its workers' seeds: from a generator of its own here.
    """
    own = torch.Generator()
    loader = iter(
        DataLoader(
            reader,
            None,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_as_is,
            worker_init_fn=_on_start,
            generator=own,
        )
    )
    while True:
        try:
            item = next(loader)
        except StopIteration:
            return
        except (RuntimeError, EOFError, ConnectionError, FileNotFoundError) as error:
            if isinstance(error, RuntimeError) and "exited unexpectedly" not in str(error):
                raise
            # killed by lack of memory, or of shared memory in a container; a batch half handed over
            # shows as one of the other errors
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"a worker process that reads images died ({reason}): try --workers 0"
            ) from error
        yield item


def _as_is(item: Any) -> Any:
    return item


def _on_start(worker: int) -> None:
    """Ctrl-C reaches workers too; what becomes of it is the main process's decision."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
