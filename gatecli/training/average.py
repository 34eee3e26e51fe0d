"""The average of a network's tensors over the steps of a training, which evaluation may take.

    a <- d a + (1 - d) w    after each step, from a = w after the first one on

for every parameter and every BatchNorm's statistics. All else, such as thresholds and what gates
have settled, is not averaged: it is as the network has it.

Reference: Polyak and Juditsky 1992; torch.optim.swa_utils, whose arithmetic this is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["Average"]

STATISTICS = ("running_mean", "running_var")


class Average:
    """The average of one network's tensors.

    Attributes:
        tensors: The averages, by the tensor's name; empty before the first step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._network = network
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def _own(self) -> dict[str, Tensor]:
        """The network's tensors that are averaged, by name."""
        buffers = self._network.named_buffers()
        statistics = {name: each for name, each in buffers if name.endswith(STATISTICS)}
        return {**dict(self._network.named_parameters()), **statistics}

    @torch.no_grad()
    def follow(self) -> None:
        """A step is made: let the average follow it."""
        own = self._own()
        if not self.tensors:
            self.tensors = {name: each.detach().clone() for name, each in own.items()}
            return
        self._average(list(self.tensors.values()), list(own.values()), 0)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the network have the averages inside the block."""
        own = self._own()
        kept = {name: own[name].detach().clone() for name in self.tensors}
        self._write(self.tensors)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the network these tensors; in place, as others hold its parameters."""
        own = self._own()
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from averages of before, or from none.

        Raises:
            ValueError: They are another network's.
        """
        self.tensors = {}
        own = self._own() if tensors else {}
        if tensors.keys() != own.keys():
            raise ValueError("averages of another network")
        for name, each in own.items():  # in their own order: `follow` goes by it
            like = torch.empty_like(each.detach())
            self.tensors[name] = like.copy_(tensors[name].view_as(like))
