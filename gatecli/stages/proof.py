"""Prove that a pruned network is the gated one with the same units forced, before it is written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor

from gatecli.errors import GatecliError
from gatecli.gates.decider import Decider
from gatecli.gates.exit import Exit
from gatecli.gates.observe import (
    Record,
    at_threshold,
    force,
    in_evaluation,
    record_gates,
    with_thresholds,
)
from gatecli.network import Network
from gatecli.network.compare import logits, random_images, relative_change
from gatecli.network.surgery import Decisions
from gatecli.traced.site import SiteDecision

__all__ = ["verify_decisions", "verify_logits"]

TOLERANCE = 1e-4  # of the largest logit: above this, prune has broken something and writes nothing
Forced = dict[str, "list[int] | Tensor"]  # see gatecli.gates.observe.force
ROUNDING = 1e-3  # of a score: so near to its threshold a gate may decide either way


def verify_logits(network: Network, smaller: Network, decisions: Decisions) -> float:
    """How far the logits are apart where both networks are forced to decide alike.

    Decided units as decided; every second unit that stays dynamic runs. The first image leaves
    nowhere, the others each at an exit that stays.

    Raises:
        GatecliError: They are another network's.
    """
    ours, theirs = _alike(network, smaller, decisions)
    exits = [site for site in theirs if isinstance(network.site_gates[site], Exit)]
    images = random_images(network, max(2, 1 + len(exits)))
    for index, site in enumerate(exits):
        ours[site] = theirs[site] = (torch.arange(len(images))[:, None] == index + 1).float()
    with in_evaluation(network), force(network, ours), force(smaller, theirs):
        change = relative_change(logits(network, images), logits(smaller, images))
    if not change <= TOLERANCE:
        raise GatecliError(
            f"the pruned network's logits differ by {change:.1e} of the largest logit from the"
            " gated network's: this is a bug in gatecli; nothing was written"
        )
    return change


def _alike(network: Network, smaller: Network, decisions: Decisions) -> tuple[Forced, Forced]:
    """Decisions to force in the two networks: decided units as decided, every second other runs."""
    ours: Forced = {}
    theirs: Forced = {}
    for site, gate in network.site_gates.items():
        decision = decisions.get(site)
        if decision is not None:
            flags = _flags(network, site, {*decision.keep, *decision.dynamic[::2]})
            ours[site] = flags
            if decision.dynamic and site in smaller.gated_by:
                theirs[site] = [flags[unit] for unit in decision.dynamic]
        elif site in smaller.gated_by:
            ours[site] = theirs[site] = _flags(network, site, range(0, gate.units, 2))
    return ours, theirs


def verify_decisions(
    network: Network, smaller: Network, decisions: Decisions, threshold: float | None
) -> None:
    """Compare what the gates that stay decide, in both networks, on random images.

    Args:
        network: The gated network.
        smaller: The pruned one.
        decisions: What was decided.
        threshold: At which the gates' rates were measured; none: each gate's own.

    Raises:
        GatecliError: A gate decides otherwise, and not by rounding.
    """
    images = random_images(network)
    mixed = {site: each for site, each in decisions.items() if each.dynamic}
    whole = {site: each for site, each in decisions.items() if not each.dynamic}
    limits = {site: _limits(network, site, each, threshold) for site, each in mixed.items()}
    forced = {site: _flags(network, site, each.keep) for site, each in whole.items()}
    wanted = _record(
        network,
        images,
        at_threshold(network, threshold),
        with_thresholds(network, limits),
        force(network, forced),
    )
    found = _record(smaller, images)
    for site, z in found.latest().items():
        units: Sequence[int] = range(z.shape[1])
        if site in mixed:
            units = mixed[site].dynamic
        differ = z != wanted.latest()[site][:, units]
        if bool(differ.any()):
            _accept_rounding(smaller.site_gates[site], found.odds[site][-1][differ], site)
            return  # what the gates behind it see is another image's by now


def _record(network: Network, images: Tensor, *settings: AbstractContextManager[None]) -> Record:
    with ExitStack() as stack:
        for each in (in_evaluation(network), *settings):
            stack.enter_context(each)
        record = stack.enter_context(record_gates(network))
        logits(network, images)
    return record


def _flags(network: Network, site: str, kept: Collection[int]) -> list[int]:
    return [int(unit in kept) for unit in range(network.site_gates[site].units)]


def _limits(network: Network, site: str, decision: SiteDecision, threshold: float | None) -> Tensor:
    """Thresholds by which units always run, decide, or never run, as was decided."""
    own = network.site_gates[site].threshold
    limits = torch.ones_like(own)
    limits[list(decision.keep)] = 0.0
    dynamic = list(decision.dynamic)
    limits[dynamic] = own[dynamic] if threshold is None else threshold
    return limits


def _accept_rounding(gate: Decider, odds: Tensor, site: str) -> None:
    """Raises GatecliError unless these scores lie at the gate's threshold."""
    away = (odds[:, None] - gate.limit()).abs().amin(1)
    if bool((away > ROUNDING * odds.abs().clamp(min=1)).any()):
        raise GatecliError(
            f"the gate at `{site}` decides otherwise in the pruned network: this is a bug in"
            " gatecli; nothing was written"
        )
