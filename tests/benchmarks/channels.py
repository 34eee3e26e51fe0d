"""Channel gating: how much of the promised speed-up comes true, ResNet-18 at 224.

And whether gathering positions could make `fine` pay.

    realised / ideal = (plain time / gated time) / (plain MACs / expected MACs of exactly these
    decisions, gates included)

Half, or three quarters, of what each gate decides on is closed, drawn at random; gates compute in
the timed call, and are then overruled. `pruned`: the same decisions made for good by gatecli prune,
which is what is left to gain. `open`: a network as attached, over the plain one. In a batch every
image decides for itself, and what any of them opens is computed.

`fine` decides for single activations. Two ways to compute only the open ones of a 3x3 convolution
(base path left out), over the time of torch's dense convolution: `positions` multiplies im2col's
rows of the positions where any channel is open, `activations` one row of im2col with one kernel for
each open activation.
`clustered`: all channels of a position are open, or none, the best case for both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import timing
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

import gatecli
from gatecli.network import Network
from gatecli.network.costs import expected_macs

GATES = {"coarse": {}, "fc": {}, "l1": {}, "coarse, groups": {"grouping": "yes"}}


def gated(model: torch.nn.Module, name: str) -> Network:
    return gatecli.attach(
        model, "cgnet", gate=name.partition(",")[0], eta="1/8", **GATES[name]
    ).network


def decide(network: Network, open_: float, batch: int) -> dict[str, list[float]]:
    """Let gates that have left their neutral start compute as ever, and then decide as drawn, for
    each image by itself; returns the rates.
    """
    draw, drawn = torch.Generator().manual_seed(1), {}
    for site, gate in network.site_gates.items():
        z = (torch.rand(batch, gate.units, generator=draw).argsort(1) < open_ * gate.units).float()
        gate.neutral.fill_(False)  # type: ignore[operator]
        gate.log_odds = timing.overruled(gate.log_odds, z * 2 - 1)  # type: ignore[method-assign]
        drawn[site] = z.mean(0).tolist()
    return drawn


def networks(batch: int, names: Iterable[str], rounds: int) -> list[timing.Row]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    x, case = torch.randn(batch, 3, 224, 224), f"ResNet-18, batch {batch}"
    variants: dict[str, Callable[[], Any]] = {"plain": partial(model, x)}
    ideals: dict[str, float] = {}
    for name in names:
        attached = gated(model, name)
        source = attached.recipe.source.macs
        variants[f"{name}, open"] = partial(attached, x)
        for closed in (0.5, 0.75):
            network = attached.copy()
            drawn, label = decide(network, 1 - closed, batch), f"{name}, {closed:.0%} closed"
            variants[label], ideals[label] = (
                partial(network, x),
                source / expected_macs(network, drawn),
            )
            if batch == 1:  # with images that decide differently there is nothing to prune
                smaller = gatecli.prune(attached, rates=drawn, static=0.5).network
                variants[f"{label}, pruned"], ideals[f"{label}, pruned"] = (
                    partial(smaller, x),
                    source / smaller.macs_dense,
                )
    with torch.inference_mode():
        times = timing.interleaved(variants, rounds, warmup=1)
    rows = [timing.row(case, "plain", times)]
    for name in list(variants)[1:]:
        if name in ideals:
            rows.append(timing.realised(case, name, times, ideals[name]))
        else:
            rows.append(timing.compared(case, name, times, "plain", "<= 1.02"))
    return rows


def by_position(x: Tensor, weight: Tensor, open_: Tensor) -> Tensor:
    """The sums (1, Co, H, W) of a 3x3 convolution where open_ (Co, H * W), computed for positions
    where any channel is open; others are 0.
    """
    out = x.new_zeros(open_.shape)
    places = open_.any(0).nonzero().reshape(-1)
    out[:, places] = weight.flatten(1) @ _columns(x, places)
    return (out * open_).reshape(1, -1, *x.shape[2:])


def by_activation(x: Tensor, weight: Tensor, open_: Tensor) -> Tensor:
    """The same, computed for each open activation alone."""
    out = x.new_zeros(open_.shape)
    channels, places = open_.nonzero(as_tuple=True)
    used, which = places.unique(return_inverse=True)
    rows = _columns(x, used).T.contiguous()
    out[channels, places] = (rows[which] * weight.flatten(1)[channels]).sum(1)
    return out.reshape(1, -1, *x.shape[2:])


def _columns(x: Tensor, places: Tensor) -> Tensor:
    """im2col's columns at some positions: (Ci * 9, k)."""
    channels, width = x.shape[1], x.shape[3]
    padded = F.pad(x, (1, 1, 1, 1)).reshape(channels, -1)
    offsets = torch.tensor([row * (width + 2) + column for row in range(3) for column in range(3)])
    index = (places // width) * (width + 2) + places % width
    return padded[:, (offsets[:, None] + index[None]).reshape(-1)].reshape(channels * 9, -1)


def activations(rounds: int) -> list[timing.Row]:
    rows = []
    for channels, side in ((64, 56), (256, 14)):
        draw = torch.Generator().manual_seed(0)
        inputs = channels * 7 // 8
        x, weight = (
            torch.randn(1, inputs, side, side, generator=draw),
            torch.randn(channels, inputs, 3, 3, generator=draw),
        )
        for density in (0.2, 0.05, 0.01):
            for how in ("random", "clustered"):
                open_ = (
                    torch.rand(
                        channels if how == "random" else 1, side * side, generator=draw
                    ).expand(channels, -1)
                    < density
                )
                dense = partial(F.conv2d, x, weight, None, 1, 1)
                variants: dict[str, Callable[[], Any]] = {
                    "dense": dense,
                    "positions": partial(by_position, x, weight, open_),
                    "activations": partial(by_activation, x, weight, open_),
                }
                expected = dense() * open_.reshape(1, channels, side, side)
                for name in ("positions", "activations"):
                    torch.testing.assert_close(variants[name](), expected, atol=1e-3, rtol=1e-3)
                with torch.inference_mode():
                    times = timing.interleaved(variants, rounds)
                case = f"{channels} channels, {side}x{side}, {density:.0%} open, {how}"
                rows += [
                    timing.row(case, "dense", times),
                    *(
                        timing.compared(case, name, times, "dense")
                        for name in ("positions", "activations")
                    ),
                ]
    return rows


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    found = networks(1, GATES, 3 if asked.quick else 9)
    for batch in () if asked.quick else (8, 32):
        found += networks(batch, ("coarse",), 5)
    return found + activations(3 if asked.quick else 5)


if __name__ == "__main__":
    timing.main(
        __doc__, "Channel gating: realised / ideal speed-up; `fine` by gathering, over dense", rows
    )
