"""What trains a method's gates: the rates they aim at, the loss, and what happens on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic

from torch import Tensor
from torch.nn import Parameter

from gatecli.gates.decider import Decider
from gatecli.methods.schedules import learning_rate
from gatecli.methods.settings import S, Settings
from gatecli.network import Network
from gatecli.network.costs import Rates, overall_rate

__all__ = ["COUNT", "MACS", "MS", "PRICES", "Losses", "Objective", "Traits", "mean_of_units"]

# What a rate may be a share of: of the units, of the MACs, or of the milliseconds that these save.
COUNT, MACS, MS = "count", "macs", "ms"
PRICES = (COUNT, MACS, MS)

Losses = Mapping[str, Tensor]  # each exit's own task loss on all images, a scalar, by site
Achieved = Callable[[Network, Rates, Sequence[str], Any], float]


def mean_of_units(
    network: Network, rates: Rates, sites: Sequence[str], settings: Settings
) -> float:
    """The mean rate of all units at `sites`, as a share of all samples."""
    return overall_rate({site: rates[site] for site in sites})


def unsupervised(losses: Losses, end: Tensor, settings: Settings) -> Tensor | float:
    """Nothing: what exits answer is judged where it is the network's answer, and nowhere else."""
    return 0.0


def counted(settings: Settings) -> str:
    """A rate is a share of the gated units."""
    return COUNT


@dataclass(frozen=True, kw_only=True)
class Traits:
    """How training has to treat a method.

    Attributes:
        trains: What finetune trains: the `network` with the gates, or the `exits` alone.
        aims: Whether training aims at a rate.
        at_least: Whether that rate is one to reach, rather than to come down to.
        samples: Whether training draws decisions.
        gate_lr_factor: The gates' learning rate over that of the weights, unless --set gate_lr
            says otherwise.
        achieved: From the network, evaluation's rates of all its gated sites (shares of all
            samples), the method's own sites and its settings to what is compared with the mean
            target.
        supervision: From the losses on all images of the method's exits and of the end, and the
            settings, to what is added to the loss, whoever leaves where.
        price: From the settings to what the rate is a share of, one of PRICES. Raises SettingError
            where the loss cannot hold such a rate.
        loss_of_rate: From a rate, its target and the settings to the weighted loss, a scalar: it
            takes the place of `loss` where the price is not COUNT.
        by_image: Whether the loss looks at decisions image by image, rather than at their means
            over the batch.
    """

    trains: str = "network"
    aims: bool = True
    at_least: bool = False
    samples: bool = True
    gate_lr_factor: float = 1.0
    achieved: Achieved = mean_of_units
    supervision: Callable[[Losses, Tensor, Any], Tensor | float] = unsupervised
    price: Callable[[Any], str] = counted
    loss_of_rate: Callable[[Tensor, float, Any], Tensor] | None = None
    by_image: bool = False


class Objective(Generic[S]):
    """What trains a method's gates; subclasses say `targets` and `loss`, and what else is theirs.

    Where they say nothing, nothing happens.
    """

    traits: ClassVar[Traits] = Traits()

    def targets(self, settings: S, sites: Iterable[str], epoch: int) -> dict[str, float]:
        """The rate that the gate at each of `sites` aims at when `epoch` (from 0) begins."""
        raise NotImplementedError

    def loss(
        self, decisions: Mapping[str, Tensor], settings: S, targets: Mapping[str, float]
    ) -> Tensor:
        """The weighted loss of the gates' decisions (site -> z (N, units)) with these targets.

        A scalar.
        """
        raise NotImplementedError

    def penalty(self, gates: Iterable[Decider], settings: S) -> Tensor | float:
        """What is added to the loss for the gates' own parameters."""
        return 0.0

    def follow(
        self, settings: S, targets: Mapping[str, float], rates: Mapping[str, float], count: int
    ) -> dict[str, float]:
        """The targets after the epoch's batch number `count` (from 1).

        In it the gates had `rates`. The targets are as they were, unless a method says otherwise.
        """
        return dict(targets)

    def learning_rate(self, schedule: str, base: float, done: float, settings: S) -> float:
        """The learning rate of all parameters, for their `base`.

        The share `done` of the training lies behind.
        """
        return learning_rate(schedule, base, done)

    def shared(self, network: Network) -> list[Parameter]:
        """What the method has besides the gates, for all of them together.

        It is trained as they are.
        """
        return []

    def begin(self, network: Network, sites: Iterable[str], settings: S) -> None:
        """Training of the gates at these sites begins, or goes on.

        What it draws from torch's generator follows from the training's seed.
        """

    def begin_epoch(self, network: Network, sites: Iterable[str], settings: S, done: float) -> None:
        """An epoch of training begins; `done`: the share of the training that lies behind."""

    def after_step(self, network: Network, sites: Iterable[str]) -> None:
        """The optimizer has moved the parameters."""
