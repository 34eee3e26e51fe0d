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
With price=macs or ms the per-batch loss weighs what gates save, where the papers count them: in
place of the mean of z stands the share that runs of all the cost that the gates can save, the mean
over the images, see gatecli.network.priced.
With granularity n the branch's output filters are n groups with a gate each (S2.3); so are the new
channels of a layer of a dense block, and with --kind filter the channels of a convolution that has
no shortcut, where the paper drops x_{l-1} from the right-hand side. A closed gate at a layer of a
dense block puts zeros into its place of the concatenation (section 5). A gate whose own target is 1
is left out: its branch always runs (AIG's code samples it and counts it as 1). In evaluation a
branch runs where P(on) > threshold (1/2: the most probable decision). A gate within another gated
site (a filter in a block) looks at what that one looks at: all is decided before any of it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import ClassVar, TypeVar

from torch import Tensor

from gatecli.errors import SettingError
from gatecli.gates.gate import Gate
from gatecli.kinds import registry
from gatecli.kinds.base import MASK, VALUE
from gatecli.methods.base import About
from gatecli.methods.layer_gates.coupling import CoupledFilters
from gatecli.methods.layer_gates.gates import DataDependentGate, DataIndependentGate
from gatecli.methods.layer_gates.settings import RESIDUAL, AigSettings, LayerGateSettings
from gatecli.methods.losses import distance, per_batch, per_gate
from gatecli.methods.objective import COUNT, Objective, Traits
from gatecli.methods.registry import register
from gatecli.methods.schedules import annealed_target
from gatecli.methods.targets import follow, resolve
from gatecli.methods.values import FrozenDict
from gatecli.network import Network, surgery
from gatecli.traced.site import Site

__all__ = [
    "AigSettings",
    "DataDependentGate",
    "DataIndependentGate",
    "LayerGateSettings",
]


L = TypeVar("L", bound=LayerGateSettings)
LossOf = Callable[..., Tensor]  # see gatecli.methods.losses


def _weight(settings: LayerGateSettings) -> float:
    return 1.0 if settings.loss_weight is None else settings.loss_weight


def _price(settings: LayerGateSettings) -> str:
    return settings.price


def _no_price(settings: LayerGateSettings) -> str:
    if settings.price != COUNT:
        raise SettingError(
            f"expected price={COUNT} where the loss holds each gate's own rate, but got"
            f" price={settings.price}: what a gate saves weighs in the mean rate of them all,"
            " which the methods `-perbatch` hold"
        )
    return COUNT


def _loss_of_rate(rate: Tensor, target: float, settings: LayerGateSettings) -> Tensor:
    return _weight(settings) * distance(rate, target, settings.loss_form)


class RateObjective(Objective[L]):
    """Holds the gates' rates by one of the two losses, `loss_of`."""

    traits: ClassVar[Traits] = Traits(price=_no_price)

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
        return _weight(settings) * self._loss_of(decisions, targets, settings.loss_form)


class PricedObjective(RateObjective[L]):
    """Holds one rate for all gates, which may be weighed by what they save."""

    traits: ClassVar[Traits] = Traits(price=_price, loss_of_rate=_loss_of_rate)


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

    def _insert(self, network: Network, site: str, settings: L) -> None:
        """Let a gate decide; within another gated site it looks at what that one looks at.

        So all is decided before anything within is computed, and nothing is where it is closed.
        """
        place = network.sites[site]
        outer = surgery.around(network.traced, place)
        seen, sees = place, ""
        if outer is not None:
            seen = replace(place, channels=outer.channels, positions=outer.positions)
            sees = outer.entry
        gate = self.gate(network, seen, settings)
        surgery.insert_gate(network.traced, site, gate, self.about.name, sees)


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
    _held_by = PricedObjective if _loss is per_batch else RateObjective
    register(AigLayerGates(_aig, _held_by(_loss)))
    register(IndLayerGates(_ind, _held_by(_loss)))
