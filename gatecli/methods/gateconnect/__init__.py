"""GateConnect: learn which branches of a multi-branch network feed which.

    x_j = relu(sum_k g_jk y_k),  y_k = x_k / K + F_k(x_k),  g_j in {0, 1}^C with exactly K ones

Ahmed & Torresani, "Connectivity Learning in Multi-Branch Networks" (2017). Branch j of a module
reads K of the C branches of the module before it: the fan-in. The first module of a chain reads
what comes before it in full, the outputs of the last are summed. Training keeps real gates in [0,
1], which start uniform (1/C, ours). At each iteration K distinct connections a branch are drawn
from the multinomial that they are, normalised, one draw for the whole batch, and the normalised
gates are kept. The gradient with respect to the binary gates, those not drawn too, moves them; they
are then clipped to [0, 1]; their learning rate is twice the weights', and their step is a plain
one, without momentum. After the joint phase the K largest stay, and the weights are trained on, at
last with two lower rates. With `connectivity=real`, the paper's control, nothing is drawn: g_j are
the real gates themselves, K times what sums to 1.

Ours, so that K = C is exactly the network as it was: the identity is carried as x_k / K (the paper
sums it K times: `carry=sum`), each branch has 1 / C of the last BatchNorm's shift, and that
BatchNorm stays one, in training with the statistics of the sum over all branches. What reads a
module in full is given x_k / C.

A branch that nobody reads is unused, and so is one that only unused ones read: prune takes them
out, which changes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gatecli.errors import SettingError
from gatecli.kinds import registry
from gatecli.kinds.base import CONNECTIONS
from gatecli.methods.base import About, Method
from gatecli.methods.gateconnect.connections import (
    AllConnections,
    Connections,
    RealConnections,
)
from gatecli.methods.gateconnect.phases import (
    PHASES,
    check_phases,
    has_chosen,
    joint_share,
    phase_rate,
)
from gatecli.methods.objective import Objective, Traits
from gatecli.methods.registry import register
from gatecli.methods.schedules import raised
from gatecli.methods.settings import Length, Settings, setting
from gatecli.network import Network
from gatecli.traced.site import Site

__all__ = ["Connections", "GateConnectSettings"]

TRAVEL = 1000.0  # what the real gates' learning rate comes to over the joint phase, at least
FASTEST = 3.0  # ... and no rate is higher: with 10, the first steps decide
FACTOR = 2.0  # the real gates' learning rate over the weights', in the paper


@dataclass(frozen=True)
class GateConnectSettings(Settings):
    """Settings of GateConnect."""

    gate_lr: float | None = setting(
        None,
        "learning rate of the real gates; none: twice that of the weights, more in a short_run",
        low=0,
        high=1e30,
    )
    gate_weight_decay: float | None = setting(
        0.0, "weight decay of the real gates; none: that of the weights", low=0, high=1e30
    )
    gate_momentum: float | None = setting(
        0.0,
        "momentum of the real gates (AdamW: beta1); none: that of the weights",
        low=0,
        high=1,
        before=lambda stored: None,
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
        "learned; or for comparison random: drawn once, and fixed; or real: as strong as the real"
        " gates, nothing drawn",
        choices=("learned", "random", "real"),
        structural=True,
    )
    carry: str = setting(
        "mean",
        "of the branches that a branch reads, the identity is the mean, or their sum as in the"
        " paper, which changes predictions with all connections too",
        choices=("mean", "sum"),
        structural=True,
    )
    shared: bool = setting(
        default=True,
        help="the real gates of all branches start alike, at 1/C; no: each between half and one"
        " and a half times that, drawn with `seed`",
        structural=True,
    )
    seed: int | None = setting(
        None,
        "of a random connectivity, and of real gates that start at random; none: that of --seed",
        low=0,
        high=2**31 - 1,
        structural=True,
    )
    phases: str | tuple[float, ...] = setting(
        "cifar",
        "the joint phase, and three of the weights alone, which --schedule step trains at the rate,"
        " a tenth and a hundredth of it: as 120, 100, 50, 50 (cifar), four alike (imagenet), or"
        " four lengths, epochs or shares",
        value=PHASES,
    )
    short_run: int = setting(
        5000,
        "a joint phase of fewer steps is short, too short for the paper's rate to choose: where"
        f" gate_lr is none, it is then {TRAVEL:g} / steps (at most {FASTEST:g}); 0: none is short",
        low=0,
        before=lambda stored: 0,
    )

    def check(self, epochs: int) -> None:
        check_phases(self.phases, epochs)

    def suited(self, length: Length) -> dict[str, float]:
        """What lets connections be learned in a short joint phase, where it has not been set."""
        usual = FACTOR * length.lr
        steps = round(length.steps * joint_share(self.phases))
        is_short = 0 < steps < self.short_run
        if self.gate_lr is not None or not is_short or length.is_adaptive:
            return {}
        rate = raised(usual, TRAVEL, steps, FASTEST)
        return {"gate_lr": rate} if rate > usual else {}


class Choosing(Objective[GateConnectSettings]):
    """The cross-entropy alone moves the real gates, until the joint phase is over."""

    traits: ClassVar[Traits] = Traits(gate_lr_factor=FACTOR)

    def targets(
        self, settings: GateConnectSettings, sites: Iterable[str], epoch: int
    ) -> dict[str, float]:
        return dict.fromkeys(sites, 1.0)

    def loss(
        self,
        decisions: Mapping[str, Tensor],
        settings: GateConnectSettings,
        targets: Mapping[str, float],
    ) -> Tensor:
        """There is none: the cross-entropy alone chooses connections."""
        return next(iter(decisions.values())).new_zeros(())

    def begin_epoch(
        self, network: Network, sites: Iterable[str], settings: GateConnectSettings, done: float
    ) -> None:
        if not has_chosen(settings.phases, done):
            return
        for site in sites:
            gate = _connections(network, site)
            if not bool(gate.frozen):
                gate.freeze(gate.settled())

    def after_step(self, network: Network, sites: Iterable[str]) -> None:
        with torch.no_grad():
            for site in sites:
                _connections(network, site).real.clamp_(0, 1)

    def learning_rate(
        self, schedule: str, base: float, done: float, settings: GateConnectSettings
    ) -> float:
        if schedule != "step":
            return super().learning_rate(schedule, base, done, settings)
        return phase_rate(settings.phases, base, done)


class GateConnect(Method[GateConnectSettings]):
    """GateConnect, as this file describes it."""

    def complete(
        self,
        network: Network,
        sites: list[str],
        settings: GateConnectSettings,
        gater: Network | None = None,
    ) -> tuple[list[str], GateConnectSettings]:
        sites, settings = super().complete(network, sites, settings, gater)
        if settings.seed is None:
            settings = replace(settings, seed=torch.initial_seed() % 2**31)
        return sites, settings

    def gate(self, network: Network, site: Site, settings: GateConnectSettings) -> Connections:
        count = site.units
        fan_in = count // 2 if settings.fan_in is None else settings.fan_in
        if fan_in > count:
            raise SettingError(
                f"expected setting `fan_in` to be at most the {count} branches of `{site.name}`,"
                f" but got {fan_in}"
            )
        net, kind = network.traced, registry.of(site)
        divisor = fan_in if settings.carry == "mean" else 1
        gate_type = _type_of(settings, is_full=fan_in == count)
        gate = gate_type(site.name, count, fan_in, kind.reader_of(net, site.name), divisor)
        draw = torch.Generator().manual_seed((settings.seed or 0) + kind.number(net, site.name))
        if settings.connectivity == "random":
            gate.freeze(_random(count, fan_in, draw))
        if not settings.shared:
            gate.real.data.mul_(0.5 + torch.rand(gate.real.shape, generator=draw))
        return gate

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


def _type_of(settings: GateConnectSettings, *, is_full: bool) -> type[Connections]:
    if settings.connectivity == "real":
        return RealConnections
    return AllConnections if is_full and settings.carry == "mean" else Connections


def _connections(network: Network, site: str) -> Connections:
    gate = network.site_gates[site]
    assert isinstance(gate, Connections)
    return gate


def _random(count: int, fan_in: int, draw: torch.Generator) -> Tensor:
    rows = [torch.randperm(count, generator=draw)[:fan_in] for _ in range(count)]
    return torch.stack([torch.zeros(count).scatter_(0, row, 1) for row in rows])


register(
    GateConnect(
        About(
            name="gateconnect",
            summary="which branches of a ResNeXt feed which branches of the next module; those"
            " that nobody reads can be pruned. With fewer than all connections, as by default,"
            " attach changes predictions: finetune next",
            settings=GateConnectSettings,
            paper="Ahmed, Torresani: Connectivity Learning in Multi-Branch Networks, 2017",
            needs="two or more residual modules in a row with grouped convolutions, as ResNeXt's,"
            " of equally many branches that nothing mixes (squeeze-and-excitation does)",
            requires=frozenset({CONNECTIONS}),
            default_kinds=("branch",),
        ),
        Choosing(),
    )
)
