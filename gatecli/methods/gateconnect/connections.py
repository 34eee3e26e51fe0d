"""The gates of GateConnect: which branches are read by which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gatecli.gates.decider import Decider
from gatecli.gates.noise import generator

__all__ = ["AllConnections", "Connections", "Fixed", "RealConnections"]


class Connections(Decider):
    """Which branches of a module (units) are read by which of the next.

    Called, it returns the connections (readers, branches), 0 or 1, and by what the identity that
    each branch carries is divided.

    Always on, all branches are read by all: the network is as it was.

    Attributes:
        fan_in: How many branches each reader has.
        divisor: Of the identity that a branch carries.
        reader_site: Where the readers are units themselves.
        is_binary: Whether connections are 0 or 1.
        real: The real gates (readers, branches).
        chosen: The connections once `frozen`.
    """

    data_dependent = False
    streams = True  # each reader has maps of its own
    is_binary = True
    chosen: Tensor
    frozen: Tensor

    def __init__(
        self,
        site: str,
        branches: int,
        fan_in: int,
        reader_site: str | None,
        divisor: int | None = None,
    ) -> None:
        super().__init__(site, branches)
        self.fan_in = fan_in
        self.divisor = fan_in if divisor is None else divisor
        self.reader_site = reader_site
        self.real = nn.Parameter(torch.full((branches, branches), 1 / branches))
        self.register_buffer("chosen", self.settled())
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def largest(self) -> Tensor:
        """The fan_in largest real gates of each reader: (readers, branches), 0 or 1.

        Of equal ones those that follow the reader's own number.
        """
        branches = self.real.shape[1]
        distance = (torch.arange(branches)[None] - torch.arange(len(self.real))[:, None]) % branches
        order = torch.argsort(distance.to(self.real.device), dim=1, stable=True)
        ranked = (
            self.real.detach()
            .gather(1, order)
            .sort(dim=1, descending=True, stable=True)
            .indices[:, : self.fan_in]
        )
        return torch.zeros_like(self.real.detach()).scatter_(1, order.gather(1, ranked), 1)

    def chances(self) -> Tensor:
        """The real gates, as they are where those of a reader sum to 1."""
        chances = self.real.detach().clamp(min=0)
        total = chances.sum(1, keepdim=True)
        return torch.where(total > 0, chances / total, 1 / chances.shape[1])

    def settled(self) -> Tensor:
        """The connections that stay once the joint phase is over."""
        return self.largest()

    def drawn(self) -> Tensor:
        """fan_in distinct connections of each reader, drawn with the real gates' chances.

        The gradient is handed to all real gates, which from then on sum to 1.
        """
        chances = self.chances()
        self.real.data.copy_(chances)  # as the paper's pseudocode: the step is taken from there
        picked = torch.multinomial(
            chances + 1e-6, self.fan_in, replacement=False, generator=generator()
        )  # clipping may have left too few above zero
        binary = torch.zeros_like(chances).scatter_(1, picked, 1)
        return binary + (self.real - self.real.detach())

    def connections(self) -> Tensor:
        """Those of evaluation."""
        if self.chosen.is_meta:  # a replay: the values come from the file
            return self.chosen
        return self.chosen if bool(self.frozen) else self.settled()

    def freeze(self, connections: Tensor) -> None:
        """Let these connections (readers, branches) stay."""
        self.chosen.copy_(connections)
        self.frozen.fill_(1)

    def fixed(self, readers: Sequence[int] | None, units: Sequence[int]) -> nn.Module | None:
        """What takes the gate's place once its connections are fixed.

        Args:
            readers: The readers that stay; none: all.
            units: The branches that stay.
        """
        numbers = range(len(self.real)) if readers is None else readers
        rows = torch.tensor(list(numbers), device=self.real.device)
        columns = torch.tensor(list(units), device=self.real.device)
        left = self.connections()[rows][:, columns].clone()
        return Fixed(left, self.fan_in, self.divisor, is_binary=self.is_binary)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        is_learning = self.training and not bool(self.frozen)
        found = self.drawn() if is_learning else self.connections()
        divisor = self.divisor
        if self.strategy == "always-on" and not self.training:
            found = torch.ones_like(found)
            divisor = self.units
        z = (found.detach() > 0).any(0).to(found.dtype).expand(x.shape[0], self.units)
        if self.forced is not None:
            z = self.obeyed(x)
            found = (
                found * z[:, None, :]
                if self.forced.ndim == 2
                else found * self.forced.to(found.device)
            )
        self.report(z, None)
        return found, divisor


class RealConnections(Connections):
    """Connections as strong as the real gates: the paper's control.

    They are fan_in times the real gates, which sum to 1: what drawn ones are on average. Nothing is
    drawn, and nothing chosen once training is over.
    """

    is_binary = False

    def settled(self) -> Tensor:
        return self.fan_in * self.chances()

    def drawn(self) -> Tensor:
        self.real.data.copy_(self.chances())
        return self.fan_in * self.real


class AllConnections(Connections):
    """Every branch is read by all: nothing to choose.

    Called, it returns decisions z (N, branches).
    """

    streams = False

    def fixed(self, readers: Sequence[int] | None, units: Sequence[int]) -> nn.Module | None:
        """Nothing: all read all."""
        return None

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        z = (
            self.obeyed(x)
            if self.forced is not None
            else self.drawn().mean(0).expand(x.shape[0], self.units)
        )
        self.report(z, None)
        return z

    def drawn(self) -> Tensor:
        return torch.ones_like(self.real) + (self.real - self.real.detach())


class Fixed(nn.Module):
    """Connections (readers, branches) that no longer change, and the identity's divisor.

    `fan_in`: how many a reader had; `is_binary`: whether they are 0 or 1.
    """

    connections: Tensor

    def __init__(
        self, connections: Tensor, fan_in: int, divisor: int, *, is_binary: bool = True
    ) -> None:
        super().__init__()
        self.register_buffer("connections", connections)
        self.fan_in = fan_in
        self.divisor = divisor
        self.is_binary = is_binary

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.connections, self.divisor
