"""Rebuild a network from its recipe, and put a file's tensors into it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gatecli import methods
from gatecli.architectures.build import build, build_skeleton
from gatecli.errors import CheckpointError
from gatecli.graph.spelling import renamed
from gatecli.network import Network
from gatecli.traced.recipe import Recipe, Source, Step
from gatecli.traced.site import SiteDecision

__all__ = ["fill", "recorded_decisions", "replayed", "skeleton_with_weights"]

THRESHOLDS = ("gates.", "exits.")  # whose buffers say infinity where no exit is taken


def replayed(recipe: Recipe) -> tuple[Network, list[str]]:
    """The source architecture, traced, with the recipe's structural steps replayed.

    Its tensors are still to be filled.

    Returns:
        The network in evaluation mode, and notes for people.
    """
    source = recipe.source
    module = build_skeleton(source.arch, source.arch_args)
    network = Network(module, recipe, source.names, source.leaves)
    if _lacks_constants(network):
        module = skeleton_with_weights(source)
        network = Network(module, recipe, source.names, source.leaves)
    before = _first_parts(renamed(name, source.names) for name in module.state_dict())
    dropped = before - _first_parts(network.state_dict())
    for step in recipe.steps:
        if step.op == "attach":
            _attach(network, step)
        elif step.op == "prune":
            _prune(network, step)
    notes = [f"dropped {', '.join(sorted(dropped))}: evaluation never runs it"] if dropped else []
    return network.eval(), notes


def _lacks_constants(network: Network) -> bool:
    """Whether the network has buffers without memory that no file holds."""
    stored = network.state_dict()
    return any(tensor.is_meta and name not in stored for name, tensor in network.named_buffers())


def _prune(network: Network, step: Step) -> None:
    """Replay one prune; what an older file does not say is as it was then."""
    settings = step.settings
    if settings["plan"]:
        decisions = recorded_decisions(network, settings)
        wide, round_to = settings.get("wide", []), settings.get("round_to", 1)
        methods.apply_decisions(network, decisions, wide=wide, round_to=round_to)


def recorded_decisions(network: Network, settings: Mapping[str, Any]) -> dict[str, SiteDecision]:
    """What a prune step's settings record: kept units by site, and those still dynamic."""
    decisions = {}
    dynamic = settings.get("dynamic", {})
    for site, kept in settings["plan"].items():
        units = network.sites[site].units
        decisions[site] = SiteDecision.of(units, kept, dynamic.get(site, ()))
    return decisions


def _attach(network: Network, step: Step) -> None:
    """Replay one attach; each gates something new, or a file could have it done without end."""
    sites: list[str] = step.settings["sites"]
    method = methods.get(step.settings["method"])
    settings = methods.recorded_settings(method, step.settings["settings"])
    method.ready(network, settings)
    for site in sites:
        if site not in network.sites:
            raise CheckpointError(f"the recipe gates `{site}`, which this network does not have")
        if site in network.gated_by:
            raise CheckpointError(f"the recipe gates `{site}` twice")
    if not sites:
        raise CheckpointError(f"the recipe attaches {method.about.name} to nothing")
    with torch.device("meta"):  # the file's tensors fill them
        method.attach(network, sites, settings)


def _first_parts(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def skeleton_with_weights(source: Source) -> nn.Module:
    """The plain architecture with random weights, as it was before anything was attached."""
    return build(source.arch, source.arch_args)


def fill(network: Network, tensors: Mapping[str, Tensor], path: Path, *, strict: bool) -> None:
    """Load tensors into a network.

    Args:
        network: whose tensors may still be without memory.
        tensors: by name.
        path: the file that they are from, for errors.
        strict: every tensor must be there and none besides; else a plain file may lack
            `num_batches_tracked` and hold heads that were dropped.

    Raises:
        CheckpointError: they are not the network's, or hold values that are not finite.
    """
    wanted = network.state_dict()
    given = dict(tensors) if strict else _picked(tensors, wanted)
    wrong = _mismatch(given, wanted)
    if wrong is not None and not strict:
        raise CheckpointError(f"{path.name} does not hold the network's weights: it {wrong}")
    if wrong is not None:
        raise CheckpointError(
            f"{path.name} does not hold the tensors that its recipe asks for: it {wrong}"
        )
    network.load_state_dict(given, assign=True)
    if any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()]):
        raise CheckpointError(
            f"{path.name}: the architecture keeps tensors that no file stores; build it with --arch"
            " package.module:callable"
        )
    parameters = {name for name, _ in network.named_parameters()}
    for name, tensor in network.state_dict().items():
        if not _is_sound(name, tensor, trained=name in parameters):
            raise CheckpointError(
                f"{path.name} is of no use: its tensor `{name}` holds values that are not finite (a"
                " training that diverged?)"
            )


def _is_sound(name: str, tensor: Tensor, *, trained: bool) -> bool:
    """Whether a tensor's values are of use: finite, or a bound that nothing reaches.

    Thresholds are such bounds, and single numbers that a network clips its values at.
    """
    if trained or not (name.startswith(THRESHOLDS) or tensor.numel() == 1):
        return bool(tensor.isfinite().all())
    return name.startswith(THRESHOLDS) or not bool(tensor.isnan().any())


def _picked(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are wanted, and BatchNorm's counters where they are missing."""
    given = {name: tensor for name, tensor in tensors.items() if name in wanted}
    for name in wanted:
        if name not in given and name.endswith("num_batches_tracked"):
            given[name] = torch.tensor(0)
        elif name.endswith("num_batches_tracked"):
            given[name] = _count(given[name])
    return given


def _count(tensor: Tensor) -> Tensor:
    """A BatchNorm's counter as torch has it: averages of weights make it a floating-point one."""
    count = tensor.flatten()[:1].nan_to_num(0.0, 0.0, 0.0).long()
    return count.reshape(()) if count.numel() else torch.tensor(0)


def _mismatch(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first thing in which tensors are not those wanted; None where they are."""
    missing = sorted(set(wanted) - set(given))
    if missing:
        return f"lacks `{missing[0]}`"
    extra = sorted(set(given) - set(wanted))
    if extra:
        return f"has `{extra[0]}` too much"
    for name, tensor in given.items():
        if _kind(tensor) != _kind(wanted[name]):
            quantised = wanted[name].is_floating_point() and not tensor.is_complex()
            return (
                f"has `{name}` as {_kind(tensor)} for {_kind(wanted[name])}"
                f"{' (quantised?)' if quantised else ''}"
            )
    return None


def _kind(tensor: Tensor) -> str:
    word = "floating" if tensor.is_floating_point() else "whole"
    if tensor.is_complex():
        word = "complex"
    return f"{word} numbers of shape {tuple(tensor.shape)}"
