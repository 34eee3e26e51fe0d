"""GateConnect: learn which branches of a multi-branch network feed which.

    x_j = relu(sum_k g_jk y_k),  y_k = x_k / K + F_k(x_k),  g_j in {0, 1}^C with exactly K ones

Ahmed & Torresani, "Connectivity Learning in Multi-Branch Networks" (2017). Branch j of a module
reads K of the C branches of the module before it: the fan-in. The first module of a chain reads
what comes before it in full, the outputs of the last are summed. Training keeps real gates in [0,
1], which start uniform (1/C, ours). At each iteration K distinct connections a branch are drawn
from the multinomial that they are, normalised, one draw for the whole batch, and the normalised
gates are kept. The gradient with respect to the binary gates, those not drawn too, moves them; they
are then clipped to [0, 1]; their learning rate is twice the weights'. After the joint phase the K
largest stay, and the weights are trained on, at last with two lower rates.

Ours, so that K = C is exactly the network as it was: the identity is carried as x_k / K (the paper
sums it K times), each branch has 1 / C of the last BatchNorm's shift, and that BatchNorm stays one,
in training with the statistics of the sum over all branches. What a module reads in full carries
x_k / C.

A branch that nobody reads is unused, and so is one that only unused ones read: prune takes them
out, which changes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gatecli.errors import SettingError
from gatecli.gates.decider import Decider
from gatecli.kinds import registry
from gatecli.kinds.base import CONNECTIONS
from gatecli.methods.base import Method, register
from gatecli.methods.settings import Settings, setting
from gatecli.network import Network, surgery

PHASES = {
    "cifar": (120, 100, 50, 50),
    "imagenet": (30, 30, 30, 30),
}  # epochs: joint, then at the rate, a tenth, a hundredth of it


@dataclass(frozen=True)
class GateConnectSettings(Settings):
    """Settings of GateConnect."""

    gate_weight_decay: float | None = setting(
        0.0, "weight decay of the real gates; none: that of the weights", low=0, high=1e30
    )
    fan_in: int | None = setting(
        None,
        "how many branches each branch reads, K in the paper; none: half of them, which changes"
        " predictions; all of them: attach leaves predictions as they are",
        low=1,
        high=65536,
        structural=True,
    )
    connectivity: str = setting(
        "learned",
        "learned, or random for comparison: drawn once, and fixed",
        choices=("learned", "random"),
        structural=True,
    )
    shared: str = setting(
        "yes",
        "the real gates of all branches start alike, at 1/C; no: each between half and one and a"
        " half times that, drawn with `seed`",
        choices=("yes", "no"),
        structural=True,
    )
    seed: int = setting(
        0,
        "of a random connectivity, and of real gates that start at random",
        low=0,
        high=2**31 - 1,
        structural=True,
    )
    phases: str = setting(
        "cifar",
        "how --schedule step divides the epochs into phases: 120 joint, 100, 50, 50 (cifar), or"
        " four alike (imagenet)",
        choices=tuple(PHASES),
    )


class Connections(Decider):
    """Which branches of a module (units) are read by which of the next.

    Called, it returns the connections (readers, branches), 0 or 1, and how many a reader has.

    Always on, all branches are read by all: the network is as it was. `real`: the real gates
    (readers, branches). `chosen`: the connections once `frozen`. `reader_site`: where the readers
    are units themselves.
    """

    data_dependent = False
    streams = True  # each reader has maps of its own
    chosen: Tensor
    frozen: Tensor

    def __init__(self, site: str, branches: int, fan_in: int, reader_site: str | None) -> None:
        super().__init__(site, branches)
        self.fan_in, self.reader_site = fan_in, reader_site
        self.real = nn.Parameter(torch.full((branches, branches), 1 / branches))
        self.register_buffer("chosen", self.largest())
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

    def drawn(self) -> Tensor:
        """fan_in distinct connections of each reader, drawn with the real gates' chances.

        The gradient is handed to all real gates, which from then on sum to 1.
        """
        chances = self.real.detach().clamp(min=0)
        total = chances.sum(1, keepdim=True)
        chances = torch.where(total > 0, chances / total, 1 / chances.shape[1])
        self.real.data.copy_(chances)  # as the paper's pseudocode: the step is taken from there
        picked = torch.multinomial(
            chances + 1e-6, self.fan_in, replacement=False
        )  # clipping may have left too few above zero
        binary = torch.zeros_like(chances).scatter_(1, picked, 1)
        return binary + (self.real - self.real.detach())

    def connections(self) -> Tensor:
        """Those of evaluation."""
        if self.chosen.is_meta:  # a replay: the values come from the file
            return self.chosen
        return self.chosen if bool(self.frozen) else self.largest()

    def freeze(self, connections: Tensor) -> None:
        self.chosen.copy_(connections)
        self.frozen.fill_(True)

    def fixed(self, readers: Sequence[int] | None, units: Sequence[int]) -> nn.Module | None:
        """What takes the gate's place once its connections are fixed.

        Args:
            readers: The readers that stay; none: all.
            units: The branches that stay.
        """
        numbers = range(len(self.real)) if readers is None else readers
        rows = torch.tensor(list(numbers), device=self.real.device)
        columns = torch.tensor(list(units), device=self.real.device)
        return Fixed(self.connections()[rows][:, columns].clone(), self.fan_in)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        found, fan_in = (
            (self.drawn() if self.training and not bool(self.frozen) else self.connections()),
            self.fan_in,
        )
        if self.strategy == "always-on" and not self.training:
            found, fan_in = torch.ones_like(found), self.units
        z = (found.detach() > 0.5).any(0).to(found.dtype).expand(x.shape[0], self.units)
        if self.forced is not None:
            z = self.obeyed(x)
            found = (
                found * z[:, None, :]
                if self.forced.ndim == 2
                else found * self.forced.to(found.device)
            )
        self.report(z, None)
        return found, fan_in


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
    """Connections (readers, branches), and how many a reader had, that no longer change."""

    connections: Tensor

    def __init__(self, connections: Tensor, fan_in: int) -> None:
        super().__init__()
        self.register_buffer("connections", connections)
        self.fan_in = fan_in

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.connections, self.fan_in


class GateConnect(Method):
    """GateConnect, as this file describes it."""

    needs: ClassVar[str] = (
        "two or more residual modules in a row with grouped convolutions, as ResNeXt's, of equally"
        " many branches that nothing mixes (squeeze-and-excitation does)"
    )
    paper: ClassVar[str] = "Ahmed, Torresani: Connectivity Learning in Multi-Branch Networks, 2017"
    gate_lr_factor: ClassVar[float] = 2.0

    requires: ClassVar[frozenset[str]] = frozenset({CONNECTIONS})
    default_kinds: ClassVar[tuple[str, ...]] = ("branch",)

    def insert(self, network: Network, site: str, settings: Any) -> None:
        count = network.sites[site].units
        fan_in = count // 2 if settings.fan_in is None else settings.fan_in
        if fan_in > count:
            raise SettingError(
                f"expected setting `fan_in` to be at most the {count} branches of `{site}`, but got"
                f" {fan_in}"
            )
        net = network.traced
        kind = registry.of(net.sites[site])
        gate_type = AllConnections if fan_in == count else Connections
        gate = gate_type(site, count, fan_in, kind.reader_of(net, site))
        draw = torch.Generator().manual_seed(settings.seed + kind.number(net, site))
        if settings.connectivity == "random":
            gate.freeze(_random(count, fan_in, draw))
        if settings.shared == "no":
            gate.real.data.mul_(0.5 + torch.rand(gate.real.shape, generator=draw))
        surgery.insert_gate(net, site, gate, self.name)

    def targets(self, settings: Any, sites: Iterable[str], epoch: int) -> dict[str, float]:
        return dict.fromkeys(sites, 1.0)

    def loss(
        self, decisions: Mapping[str, Tensor], settings: Any, targets: Mapping[str, float]
    ) -> Tensor:
        """There is none: the cross-entropy alone chooses connections."""
        return next(iter(decisions.values())).new_zeros(())

    def begin_epoch(
        self, network: Network, sites: Iterable[str], settings: Any, done: float
    ) -> None:
        joint, *others = PHASES[settings.phases]
        if done < joint / (joint + sum(others)):
            return
        for site in sites:
            gate = _connections(network, site)
            if not bool(gate.frozen):
                gate.freeze(gate.largest())

    def after_step(self, network: Network, sites: Iterable[str]) -> None:
        with torch.no_grad():
            for site in sites:
                _connections(network, site).real.clamp_(0, 1)

    def learning_rate(self, schedule: str, base: float, done: float, settings: Any) -> float:
        if schedule != "step":
            return super().learning_rate(schedule, base, done, settings)
        joint, same, tenth, hundredth = PHASES[settings.phases]
        at = done * (joint + same + tenth + hundredth)
        return base * (1.0 if at < joint + same else 0.1 if at < joint + same + tenth else 0.01)

    def decided(self, network: Network, site: str, threshold: float | None) -> list[bool]:
        """Which branches a used branch reads, from the chain's end."""
        gate = _connections(network, site)
        read = gate.connections() > 0
        if gate.reader_site in network.gated_by:
            readers = torch.tensor(
                self.decided(network, gate.reader_site, threshold), device=read.device
            )
            read = read & readers[:, None]
        return [bool(flag) for flag in read.any(0)]


def _connections(network: Network, site: str) -> Connections:
    gate = network.site_gates[site]
    assert isinstance(gate, Connections)
    return gate


def _random(count: int, fan_in: int, draw: torch.Generator) -> Tensor:
    rows = [torch.randperm(count, generator=draw)[:fan_in] for _ in range(count)]
    return torch.stack([torch.zeros(count).scatter_(0, row, 1) for row in rows])


register(
    GateConnect(
        "gateconnect",
        "which branches of a ResNeXt feed which branches of the next module; those that nobody"
        " reads can be pruned. With fewer than all connections, as by default, attach changes"
        " predictions: finetune next",
        GateConnectSettings,
    )
)
