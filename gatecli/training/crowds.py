"""How many share a loss: of the mean over n units alike, each has 1/n of the gradient.

A rate R that moves by s_i with unit i's decision moves in a step by the learning rate times the sum
of s_i^2. Kind by kind the s_i add up to T_k, and are as many alike as

    n_k = (sum of s_i)^2 / (sum of s_i^2) = T_k^2 / (sum of s_i^2).

At learning rates in proportion to n_k / (sum over kinds of T_k^2), R so moves as if it were the
mean over units all alike, whatever kinds there are. Where a rate has a price, T_k may exceed 1:
what a filter saves, a block around it, and a filter behind it, save as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gatecli.gates.decider import Decider
from gatecli.network import Network
from gatecli.network.priced import PricedRate

__all__ = ["Part", "effective_number", "sharers"]

Part = tuple[str, bool]  # a kind, and whether each unit there has parameters of its own


def sharers(network: Network, sites: Sequence[str], share: PricedRate | None) -> dict[Part, float]:
    """Of how many parts the rate of the gates at some sites is the mean, by kind.

    Kind by kind, as a block weighs hundreds of the filters within: what moves these would have it
    jump. Parameters that a gate has for all its units together feel all of these.

    Args:
        network: The network.
        sites: Those of the gates.
        share: What their rate is a share of; None: of their units, each alike.

    Returns:
        n_k / (sum of T_k^2), of units and of whole gates, for the parameters that there are.
    """
    units = {site: network.site_gates[site].units for site in sites}
    if share is None:
        every = 1 / max(1, sum(units.values()))
        effects = {site: torch.full((count,), every) for site, count in units.items()}
    else:
        effects = share.effects(units)
    felt: dict[Part, list[Tensor]] = {}
    totals: dict[str, float] = {}
    for site, effect in effects.items():
        kind = network.sites[site].kind
        totals[kind] = totals.get(kind, 0.0) + effect.sum().item()
        for is_by_unit in _parts(network.site_gates[site]):
            each = effect if is_by_unit else effect.sum(0, keepdim=True)
            felt.setdefault((kind, is_by_unit), []).append(each)
    all_kinds = sum(total**2 for total in totals.values()) or 1.0
    return {part: effective_number(torch.cat(own)) / all_kinds for part, own in felt.items()}


def _parts(gate: Decider) -> set[bool]:
    """Whether the gate has parameters of each unit's own, and of all its units."""
    return {name in gate.by_unit for name, _ in gate.own_parameters()}


def effective_number(shares: Tensor) -> float:
    """sum(s)^2 / sum(s^2) of shares s (n,): n where they are alike, 1 where one is all there is."""
    squares = shares.square().sum().item()
    return len(shares) if squares == 0 else shares.sum().item() ** 2 / squares
