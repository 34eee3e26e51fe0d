"""Layer gates: learn which residual branches to run, for each image or once for all.

    x_l = shortcut(x_{l-1}) + z_l * F_l(x_{l-1}),  z_l in {0, 1}

Herrmann, Bowen, Zabih, "Deep networks with probabilistic gates" (2018), with the gate of Veit &
Belongie, "Convolutional Networks with Adaptive Inference Graphs" (2018). One gate a residual
branch, downsampling blocks included; a projection shortcut always runs. Training samples z with the
straight-through Gumbel-softmax at temperature 1; the loss is
    cross-entropy + loss_weight * (t - mean of z over all gates and instances)^2            (per
        batch, section 3.1)
    cross-entropy + loss_weight * mean over gates g of (t_g - mean of z_g over the batch)^2   (per
        gate, Veit & Belongie)
With granularity n the branch's output filters are n groups with a gate each (S2.3); so are the new
channels of a layer of a dense block, and with --kind filter the channels of a convolution that has
no shortcut, where the paper drops x_{l-1} from the right-hand side. A closed gate at a layer of a
dense block puts zeros into its place of the concatenation (section 5). A gate whose own target is 1
is left out: its branch always runs (AIG's code samples it and counts it as 1). In evaluation a
branch runs where P(on) > threshold (1/2: the most probable decision).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from gatecli.errors import SettingError
from gatecli.gates.gate import Gate
from gatecli.kinds import registry
from gatecli.kinds.base import MASK, VALUE
from gatecli.methods.base import About
from gatecli.methods.layer_gates.coupling import CoupledFilters
from gatecli.methods.layer_gates.gates import DataDependentGate, DataIndependentGate
from gatecli.methods.losses import FORMS as LOSS_FORMS
from gatecli.methods.losses import per_batch, per_gate
from gatecli.methods.objective import Objective
from gatecli.methods.registry import register
from gatecli.methods.schedules import annealed_target, raised
from gatecli.methods.settings import Length, Settings, setting
from gatecli.methods.targets import FORMS, TARGETS, VARIABLE, follow, resolve
from gatecli.methods.values import FrozenDict
from gatecli.network import Network
from gatecli.traced.site import Site

__all__ = [
    "AigSettings",
    "DataDependentGate",
    "DataIndependentGate",
    "LayerGateSettings",
]


EVERY, RESIDUAL = "every", "residual"

TRAVEL = 500.0  # what the gates' learning rate comes to over a run's steps, at least
FASTEST = 10.0  # ... and no rate is higher, however short the run
HEAVIEST = 4.0  # weight of the loss in the shortest runs


@dataclass(frozen=True)
class LayerGateSettings(Settings):
    """Settings of the layer gates; defaults are the paper's where it gives one.

    Gates of two logits are not decayed: decay alone draws them together at the gates' own rate.
    With a rate of 3 it takes P(on) from .98 to .72 in 938 steps, which looks like learning.
    """

    gate_lr: float | None = setting(
        None,
        "learning rate of the gates; none: that of the weights, more in a short_run",
        low=0,
        high=1e30,
    )
    gate_weight_decay: float | None = setting(
        0.0,
        "weight decay of the gates; none: that of the weights",
        low=0,
        high=1e30,
        before=lambda stored: None,
    )
    target_rate: float = setting(
        0.6, "share of branches to run, t in the paper (.4, .5, .6 there)", low=0, high=1
    )
    loss_weight: float | None = setting(
        None,
        "weight of the target loss beside the cross-entropy; none: 1 as in the paper, more in a"
        " short_run",
        low=0,
        high=1e30,
    )
    short_run: int = setting(
        5000,
        "a run of fewer steps is short, too short for the paper's rates to move gates: gate_lr, if"
        f" none, is then {TRAVEL:g} / steps (at most {FASTEST:g}), and loss_weight, if none,"
        f" short_run / steps (at most {HEAVIEST:g}); 0: no run is short",
        low=0,
        before=lambda stored: 0,
    )
    loss_form: str = setting(
        "quadratic",
        "quadratic, or const-quad: no penalty at or below the target (S2.2)",
        choices=LOSS_FORMS,
    )
    anneal_step: float = setting(
        0.0,
        "lower the target by this much from anneal_start on (S2.1; typical .05); 0: no annealing",
        low=0,
        high=1,
    )
    anneal_every: int = setting(5, "... every so many epochs", low=1)
    anneal_start: float = setting(1.0, "the target that annealing starts from", low=0, high=1)
    targets: Mapping[str, float] | tuple[float | None, ...] | None = setting(
        None,
        f"targets of their own: {FORMS}; 1 leaves a gate out",
        structural=True,
        value=TARGETS,
    )
    granularity: int = setting(
        1,
        "split the output filters of each branch, dense layer or convolution into so many groups,"
        " a gate each (S2.3); 1: as the kind has them, a branch or layer as a whole, each filter",
        low=1,
        high=65536,
        structural=True,
    )
    coupled: bool = setting(
        default=False,
        help="gate filters that share an addition (a ResNet's stage width) as one site, so that"
        " prune takes their channels out of the whole stream; for --kind filter",
        structural=True,
    )
    granularity_of: str = setting(
        EVERY,
        "what granularity splits: every site, or residual branches alone",
        choices=(EVERY, RESIDUAL),
        structural=True,
        before=lambda stored: RESIDUAL,
    )
    variable: str = setting(
        "none",
        "let the target follow the network's rate within each epoch (S2.2): moving (the mean so"
        " far) or exponential",
        choices=VARIABLE,
    )
    variable_momentum: float = setting(
        0.9, "of the exponential average, for each batch", low=0, high=1
    )

    def suited(self, length: Length) -> dict[str, float]:
        """What lets gates move in a short run, where it has not been set.

        The step that weight decay takes, rate times decay, stays that of the weights.
        """
        if length.steps >= self.short_run:
            return {}
        rate = raised(length.lr, TRAVEL, length.steps, FASTEST)
        found = {}
        if self.gate_lr is None and rate > length.lr:
            found["gate_lr"] = rate
            if self.gate_weight_decay is None:
                found["gate_weight_decay"] = float(f"{length.weight_decay * length.lr / rate:.2g}")
        if self.loss_weight is None:
            found["loss_weight"] = raised(1.0, self.short_run, length.steps, HEAVIEST)
        return found


@dataclass(frozen=True)
class AigSettings(LayerGateSettings):
    """Settings of AIG: the layer gates' and its own."""

    gate_weight_decay: float | None = setting(
        None,
        "weight decay of the gates; none: that of the weights, and in a short_run as little in a"
        " step as at their rate",
        low=0,
        high=1e30,
    )
    hidden: int = setting(16, "width of the gate's hidden layer", low=1, high=4096, structural=True)


