"""Who else trains: the loop asks these classes, and nothing else, what several processes need.

Each process has its part of every batch. What is averaged over a batch's images, the loss and the
gates' rates, is averaged over all of them, so a training is the same on any number of processes, to
rounding: rates are added up before a loss squares them, and a mean over the images here weighs as
much as there are images here. Gradients are then averaged over the processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gatecli import together
from gatecli.data.augment import generator
from gatecli.errors import SettingError
from gatecli.gates.noise import Noise, draw_from

__all__ = ["OneProcess", "Several", "processes"]

OWN = 2  # what a generator is for, beside those of gatecli.data.augment: what the network draws


class OneProcess:
    """The whole job in this process.

    Attributes:
        is_main: Whether this process writes.
        batch_size: Images in a whole batch.
    """

    is_main = True

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def wrap(self, network: nn.Module) -> nn.Module:
        """What the loop calls forward on; of several processes, a wrapper that averages gradients.

        Args:
            network: The one being trained.
        """
        return network

    def apart(self, model: nn.Module, *, on: bool) -> AbstractContextManager[None]:
        """Let each process add up gradients by itself inside the block, until one without.

        Args:
            model: What `wrap` gave.
            on: Whether to.
        """
        return nullcontext()

    def weigh(self, value: Tensor) -> Tensor:
        """A mean over the images here, so weighed that the processes' mean is that over all."""
        return value

    def whole(self, decisions: Mapping[str, Tensor], images: Iterable[str]) -> dict[str, Tensor]:
        """Decisions of the whole batch, as losses look at them; gradients go back to all processes.

        Args:
            decisions: Of the images here, site -> (N, units).
            images: The sites of which a loss looks at each image by itself.

        Returns:
            Site -> the decisions of all images, or a row (1, units) with their means.
        """
        return dict(decisions)

    def mean(self, value: Tensor) -> Tensor:
        """Numbers averaged over the processes."""
        return value

    def settle(self, network: nn.Module) -> None:
        """Average over the processes what a step has changed besides the parameters."""

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of parameters that nothing wraps."""

    def seeded(
        self, seed: int, device: torch.device, batch_size: int | None = None
    ) -> AbstractContextManager[None]:
        """Seed all that is drawn in a step; gates draw so inside the block.

        Args:
            seed: Of the step.
            device: Where gates draw.
            batch_size: Images in a whole batch; None: as in training.
        """
        torch.manual_seed(seed)
        total = batch_size or self.batch_size
        here = together.part(total)
        noise = Noise(
            generator=torch.Generator(device).manual_seed(seed),
            start=here.start,
            here=here.stop - here.start,
            total=total,
        )
        return draw_from(noise)


class Several(OneProcess):
    """One of the processes that gatecli.together has joined."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(batch_size)
        self.is_main = together.rank() == 0
        here = together.part(batch_size)
        self._weight: float = (here.stop - here.start) * together.count() / batch_size
        self._start = here.start

    def wrap(self, network: nn.Module) -> nn.Module:
        # gates that have settled are no longer asked, so parameters may be unused; the statistics
        # of BatchNorms are averaged by `settle`
        with warnings.catch_warnings():  # torch 2.14 renames an option that 2.10 has so
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                network, broadcast_buffers=False, find_unused_parameters=True
            )

    def apart(self, model: nn.Module, *, on: bool) -> AbstractContextManager[None]:
        if on and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return nullcontext()

    def weigh(self, value: Tensor) -> Tensor:
        return value * self._weight

    def whole(self, decisions: Mapping[str, Tensor], images: Iterable[str]) -> dict[str, Tensor]:
        parts = {}
        one_by_one = set(images)
        for site, z in decisions.items():
            parts[site] = self._placed(z) if site in one_by_one else self._share(z)
        if not parts:
            return {}
        flat = together.summed(torch.cat([each.flatten() for each in parts.values()]))
        return dict(zip(parts, _unflattened(flat, list(parts.values())), strict=True))

    def _placed(self, z: Tensor) -> Tensor:
        """The rows here at their place among zeros: (N, units) -> (batch_size, units)."""
        rows = torch.arange(len(z), device=z.device) + self._start
        return z.new_zeros(self.batch_size, z.shape[1]).index_put((rows,), z)

    def _share(self, z: Tensor) -> Tensor:
        """What the rows here add to the mean: (N, units) -> (1, units)."""
        return self.weigh(z.mean(0, keepdim=True)) / together.count()

    def mean(self, value: Tensor) -> Tensor:
        return together.summed(value) / together.count()

    def settle(self, network: nn.Module) -> None:
        statistics: list[Tensor] = []
        for part in network.modules():
            if part.training and getattr(part, "track_running_stats", False):
                statistics += [part.get_buffer("running_mean"), part.get_buffer("running_var")]
        self._average_in_place(statistics)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        self._average_in_place([each.grad for each in parameters if each.grad is not None])

    @torch.no_grad()
    def _average_in_place(self, tensors: list[Tensor]) -> None:
        if not tensors:
            return
        flat = self.mean(torch.cat([each.flatten() for each in tensors]))
        for each, averaged in zip(tensors, _unflattened(flat, tensors), strict=True):
            each.copy_(averaged)

    def seeded(
        self, seed: int, device: torch.device, batch_size: int | None = None
    ) -> AbstractContextManager[None]:
        block = super().seeded(seed, device, batch_size)
        # what the network itself draws, for dropout, must differ from process to process
        own = generator(OWN, seed, together.rank())
        torch.manual_seed(own.initial_seed())
        return block


def _unflattened(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """A flat tensor in pieces of the shapes of `like`."""
    found = []
    start = 0
    for each in like:
        found.append(flat[start : start + each.numel()].view_as(each))
        start += each.numel()
    return found


def processes(batch_size: int, *, synced: bool) -> OneProcess:
    """Those that train together, with batches of this size.

    Args:
        batch_size: Images in a whole batch.
        synced: Whether BatchNorms normalise by the whole batch.

    Raises:
        SettingError: A process would have too few images.
    """
    count = together.count()
    if count == 1:
        return OneProcess(batch_size)
    least = count if synced else 2 * count
    if batch_size < least:
        raise SettingError(
            f"expected batches of at least {least} images for {count} processes"
            f"{'' if synced else ', 2 for each, by which its BatchNorms normalise'}, but got"
            f" {batch_size}: take larger batches (--batch-size is that of all together) or fewer"
            " processes"
        )
    return Several(batch_size)
