"""Hidden units of vit_b_16 at 224, a random half of them closed, single images.

`by hand`: the plain network with the closed rows and columns cut out of its tensors. `pruned`: what
gatecli prune makes of the same decisions; its logits are those by hand, and its MACs those of a
count that adds up every product that runs. `gated`: the network whose gates decide so at run time.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import gatecli
from gatecli.network import Network


def gated() -> tuple[nn.Module, Network, dict[str, list[int]]]:
    """The plain network, its gated copy, and the decisions that the gates have made."""
    torch.manual_seed(0)
    model = torchvision.models.vit_b_16().eval()
    nn.init.normal_(model.heads.head.weight, std=0.02)  # it begins as zeros, as would all logits
    network = gatecli.attach(model, "ind-perbatch", kinds=["hidden"]).network
    decisions = {}
    for site, gate in network.site_gates.items():
        z = torch.rand(gate.units).argsort() < gate.units // 2
        decisions[site] = z.int().tolist()
        with torch.no_grad():
            gate.logits.copy_(torch.stack([~z, z], 1).float() * 8)  # type: ignore[operator]
    return model, network, decisions


def by_hand(model: nn.Module, decisions: dict[str, list[int]]) -> nn.Module:
    for site, units in decisions.items():
        mlp: Any = model.get_submodule(site.removesuffix(".0.hidden"))
        kept = torch.tensor(units).nonzero().flatten()
        with torch.no_grad():
            first, last = nn.Linear(768, len(kept)), nn.Linear(len(kept), 768)
            first.weight.copy_(mlp[0].weight[kept])
            first.bias.copy_(mlp[0].bias[kept])
            last.weight.copy_(mlp[3].weight[:, kept])
            last.bias.copy_(mlp[3].bias)
        mlp[0], mlp[3] = first, last
    return model.eval()


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    from counting import counted

    model, network, decisions = gated()
    smaller = gatecli.prune(network).network.eval()
    x, case = torch.randn(1, 3, 224, 224), "vit_b_16, batch 1, half closed"
    plain = torchvision.models.vit_b_16().eval()
    hand = by_hand(model, decisions)
    with torch.no_grad():
        difference = (hand(x) - smaller(x)).abs().max() / hand(x).abs().max()
        with counted() as macs:
            hand(x)
    if difference > 1e-5 or macs.total != smaller.macs_dense:
        raise SystemExit(f"not the same: {difference:.1e}, {macs.total} and {smaller.macs_dense}")
    variants = {"plain": partial(plain, x), "by hand": partial(hand, x)}
    variants |= {"pruned": partial(smaller, x), "gated": partial(network, x)}
    with torch.inference_mode():
        times = timing.interleaved(variants, 3 if asked.quick else 15, warmup=1)
    print(f"logits differ by {difference:.1e}, MACs {macs.total} both")
    return [
        timing.row(case, "plain", times),
        timing.compared(case, "by hand", times, "plain"),
        timing.compared(case, "pruned", times, "by hand", "<= 1.02"),
        timing.compared(case, "gated", times, "by hand"),
    ]


if __name__ == "__main__":
    timing.main(__doc__, "Hidden units: pruned and gated over the network cut by hand", rows)
