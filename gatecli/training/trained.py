"""The methods that a training trains, with their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor, nn

from gatecli import methods
from gatecli.errors import TrainingError
from gatecli.methods import Method, Objective
from gatecli.methods.settings import Length, Settings
from gatecli.network import Network
from gatecli.network.costs import Rates
from gatecli.network.priced import PricedRate
from gatecli.traced.recipe import Recipe
from gatecli.training.crowds import Part, sharers
from gatecli.training.options import TrainOptions
from gatecli.training.weights import PLAIN, check_alone, is_plain

__all__ = ["Trained", "idle_modules", "optimizer_groups", "trained_methods"]

V = TypeVar("V")
RATE = "gate_lr"


@dataclass(frozen=True)
class Trained:
    """One method and its settings; the sites are those that it gates.

    Attributes:
        method: The method.
        settings: Those that it is trained with.
        suited: Those among them that follow from the training's length.
        share: What its rate is a share of, where that is no count of units.
        crowded: Those of parameters that share the loss with more than such settings are for.
    """

    method: Method[Any]
    settings: Settings
    suited: Mapping[str, float] = field(default_factory=dict)
    share: PricedRate | None = None
    crowded: Mapping[Part, Mapping[str, float]] = field(default_factory=dict)

    def suited_to(self, length: Length, network: Network) -> Trained:
        """The same, what nobody has set being as it suits a training of this length."""
        found = self.settings.suited(length)
        crowded = {}
        for part, number in sharers(network, self.sites(network), self.share).items():
            own = self.settings.suited(replace(length, alike=number))
            if own.get(RATE) != found.get(RATE):
                crowded[part] = own
        settings = replace(self.settings, **found)
        return replace(self, settings=settings, suited=found, crowded=crowded)

    @property
    def told(self) -> dict[str, float]:
        """What follows from the training's length, and of which kind, if not of all."""
        found = dict(self.suited)
        for (kind, is_by_unit), own in self.crowded.items():
            found[f"{RATE}.{kind}" if is_by_unit else f"{RATE}.{kind}.shared"] = own[RATE]
        return found

    @property
    def name(self) -> str:
        """The method's."""
        return self.method.about.name

    @property
    def objective(self) -> Objective[Any]:
        """What trains the method's gates."""
        return self.method.objective

    def sites(self, network: Network) -> list[str]:
        """The sites that the method gates, in the order in which their gates run."""
        return [site for site in network.site_gates if self._gates(network, site)]

    def own(self, network: Network, by_site: Mapping[str, V]) -> dict[str, V]:
        """The part of `by_site` that is of the method's sites."""
        return {site: by_site[site] for site in by_site if self._gates(network, site)}

    @property
    def price(self) -> str:
        """What the rate is a share of, see gatecli.methods.objective."""
        return self.objective.traits.price(self.settings)

    def loss(self, decisions: Mapping[str, Tensor], targets: Mapping[str, float]) -> Tensor:
        """The loss that holds the gates' rate, of decisions (N, units), a scalar."""
        loss_of_rate = self.objective.traits.loss_of_rate
        if self.share is None or loss_of_rate is None:
            return self.objective.loss(decisions, self.settings, targets)
        target = sum(targets.values()) / len(targets)  # one for all of them
        rate = self.share.of_decisions(decisions)
        return loss_of_rate(rate, target, self.settings)

    def achieved(
        self, network: Network, rates: Rates, busy: Mapping[str, float] | None = None
    ) -> float:
        """What the method's gates came to, where evaluation gave all gates these rates.

        Args:
            network: The network.
            rates: Of all its gates, and `busy`, as `expected_macs` takes them.
            busy: Likewise.
        """
        if self.share is not None:
            return self.share.of_rates(network, rates, busy)
        achieved = self.objective.traits.achieved
        return achieved(network, rates, self.sites(network), self.settings)

    def _gates(self, network: Network, site: str) -> bool:
        return network.gated_by[site] == self.name

    def groups(self, network: Network, options: TrainOptions) -> list[dict[str, Any]]:
        """The optimizer's groups of the method's own parameters.

        Those that weight decay leaves alone are a group apart, if there are any, and those that
        share the loss with many.
        """
        shared = self.objective.shared(network)
        parts: dict[tuple[Part | None, bool], list[nn.Parameter]] = {(None, False): []}
        gates = network.site_gates
        for site in self.sites(network):
            gate, kind = gates[site], network.sites[site].kind
            for name, parameter in gate.own_parameters():
                part = (kind, name in gate.by_unit)
                key = (part if part in self.crowded else None, name in gate.undecayed)
                parts.setdefault(key, []).append(parameter)
        parts[None, False].extend(shared)
        groups = []
        for (part_or_none, is_free), parameters in parts.items():
            group = self.group(parameters, options, part_or_none)
            groups.append({**group, "weight_decay": 0.0} if is_free else group)
        return groups

    def group(
        self, parameters: Sequence[nn.Parameter], options: TrainOptions, part: Part | None = None
    ) -> dict[str, Any]:
        """The optimizer's group of some of the method's own parameters, of a part of them."""
        own = self.crowded.get(part, {}) if part else {}
        lr = own.get(RATE, self.settings.gate_lr)
        decay = own.get("gate_weight_decay", self.settings.gate_weight_decay)
        momentum = self.settings.gate_momentum
        return {
            "params": list(parameters),
            "base_lr": options.lr * self.objective.traits.gate_lr_factor if lr is None else lr,
            "weight_decay": options.weight_decay if decay is None else decay,
            "momentum": options.momentum if momentum is None else momentum,
        }


