"""How much of the promised speed-up comes true: ResNet-50 at 224 with half of its decisions 0.

    realised / ideal = (plain time / gated time) / (plain MACs / expected MACs of exactly these
    decisions, gates included)

`ind`: decisions cost nothing. `aig`: every gate computes its decision in the timed call, and is
then overruled. `mask`: the same decisions, but every branch is computed and multiplied, as in
training. `open`: time over the plain module's, all gates open. The bounds, what the rest of the
network and the convolutions at fewer samples allow: `by hand` at batch 1, a torchvision network
without the closed blocks; `no copies` in a batch, see `without_copies`. `pruned`: every other block
removed by gatecli, over the network by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import timing
import torch
import torchvision
from torch import Tensor, nn

import gatecli
from gatecli.lowering.inplace import WritingExecutor as SkipBlock
from gatecli.network import Network
from gatecli.network.costs import expected_macs

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
METHODS = ("ind", "aig")
Decisions = dict[str, Tensor]  # site -> (N, 1)


def resnet(layout: str) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet50().eval().to(memory_format=FORMATS[layout])


def gated(model: nn.Module, method: str, layout: str) -> Network:
    return gatecli.attach(model, f"{method}-perbatch").network.to(memory_format=FORMATS[layout])


def half_closed(network: Network, batch: int) -> Decisions:
    """Every other block at batch 1.

    In a batch each sample and block at random, the same every time.
    """
    draw = torch.Generator().manual_seed(1)
    sites = [name for name, site in network.sites.items() if site.kind == "block"]
    if batch == 1:
        return {site: torch.tensor([[float(index % 2)]]) for index, site in enumerate(sites)}
    return {site: (torch.rand(batch, 1, generator=draw) < 0.5).float() for site in sites}


def decide(network: Network, decisions: Decisions) -> Network:
    """Let data-dependent gates compute their log-odds as ever, and then decide as given.

    Force the others.
    """
    for site, gate in network.site_gates.items():
        if gate.data_dependent:
            overruled = timing.overruled(gate.log_odds, decisions[site] * 2 - 1)
            gate.log_odds = overruled  # type: ignore[method-assign]
        else:
            gate.forced = decisions[site]
    return network


def without_copies(network: Network) -> Network:
    """The bound for a batch.

    As many samples a branch, but always the first ones, which need no gathering and no scattering.
    """
    for block in network.modules():
        if isinstance(block, SkipBlock):
            block._some = MethodType(_first, block)  # type: ignore[method-assign]
    return network


def _first(block: SkipBlock, x: Tensor, shortcut: Tensor, open_: Tensor) -> Tensor:
    count, out = len(open_), block._closed(shortcut)
    out[:count].add_(block.branch(block.root, x[:count])).relu_()
    return out


def without_blocks(layout: str, gone: list[str]) -> nn.Module:
    """torchvision's network with blocks taken out by hand."""
    return cut(resnet(layout), gone)


def cut(model: nn.Module, gone: list[str]) -> nn.Module:
    """Take blocks out of a ResNet of torchvision, in place.

    A downsampling one leaves its projection and its ReLU.
    """
    for name in gone:
        block: Any = model.get_submodule(name)
        model.set_submodule(
            name,
            (
                nn.Identity()
                if block.downsample is None
                else nn.Sequential(block.downsample, nn.ReLU(inplace=True))
            ),
        )
    return model


def skipping(batch: int, layout: str, rounds: int) -> list[timing.Row]:
    model = resnet(layout)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(2)).to(
        memory_format=FORMATS[layout]
    )
    base = {method: gated(model, method, layout) for method in METHODS}
    half = half_closed(base["ind"], batch)
    every = {site: torch.ones_like(z) for site, z in half.items()}
    networks = {
        f"{method}, {name}": decide(network.copy(), z)
        for method, network in base.items()
        for name, z in (("half closed", half), ("all open", every))
    }
    mask = decide(base["ind"].copy(), half)
    variants: dict[str, Callable[[], Any]] = {
        "plain": partial(model, x),
        **{name: partial(network, x) for name, network in networks.items()},
    }
    variants["mask only, half closed"] = lambda: mask._masked(mask, x)
    if batch == 1:
        variants["by hand, half closed"] = partial(without_blocks(layout, list(half)[::2]), x)
    else:
        variants["no copies, half closed"] = partial(
            without_copies(decide(base["ind"].copy(), half)), x
        )
    with torch.inference_mode():
        times = timing.interleaved(variants, rounds, warmup=1)
    case = f"batch {batch}, {layout}"
    rows = [timing.row(case, "plain", times)]
    for variant in list(variants)[1:]:
        network = base["aig" if variant.startswith("aig") else "ind"]
        if "open" in variant:
            rows.append(timing.compared(case, variant, times, "plain", "<= 1.02"))
            continue
        macs = expected_macs(network, {site: z.mean(0).tolist() for site, z in half.items()})
        target = "" if variant[:3] not in METHODS else ">= 0.95" if batch == 1 else ">= 0.90"
        rows.append(timing.realised(case, variant, times, plain_macs(network) / macs, target))
    return rows


def plain_macs(network: Network) -> int:
    return network.recipe.source.macs


def pruned(batch: int, layout: str, rounds: int) -> list[timing.Row]:
    network = gated(resnet(layout), "ind", layout)
    gone = [name for name, site in network.sites.items() if site.kind == "block"][::2]
    with torch.no_grad():
        for site in gone:
            network.site_gates[site].logits.copy_(torch.tensor([[4.0, 0.1]]))
    smaller, by_hand = gatecli.prune(network).network, without_blocks(layout, gone)
    x = torch.randn(batch, 3, 224, 224).to(memory_format=FORMATS[layout])
    with torch.inference_mode():
        torch.testing.assert_close(smaller(x), by_hand(x))
        times = timing.interleaved(
            {"by hand": lambda: by_hand(x), "pruned": lambda: smaller(x)}, rounds
        )
    case = f"pruned, batch {batch}, {layout}"
    return [
        timing.row(case, "by hand", times),
        timing.compared(case, "pruned", times, "by hand", "<= 1.01"),
    ]


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    found = []
    for batch, rounds in ((1, 5),) if asked.quick else ((1, 25), (8, 7), (32, 4)):
        for layout in FORMATS:
            found += skipping(batch, layout, rounds)
            if batch < 32:
                found += pruned(batch, layout, 2 * rounds)
    return found


if __name__ == "__main__":
    timing.main(
        __doc__, "ResNet-50 at 224, half of the decisions 0: realised / ideal speed-up", rows
    )
