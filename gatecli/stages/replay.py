"""replay: do to another source what a checkpoint's steps have done to its own.

The structure is done again as it was, on the other source's weights: the same sites are gated, the
same units are removed. What was trained or measured is not: that takes data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gatecli import methods
from gatecli.checkpoint.replay import recorded_decisions
from gatecli.errors import ArchitectureError
from gatecli.gates.exit import Exit
from gatecli.network import Network
from gatecli.network.compare import logits, random_images, relative_change
from gatecli.stages.proof import verify_logits
from gatecli.traced.recipe import Recipe, Step

__all__ = ["check_replayable", "replay_attach", "replay_prune"]

CLASSES = "num_classes"


def check_replayable(recipe: Recipe, other: Network) -> None:
    """Check that a recipe's steps can be done to another network.

    The number of classes may differ, as no step depends on it.

    Raises:
        ArchitectureError: It is of another architecture, or has been gated or cut already.
    """
    ours, theirs = recipe.source, other.recipe.source
    if ours.arch != theirs.arch:
        raise ArchitectureError(
            f"expected --on a checkpoint of {ours.arch}, as the steps are of one, but"
            f" {theirs.file or 'it'} is a {theirs.arch}: if it was mistaken, say --arch {ours.arch}"
        )
    differing = _differing(ours.arch_args, theirs.arch_args)
    if differing is not None:
        raise ArchitectureError(
            f"expected --on a {ours.arch} with {differing}={ours.arch_args.get(differing)}, as the"
            f" steps are of one, but {theirs.file or 'it'} has {theirs.arch_args.get(differing)}:"
            f" if it was assumed, say --arch-arg {differing}={ours.arch_args.get(differing)}"
        )
    done = other.recipe.last("attach", "prune")
    if done is not None:
        raise ArchitectureError(
            f"expected --on a source as it was before any gates, but {theirs.file or 'it'} has been"
            f" through {done.op} already: name its own source"
        )
    if recipe.rules != other.recipe.rules and _has_exits(recipe):
        raise ArchitectureError(
            "the steps put exits where an older gatecli had them, which a new checkpoint cannot"
            " say: attach them anew (gatecli attach)"
        )


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """An argument in which two architectures differ, but for the number of classes."""
    for name in sorted({*ours, *theirs} - {CLASSES}):
        if ours.get(name) != theirs.get(name):
            return name
    return None


def _has_exits(recipe: Recipe) -> bool:
    for step in recipe.steps:
        if step.op == "attach":
            traits = methods.get(step.settings["method"]).objective.traits
            if traits.at_least or traits.trains == "exits":
                return True
    return False


def replay_attach(network: Network, step: Step) -> Network:
    """A copy of the network with the step's sites gated by its method, as it was set then.

    Gates begin as they do in any attach.

    Raises:
        ArchitectureError: The network lacks one of the sites.
        SettingError: The sites cannot be gated.
    """
    method = methods.get(step.settings["method"])
    settings = methods.recorded_settings(method, step.settings["settings"])
    gated = network.copy().eval()
    method.ready(gated, settings)
    sites: list[str] = step.settings["sites"]
    _check_sites(gated, sites)
    images = random_images(gated, 1)
    before = logits(gated, images)
    method.attach(gated, sites, settings)
    gated.to(network.device).eval()
    change = relative_change(before, logits(gated, images))
    results = {"max_logit_change": change}
    gated.recipe = network.recipe.with_step(Step("attach", dict(step.settings), results))
    return gated


def replay_prune(network: Network, step: Step) -> Network:
    """A copy of the network with the same units removed, and the same gates let go of.

    What stays dynamic decides as it was attached: nothing was trained for these weights yet.

    Raises:
        ArchitectureError: The network lacks one of the sites.
        GatecliError: What is left is not the gated network with the same units forced.
    """
    settings = step.settings
    _check_sites(network, list(settings["plan"]))
    decisions = recorded_decisions(network, settings)
    smaller = network.copy().eval()
    for site, gate in smaller.site_gates.items():
        if site not in decisions and not isinstance(gate, Exit):
            gate.threshold.fill_(1.0)  # it never ran, but cannot be taken out
    wide, round_to = settings.get("wide", []), settings.get("round_to", 1)
    methods.apply_decisions(smaller, decisions, wide=wide, round_to=round_to)
    results: dict[str, Any] = {
        "params": smaller.params,
        "macs_dense": smaller.macs_dense,
        "max_logit_change": verify_logits(network, smaller, decisions),
    }
    if smaller.gated_by:
        left = smaller.site_gates.items()
        results["unit_rates"] = {site: [gate.fresh_rate] * gate.units for site, gate in left}
    smaller.recipe = network.recipe.with_step(Step("prune", dict(settings), results))
    return smaller


def _check_sites(network: Network, sites: list[str]) -> None:
    lacking = [site for site in sites if site not in network.sites]
    if lacking:
        raise ArchitectureError(
            f"the steps are about `{lacking[0]}`, which this network does not have: its sites are"
            f" {', '.join(list(network.sites)[:6])}, ..."
        )
