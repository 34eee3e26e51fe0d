"""How many units a runtime computes at a time, told by the clock.

ONNX Runtime computes a convolution's channels in blocks, and what does not fill its blocks, or is
no multiple of four, may take several times as long as what does. So before curves are measured,
networks with a little more than half of their units are timed, and with so many that they are
multiples of 4, 8 and 16.
"""

from __future__ import annotations

from collections.abc import Sequence

from gatecli.network import Network
from gatecli.stages.variants import Variants, by_kind
from gatecli.traced.latency import in_grains

__all__ = ["GRAINS", "Tried", "alike", "best", "tried"]

GRAINS = (1, 4, 8, 16)
GAIN = 0.95  # multiples that take more than this share of the time are not worth it
SAME = 1.05  # what takes less than so many times as long takes as long, by a clock
Tried = tuple[int, dict[str, int]]  # a grain, and how many units run there, by site


def alike(variants: Variants) -> list[list[str]]:
    """Sites, by kind, of which some units may go for good and others stay, in several numbers."""
    network, dependent = variants.network, variants.dependent
    some = [site for site in variants.sites if site not in dependent and variants.in_part(site)]
    return [sites for sites in by_kind(network, some) if len(tried(network, sites)) > 1]


def tried(network: Network, sites: Sequence[str]) -> list[Tried]:
    """What there is to time for these sites; one alone where nothing differs."""
    found: list[Tried] = []
    for grain in GRAINS:
        running = {}
        for site in sites:
            units = network.sites[site].units
            running[site] = in_grains(units // 2 + 1, grain, units)
        if not found or running != found[-1][1]:
            found.append((grain, running))
    return found


def best(grains: Sequence[int], ms: Sequence[float]) -> int:
    """The grain to keep units in: of those that take as little as any the largest.

    More units run at the same time there. It is 1 where multiples gain nothing.

    Args:
        grains: Those tried, the smallest first.
        ms: What a network takes with each.
    """
    least = min(ms)
    if least > GAIN * ms[0]:
        return 1
    return max(grain for grain, each in zip(grains, ms, strict=True) if each <= SAME * least)
