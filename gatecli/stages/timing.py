"""Time several networks in one interleaved run, so that what else happens hits them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatecli.gates.observe import force
from gatecli.network import Network
from gatecli.network.costs import Rates
from gatecli.runtimes.base import Prepared
from gatecli.runtimes.rates import among_comers
from gatecli.stages.clock import milliseconds

__all__ = ["Timed", "interleaved"]

WARM_UP = 3  # rounds
QUICK = 20.0  # milliseconds


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A network that is ready to be timed.

    Attributes:
        prepared: What is called.
        images: (n, C, H, W), of which batches are drawn.
        forced: A network whose decisions are drawn anew for each call; None: it decides itself.
        rates: What decisions are drawn from.
    """

    prepared: Prepared
    images: Tensor
    forced: Network | None = None
    rates: Rates


def interleaved(
    everyone: Sequence[Timed], size: int, repeats: int, tick: Callable[[], None]
) -> list[list[float]]:
    """Time networks in turn, after three rounds to warm up.

    In a round all get the same images, and decisions drawn from the same numbers. Quick ones are
    called once more before it counts: a small network's weights stay in a processor's caches while
    nothing else is called, and where many are called in turn it takes far longer.

    Args:
        everyone: what is timed.
        size: the images of a batch.
        repeats: the rounds that count.
        tick: is called after each round.

    Returns:
        Milliseconds of each round, by network.
    """
    draw = torch.Generator().manual_seed(0)
    times: list[list[float]] = [[] for _ in everyone]
    least = [QUICK] * len(everyone)
    for repeat in range(-WARM_UP, repeats):
        chance = _Chance(draw)
        picked = chance("", size)
        for index, timed in enumerate(everyone):
            chosen = (picked * len(timed.images)).long()
            feed = timed.prepared.feed(timed.images[chosen])
            with _drawn(timed, size, chance), torch.inference_mode():
                if least[index] < QUICK:
                    timed.prepared.call(feed)
                elapsed = milliseconds(timed.prepared.call, feed)
            least[index] = min(least[index], elapsed)
            if repeat >= 0:
                times[index].append(elapsed)
        if repeat >= 0:
            tick()
    return times


class _Chance:
    """Random numbers of a round: the same for all networks that ask for the same."""

    def __init__(self, draw: torch.Generator) -> None:
        self._draw = draw
        self._drawn: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        key = (name, *shape)
        if key not in self._drawn:
            self._drawn[key] = torch.rand(shape, generator=self._draw)
        return self._drawn[key]


def _drawn(timed: Timed, size: int, chance: _Chance) -> AbstractContextManager[Any]:
    """Decisions for one call drawn from the rates, where no real images decide."""
    if timed.forced is None:
        return nullcontext()
    return force(timed.forced, _decisions(timed.forced, timed.rates, size, chance))


def _decisions(network: Network, rates: Rates, size: int, chance: _Chance) -> Mapping[str, Tensor]:
    """A gate decides for those that come to it, so it is drawn from the share of these."""
    drawn = {}
    for site, units in rates.items():
        shares = torch.tensor(among_comers(network, site, rates))
        drawn[site] = (chance(site, size, len(units)) < shares).float()
    return drawn
