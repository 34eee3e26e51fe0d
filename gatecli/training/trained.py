"""A method that a training trains, with its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from gatecli import methods
from gatecli.errors import TrainingError
from gatecli.methods import Method
from gatecli.network import Network
from gatecli.traced.recipe import Recipe
from gatecli.training.options import TrainOptions

V = TypeVar("V")


@dataclass(frozen=True)
class Trained:
    """One method and its settings; the sites are those that it gates."""

    method: Method
    settings: Any

    def sites(self, network: Network) -> list[str]:
        """The sites that the method gates, in the order in which their gates run."""
        return [site for site in network.site_gates if network.methods[site] == self.method.name]

    def own(self, network: Network, by_site: Mapping[str, V]) -> dict[str, V]:
        return {
            site: value
            for site, value in by_site.items()
            if network.methods[site] == self.method.name
        }

    def groups(self, network: Network, options: TrainOptions) -> list[dict[str, Any]]:
        """The optimizer's groups of the method's own parameters, those that weight decay leaves
        alone apart.
        """
        gates = [network.site_gates[site] for site in self.sites(network)]
        named = [
            (name, parameter, gate.undecayed)
            for gate in gates
            for name, parameter in gate.named_parameters()
        ]
        free = [parameter for name, parameter, undecayed in named if name in undecayed]
        own = self.group(
            [
                *(parameter for name, parameter, undecayed in named if name not in undecayed),
                *self.method.shared(network),
            ],
            options,
        )
        return [own, {**self.group(free, options), "weight_decay": 0.0}] if free else [own]

    def group(self, parameters: Sequence[nn.Parameter], options: TrainOptions) -> dict[str, Any]:
        """The optimizer's group of the method's own parameters."""
        lr, decay = self.settings.gate_lr, self.settings.gate_weight_decay
        return {
            "params": list(parameters),
            "base_lr": options.lr * self.method.gate_lr_factor if lr is None else lr,
            "weight_decay": options.weight_decay if decay is None else decay,
        }


def trained_methods(
    recipe: Recipe, changes: Mapping[str, Any], names: Sequence[str] = ()
) -> list[Trained]:
    """The methods to train: those of these names, none: the one that the latest attach put in.

    `changes` of settings are for the first of them.

    Raises: TrainingError where one is not attached, is named twice, or trains something that does
    not go with the others.
    """
    step = recipe.last("attach", "prune")
    if step is None or (step.op == "prune" and not step.results.get("unit_rates")):
        raise TrainingError(
            f"{recipe.source.file or 'the network'} has no gates to train: attach a method first"
            " (gatecli attach CHECKPOINT --method NAME)"
        )
    attached = {
        each.settings["method"]: each.settings["settings"]
        for each in recipe.steps
        if each.op == "attach"
    }
    asked = list(names) or [list(attached)[-1]]
    for name in asked:
        if name not in attached or asked.count(name) > 1:
            raise TrainingError(
                f"expected --train to name attached methods, each once ({', '.join(attached)}), but"
                f" got `{','.join(asked)}`"
            )
    found = [methods.get(name) for name in asked]
    alone = [method.name for method in found if method.trains == "exits"]
    if alone and len(found) > 1:
        raise TrainingError(
            f"{alone[0]} trains its exits alone, with the network as it is: train it by itself,"
            f" after {', '.join(name for name in asked if name not in alone)}"
        )
    settings = [
        methods.parse_settings(
            method,
            changes if index == 0 else {},
            methods.recorded_settings(method, attached[method.name]),
        )
        for index, method in enumerate(found)
    ]
    return [Trained(method, own) for method, own in zip(found, settings, strict=True)]