L = TypeVar("L", bound=LayerGateSettings)
LossOf = Callable[..., Tensor]  # see gatecli.methods.losses


class RateObjective(Objective[L]):
    """Holds the gates' rates by one of the two losses, `loss_of`."""

    def __init__(self, loss_of: LossOf) -> None:
        self._loss_of = loss_of

    def targets(self, settings: L, sites: Iterable[str], epoch: int) -> dict[str, float]:
        # what is recorded goes by site: a list is one no longer once gates have been chosen
        own = settings.targets if isinstance(settings.targets, Mapping) else {}
        start, step, every = settings.anneal_start, settings.anneal_step, settings.anneal_every
        found = {}
        for site in sites:
            target = own.get(site, settings.target_rate)
            found[site] = annealed_target(target, epoch, start, step, every)
        return found

    def follow(
        self,
        settings: L,
        targets: Mapping[str, float],
        rates: Mapping[str, float],
        count: int,
    ) -> dict[str, float]:
        if settings.variable == "none":
            return dict(targets)
        return follow(settings.variable, settings.variable_momentum, targets, rates, count)

    def loss(
        self,
        decisions: Mapping[str, Tensor],
        settings: L,
        targets: Mapping[str, float],
    ) -> Tensor:
        weight = 1.0 if settings.loss_weight is None else settings.loss_weight
        return weight * self._loss_of(decisions, targets, settings.loss_form)


class LayerGates(CoupledFilters[L]):
    """Gates on residual branches; subclasses say which of the two."""

    def complete(
        self, network: Network, sites: list[str], settings: L, gater: Network | None = None
    ) -> tuple[list[str], L]:
        sites, settings = super().complete(network, sites, settings, gater)
        if settings.targets is None:
            return sites, settings
        own = resolve(settings.targets, sites)
        gated = [site for site in sites if own.get(site) != 1]
        if not gated:
            raise SettingError(
                "expected setting `targets` to leave something to gate, but every target is 1"
            )
        left = {site: rate for site, rate in own.items() if rate != 1}
        return gated, replace(settings, targets=FrozenDict(left) if left else None)


class AigLayerGates(LayerGates[AigSettings]):
    """Those that look at the branch's input."""

    def gate(self, network: Network, site: Site, settings: AigSettings) -> Gate:
        units = _units(site, settings)
        return DataDependentGate(site.name, site.channels, site.positions, settings.hidden, units)


class IndLayerGates(LayerGates[LayerGateSettings]):
    """Those that look at nothing."""

    def gate(self, network: Network, site: Site, settings: LayerGateSettings) -> Gate:
        return DataIndependentGate(site.name, _units(site, settings))


def _units(site: Site, settings: LayerGateSettings) -> int:
    """How many units a site's gate has."""
    is_whole = settings.granularity == 1 or not registry.of(site).splits
    is_left_out = settings.granularity_of == RESIDUAL and not site.add
    return site.units if is_whole or is_left_out else settings.granularity


def _about(
    name: str, summary: str, settings: type[L], requires: frozenset[str], held: str
) -> About[L]:
    return About(
        name=name,
        summary=f"{summary}; the loss holds {held}",
        settings=settings,
        paper="Herrmann, Bowen, Zabih: Deep networks with probabilistic gates, 2018",
        needs="residual blocks (an addition of a shortcut and a branch) or layers of dense blocks",
        requires=requires,
        default_kinds=("block", "layer"),
    )


AIG = "a small gate looks at each branch's input"
IND = "two learned logits a branch, the same for all images; what collapses to 0 can be pruned"
LOSSES: dict[str, tuple[LossOf, str]] = {
    "pergate": (per_gate, "each gate's own rate"),
    "perbatch": (per_batch, "the mean rate of the batch"),
}
for _form, (_loss, _held) in LOSSES.items():
    _aig = _about(f"aig-{_form}", AIG, AigSettings, frozenset({MASK, VALUE}), _held)
    _ind = _about(f"ind-{_form}", IND, LayerGateSettings, frozenset({MASK}), _held)
    register(AigLayerGates(_aig, RateObjective(_loss)))
    register(IndLayerGates(_ind, RateObjective(_loss)))
