"""Leaving early: ResNet-101 with a CIFAR stem at 32x32, where and how many leave given.

    realised / ideal = (plain time / time with exits) / (plain MACs / expected MACs of exactly these
    exits, their own included)

`25/25/25/25` and `60/20/15/5` are the shares, in percent, that leave at each of the three exits and
at the end. Every exit classifies in the timed call, and is then overruled. At batch 1 a share is a
mean over calls; in a batch the samples that leave are spread at random. `nobody`: time over the
plain network's. `bound`: the network's own stages called by hand on batches of just these sizes,
without exits or gathering: what smaller batches allow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build
from gatecli.network import Network
from gatecli.network.costs import expected_macs

SHARES = {"25/25/25/25": (0.25, 0.25, 0.25, 0.25), "60/20/15/5": (0.60, 0.20, 0.15, 0.05)}
SIZE = (32, 32)


def plain_network() -> nn.Module:
    torch.manual_seed(0)
    return build("torchvision:resnet101", {"stem": "cifar", "num_classes": 10}).eval()


def at_exit(network: Network, taken: Tensor) -> dict[str, Tensor]:
    """The decisions (N, 1) with which sample n leaves at exit number taken[n]."""
    return {
        site: (taken == number).float()[:, None] for number, site in enumerate(network.site_exits)
    }


def leave(network: Network, decisions: dict[str, Tensor]) -> None:
    for site, z in decisions.items():
        network.site_exits[site].forced = z


def ideal(network: Network, shares: tuple[float, ...]) -> float:
    return network.recipe.source.macs / expected_macs(
        network, {site: [share] for site, share in zip(network.site_exits, shares, strict=False)}
    )


def left_at(batch: int, shares: tuple[float, ...]) -> Tensor:
    """Which exit each sample of a batch takes, (N,).

    The shares to the nearest sample, in a random order.
    """
    bounds = (torch.tensor(shares).cumsum(0)[:-1] * batch).round()
    taken = torch.bucketize(torch.arange(batch, dtype=torch.float32), bounds, right=True)
    return taken[torch.randperm(batch, generator=torch.Generator().manual_seed(1))]


def single(model: nn.Module, network: Network, rounds: int) -> list[timing.Row]:
    x, count = (
        torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(2)),
        len(network.site_exits) + 1,
    )

    def run(number: int) -> None:
        leave(network, at_exit(network, torch.tensor([number])))
        network(x)

    variants: dict[str, Callable[[], Any]] = {
        "plain": partial(model, x),
        **{str(number): partial(run, number) for number in range(count)},
    }
    times = timing.interleaved(variants, rounds)
    for name, shares in SHARES.items():
        times[name] = [
            sum(share * times[str(number)][turn] for number, share in enumerate(shares))
            for turn in range(rounds)
        ]
    times["nobody"] = times[str(count - 1)]
    return [
        timing.row("batch 1", "plain", times),
        timing.compared("batch 1", "nobody", times, "plain", "<= 1.02"),
        *(_against_ideal("batch 1", name, name, network, times, ">= 1.0") for name in SHARES),
    ]


def several(model: nn.Module, network: Network, batch: int, rounds: int) -> list[timing.Row]:
    x, last = (
        torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(2)),
        len(network.site_exits),
    )

    def run(taken: Tensor) -> None:
        leave(network, at_exit(network, taken))
        network(x)

    cases = {
        "nobody": torch.full((batch,), last),
        **{name: left_at(batch, shares) for name, shares in SHARES.items()},
    }
    variants: dict[str, Callable[[], Any]] = {
        "plain": partial(model, x),
        **{name: partial(run, taken) for name, taken in cases.items()},
    }
    for name in SHARES:
        variants[f"{name}, bound"] = partial(by_hand, network, x, cases[name])
    times = timing.interleaved(variants, rounds, warmup=1)
    case = f"batch {batch}"
    rows = [
        timing.row(case, "plain", times),
        timing.compared(case, "nobody", times, "plain", "<= 1.02"),
    ]
    for name in SHARES:
        rows += [
            _against_ideal(case, name, name, network, times, ">= 0.85"),
            _against_ideal(case, f"{name}, bound", name, network, times, ""),
        ]
    return rows


def by_hand(network: Network, x: Tensor, taken: Tensor) -> None:
    """The stages one after the other, on as many samples as are left, but always the first ones."""
    form, live = network._skipping, (x,)
    for number, stage in enumerate([*form.stages, form.last]):  # type: ignore[attr-defined]
        left = int((taken >= number).sum())
        if left == 0:
            return
        live = stage(network, *(value[:left] for value in live))


def _against_ideal(
    case: str, variant: str, shares: str, network: Network, times: timing.Times, target: str
) -> timing.Row:
    return timing.realised(case, variant, times, ideal(network, SHARES[shares]), target)


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    model = plain_network()
    network = gatecli.attach(model, "dgate", input_size=SIZE).network
    with torch.inference_mode():
        found = single(model, network, 5 if asked.quick else 25)
        for batch, rounds in () if asked.quick else ((8, 11), (32, 7), (128, 3)):
            found += several(model, network, batch, rounds)
    return found


if __name__ == "__main__":
    timing.main(
        __doc__, "ResNet-101 with a CIFAR stem at 32x32: realised / ideal speed-up of exits", rows
    )
