"""How much of what closed filters promise comes true.

ResNet-50 at 224, half of the gated filters closed, drawn at random.

    realised / ideal = (plain time / gated time) / (plain MACs / expected MACs of exactly these
    decisions)

`last`: the last convolution of each bottleneck, as gaternet gates residual networks; `all`: every
convolution of the bottlenecks (--set where=layer?.*.conv?).
`given`: decisions cost nothing (the gater is replaced by zeros, and overruled); `gater`: a
ResNet-18 looks at the image in the timed call, and is then overruled; its MACs count. `mask`: the
same given decisions, every filter computed and multiplied, as in training. `pruned`: the closed
filters removed by gatecli; `by hand`: torchvision's network with the same convolutions cut, their
values added where they belong. In a batch every image has a half of its own, and what any of them
opens is computed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
from skipping import FORMATS, resnet
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

import gatecli
from gatecli.network import Network
from gatecli.network.costs import expected_macs

POLICIES: dict[str, dict[str, Any]] = {"last": {}, "all": {"where": "layer?.*.conv?"}}


class Nothing(nn.Module):
    """A gater that costs nothing: (N, C, H, W) -> zeros (N, c)."""

    def __init__(self, gates: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(1, gates))

    def forward(self, x: Tensor) -> Tensor:
        return self.zeros.expand(len(x), -1)


class Short(nn.Module):
    """A bottleneck that has lost filters of its last convolution, by hand.

    The others are added where they belong.
    """

    def __init__(self, block: Bottleneck, kept: Tensor) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("kept", kept)
        conv, norm = block.conv3, block.bn3
        block.conv3 = nn.Conv2d(conv.in_channels, len(kept), 1, bias=False)
        block.conv3.weight.data = conv.weight.data[kept].contiguous(
            memory_format=(
                torch.channels_last
                if conv.weight.is_contiguous(memory_format=torch.channels_last)
                else torch.contiguous_format
            )
        )
        block.bn3 = nn.BatchNorm2d(len(kept)).eval()
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(block.bn3, name).data = getattr(norm, name).data[kept]

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        out = F.relu_(block.bn1(block.conv1(x)))
        out = F.relu_(block.bn2(block.conv2(out)))
        shortcut = x if block.downsample is None else block.downsample(x)
        value = block.bn3(block.conv3(out))
        if value.is_contiguous():
            return torch.index_add(shortcut, 1, self.kept, value).relu_()
        return (
            torch.index_add(shortcut.permute(0, 2, 3, 1), 3, self.kept, value.permute(0, 2, 3, 1))
            .permute(0, 3, 1, 2)
            .relu_()
        )


def half(network: Network, batch: int = 1) -> dict[str, Tensor]:
    """Half of each site's filters for each image, (batch, units), the same every time."""
    draw = torch.Generator().manual_seed(1)
    return {
        site: torch.stack(
            [
                (torch.randperm(gate.units, generator=draw) < gate.units // 2).float()
                for _ in range(batch)
            ]
        )
        for site, gate in network.site_gates.items()
    }


def shares(z: dict[str, Tensor]) -> dict[str, list[float]]:
    return {site: units.mean(0).tolist() for site, units in z.items()}


def together(policy: str, batch: int, rounds: int) -> list[timing.Row]:
    """A batch whose images decide one by one."""
    model, x = (
        resnet("NCHW"),
        torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(2)),
    )
    network = gatecli.attach(model, "gaternet", bottleneck=256, **POLICIES[policy]).network
    z, own = half(network, batch), gater_macs(network)
    given = without_gater(network)
    macs = expected_macs(network, shares(z))
    variants = {
        "plain": partial(model, x),
        "given, half closed": partial(force(given, z), x),
        "gater, half closed": partial(force(network, z), x),
    }
    with torch.inference_mode():
        times = timing.interleaved(variants, rounds, warmup=1)
    case = f"{policy}, batch {batch}, NCHW"
    return [
        timing.row(case, "plain", times),
        *(
            timing.realised(case, variant, times, network.recipe.source.macs / cost)
            for variant, cost in (("given, half closed", macs - own), ("gater, half closed", macs))
        ),
    ]


def without_gater(network: Network) -> Network:
    given = network.copy()
    given.set_submodule("gater", Nothing(sum(gate.units for gate in network.site_gates.values())))
    return given


def gater_macs(network: Network) -> int:
    return network.costs[
        next(node.name for node in network.graph.nodes if node.target == "gater")
    ].macs


def force(network: Network, decisions: dict[str, Tensor]) -> Network:
    for site, gate in network.site_gates.items():
        gate.forced = decisions[site]
    return network


def skipping(policy: str, layout: str, rounds: int) -> list[timing.Row]:
    model, x = (
        resnet(layout),
        torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2)).to(
            memory_format=FORMATS[layout]
        ),
    )
    seen = gatecli.attach(model, "gaternet", bottleneck=256, **POLICIES[policy]).network.to(
        memory_format=FORMATS[layout]
    )
    given, z = without_gater(seen), half(seen)
    every = {site: torch.ones_like(units) for site, units in z.items()}
    networks = {
        "given, half closed": force(given.copy(), z),
        "gater, half closed": force(seen, z),
        "given, all open": force(given.copy(), every),
    }
    smaller = gatecli.prune(seen, rates=shares(z)).network
    variants: dict[str, Callable[[], Any]] = {
        "plain": partial(model, x),
        **{name: partial(network, x) for name, network in networks.items()},
    }
    mask = force(given.copy(), z)
    variants |= {
        "mask only, half closed": lambda: mask._masked(mask, x),
        "pruned": partial(smaller, x),
    }
    if policy == "last":
        variants["by hand"] = partial(by_hand(layout, z), x)
    with torch.inference_mode():
        if policy == "last":
            torch.testing.assert_close(variants["pruned"](), variants["by hand"]())
        times = timing.interleaved(variants, rounds, warmup=1)
    own, macs, plain = gater_macs(seen), expected_macs(seen, shares(z)), seen.recipe.source.macs
    case = f"{policy}, batch 1, {layout}"
    rows = [
        timing.row(case, "plain", times),
        timing.compared(case, "given, all open", times, "plain"),
    ]
    for variant, cost in {
        "given, half closed": macs - own,
        "gater, half closed": macs,
        "mask only, half closed": macs - own,
        "pruned": smaller.macs_dense,
    }.items():
        rows.append(
            timing.realised(
                case, variant, times, plain / cost, "" if variant.startswith("mask") else ">= 0.8"
            )
        )
    if policy == "last":
        rows += [
            timing.row(case, "by hand", times),
            timing.compared(
                case,
                "pruned, over by hand",
                {**times, "pruned, over by hand": times["pruned"]},
                "by hand",
                "<= 1.02",
            ),
        ]
    return rows


def by_hand(layout: str, z: dict[str, Tensor]) -> nn.Module:
    model = resnet(layout)
    for site, units in z.items():
        name = site.removesuffix(".conv3.filters")
        block = model.get_submodule(name)
        assert isinstance(block, Bottleneck)
        model.set_submodule(name, Short(block, units[0].nonzero().reshape(-1)))
    return model


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    found = []
    for policy in POLICIES:
        for layout in FORMATS:
            found += skipping(policy, layout, 3 if asked.quick else 10)
        for batch, rounds in () if asked.quick else ((8, 7), (32, 3)):
            found += together(policy, batch, rounds)
    return found


if __name__ == "__main__":
    timing.main(
        __doc__,
        "ResNet-50 at 224, half of the gated filters closed: realised / ideal speed-up",
        rows,
    )