def optimizer_groups(
    network: Network, trained: Sequence[Trained], options: TrainOptions
) -> list[dict[str, Any]]:
    """The optimizer's groups of the network's own parameters and of the trained methods'.

    What belongs to methods that are not trained is in none.
    """
    of_methods: set[int] = set()
    for gate in network.site_gates.values():
        of_methods.update(map(id, gate.parameters()))
    for name in set(network.gated_by.values()):
        of_methods.update(map(id, methods.get(name).objective.shared(network)))
    own = [parameter for parameter in network.parameters() if id(parameter) not in of_methods]
    groups: list[dict[str, Any]] = [{"params": own, "base_lr": options.lr}]
    for each in trained:
        groups.extend(each.groups(network, options))
    return groups


def idle_modules(network: Network, trained: Sequence[Trained]) -> Iterator[nn.Module]:
    """The gates of methods that are not trained, and what these gates share, module by module.

    Gates that are trained may stand within them.
    """
    mine = {each.name for each in trained}
    for site, gate in network.site_gates.items():
        if network.gated_by[site] not in mine:
            for _, module in gate.own_modules():
                yield module
    shared: set[int] = set()
    for name in set(network.gated_by.values()) - mine:
        shared.update(map(id, methods.get(name).objective.shared(network)))
    for module in network.modules():
        held = {id(parameter) for parameter in module.parameters()}
        if held and held <= shared:
            yield from module.modules()


def trained_methods(
    recipe: Recipe, changes: Mapping[str, Any], options: TrainOptions
) -> list[Trained]:
    """The methods to train, with their settings.

    Args:
        recipe: The network's, which says what is attached.
        changes: Settings to change, of the first of the methods.
        options: How to train, and which methods; none: the one that the latest attach put in.

    Raises:
        SettingError: A setting is none of the method's, or does not go with the options.
        TrainingError: A method is not attached, is named twice, or trains something that does not
            go with the others.
    """
    if is_plain(options):
        check_alone(options.methods, changes)
        return [Trained(method=PLAIN, settings=PLAIN.about.settings())]
    attached = _attached(recipe)
    chosen = options.methods or [list(attached)[-1]]
    _check_names(chosen, attached)
    found = [methods.get(name) for name in chosen]
    _check_together(found)
    trained: list[Trained] = []
    for method in found:
        recorded = methods.recorded_settings(method, attached[method.about.name])
        own_changes = {} if trained else changes
        settings = methods.parse_settings(method, own_changes, recorded)
        settings.check(options.epochs)
        trained.append(Trained(method=method, settings=settings))
    return trained


def _attached(recipe: Recipe) -> dict[str, Any]:
    """The recorded settings of the methods attached, by name, the latest last.

    Raises:
        TrainingError: Nothing is attached, or nothing is left of it.
    """
    step = recipe.last("attach", "prune")
    if step is None or (step.op == "prune" and not step.results.get("unit_rates")):
        raise TrainingError(
            f"{recipe.source.file or 'the network'} has no gates to train: attach a method first"
            " (gatecli attach CHECKPOINT --method NAME), or train the weights alone with --train"
            " weights"
        )
    steps = [each.settings for each in recipe.steps if each.op == "attach"]
    return {settings["method"]: settings["settings"] for settings in steps}


def _check_names(names: Sequence[str], attached: Mapping[str, Any]) -> None:
    for name in names:
        if name not in attached or names.count(name) > 1:
            raise TrainingError(
                f"expected --train to name attached methods, each once ({', '.join(attached)}), but"
                f" got `{','.join(names)}`"
            )


def _check_together(found: Sequence[Method[Any]]) -> None:
    names = [method.about.name for method in found]
    alone = [each.about.name for each in found if each.objective.traits.trains == "exits"]
    if alone and len(found) > 1:
        others = [name for name in names if name not in alone]
        raise TrainingError(
            f"{alone[0]} trains its exits alone, with the network as it is: train it by itself,"
            f" after {', '.join(others)}"
        )
