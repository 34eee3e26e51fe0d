"""Choosing exits' thresholds on 50,000 samples.

The joint table's whole frontier, and beside it the greedy search that others use.

Greedy: a grid of thresholds per exit, one exit after the other, later exits still shut; each takes
the lowest threshold at which the network stays at its part of the accuracy that may be lost.
`first`: the first exit may lose all of it; `shared`: each an equal part. One call of it answers one
target, where the frontier answers all.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial

import timing
import torch

from gatecli.calibration.exits.samples import OperatingPoint, Samples, cheapest, measure
from gatecli.calibration.exits.search import search
from gatecli.calibration.exits.table import frontier

SAMPLES, GRID = 50_000, 100
MACS = (0.4e9, 1.2e9, 2.4e9, 2.51e9)  # of the order of ResNet-101's stages at 32x32
DROPS = (0.1, 0.5, 1.0, 2.0, 4.0)  # percent below the final classifier


def synthetic(count: int) -> Samples:
    """Easy and hard samples.

    An exit is right where it sees more than the sample is hard, and its margin is a noisy view of
    that.
    """
    chance = torch.Generator().manual_seed(0)
    hardness = torch.randn(count, 1, generator=chance)
    left = (
        torch.tensor([0.6, 1.4, 2.0, 2.3])
        - hardness
        + 0.6 * torch.randn(count, 4, generator=chance)
    )
    margins = left[:, :3] + 0.5 * torch.randn(count, 3, generator=chance)
    return Samples.of(margins, left > 0, torch.tensor(MACS, dtype=torch.float64))


def greedy(samples: Samples, target: float, shared: bool) -> OperatingPoint:
    """Thresholds chosen one exit after the other; `target` in percent."""
    full = 100 * samples.correct[:, -1].double().mean().item()
    chosen, alive = [math.inf] * samples.exits, torch.ones(len(samples), dtype=torch.bool)
    right = samples.correct[:, -1].clone()  # who is right, as the thresholds stand
    for e, margins in enumerate(samples.margins.unbind(1)):
        wanted = full - (full - target) * ((e + 1) / samples.exits if shared else 1)
        for threshold in torch.linspace(margins.min().item(), margins.max().item(), GRID).tolist():
            taken = alive & (margins >= threshold)
            if (
                100 * torch.where(taken, samples.correct[:, e], right).double().mean().item()
                >= wanted
            ):
                chosen[e], right, alive = (
                    threshold,
                    torch.where(taken, samples.correct[:, e], right),
                    alive & ~taken,
                )
                break
    return measure(samples, chosen)


def more(samples: Samples, points: list[OperatingPoint], target: float, shared: bool) -> str:
    """What greedy spends beyond the frontier's point of (at least) the accuracy that greedy
    reached, in percent.
    """
    point = greedy(samples, target, shared)
    best = cheapest(points, point.top1)
    assert best is not None  # greedy's own accuracy is within reach
    return f"{100 * (point.cost / best.cost - 1):+.1f} %"


def comparison(samples: Samples) -> None:
    """The table of costs: the frontier's GMACs, the proven gap of the refined search, greedy's
    extra.
    """
    points, full = frontier(samples), 100 * samples.correct[:, -1].double().mean().item()
    print(
        f"\n{full:.2f} percent right at {MACS[-1] / 1e9:g} GMACs without exits; {len(points)}"
        " points on the frontier\n"
    )
    print(
        "| target | frontier, GMACs | refined, GMACs | bound, GMACs | gap | refined in, s | greedy,"
        " first | greedy, shared |\n|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    for drop in DROPS:
        target, start = full - drop, time.thread_time()
        found, best = search(samples, target), cheapest(points, target)
        seconds = time.thread_time() - start
        assert found is not None and best is not None
        extra = [more(samples, points, target, shared) for shared in (False, True)]
        print(
            f"| {target:.2f} | {best.cost / 1e9:.4f} | {found.point.cost / 1e9:.4f} |"
            f" {found.bound / 1e9:.4f} | {found.gap:.1%} | {seconds:.1f} | {' | '.join(extra)} |"
        )


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    samples = synthetic(SAMPLES)
    target = 100 * samples.correct[:, -1].double().mean().item() - 1
    variants = {
        "whole frontier, 64 levels": partial(frontier, samples, 64),
        "whole frontier, 127 levels": partial(frontier, samples),
        "greedy, first, one target": partial(greedy, samples, target, False),
        "greedy, shared, one target": partial(greedy, samples, target, True),
    }
    times = timing.interleaved(variants, rounds=2 if asked.quick else 11)
    case = f"{SAMPLES:,} samples, 3 exits"
    comparison(samples)
    return [
        timing.row(
            case,
            name,
            times,
            sorted(times[name])[len(times[name]) // 2],
            "<= 1" if "frontier" in name else "",
            "ratio: median in seconds",
        )
        for name in variants
    ]


if __name__ == "__main__":
    timing.main(__doc__, "Choosing exits' thresholds", rows)
