"""Attention heads cut out of torchvision's ViT-B/16 at 224, beside the same network made by hand.

A random half of each layer's heads is closed. `pruned` is what gatecli prune makes of it; `by hand`
has attentions of that many heads, written for the purpose, with the same rows and columns of the
weights; their logits are compared first, and the MACs with a count by the layers' sizes. `skipped`
decides at run time, `open` is the network as attached.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any

import timing
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli

SIDE, PATCH = 224, 16


class Attention(nn.Module):
    """Some heads of nn.MultiheadAttention, as one would write them."""

    def __init__(self, whole: Any, heads: list[int]) -> None:
        super().__init__()
        each, width = whole.head_dim, whole.embed_dim
        rows = torch.cat([torch.arange(head * each, (head + 1) * each) for head in heads])
        places = torch.cat([rows + part * width for part in range(3)])
        self.heads = len(heads)
        self.qkv = nn.Linear(width, len(places))
        self.out = nn.Linear(len(rows), width)
        with torch.no_grad():
            self.qkv.weight.copy_(whole.in_proj_weight[places])
            self.qkv.bias.copy_(whole.in_proj_bias[places])
            self.out.weight.copy_(whole.out_proj.weight[:, rows])
            self.out.bias.copy_(whole.out_proj.bias)

    def forward(self, x: Tensor, *_: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        n, length, _ = x.shape  # type: ignore[assignment]
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[call-overload]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, length, -1)), None  # type: ignore[call-overload]


def halves(model: Any) -> list[list[int]]:
    """The heads of each layer that stay, drawn."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for layer in model.encoder.layers:
        count = layer.self_attention.num_heads
        found.append(sorted(torch.randperm(count, generator=draw)[: count // 2].tolist()))
    return found


def by_hand(model: nn.Module, kept: list[list[int]]) -> nn.Module:
    smaller: Any = copy.deepcopy(model)
    for layer, heads in zip(smaller.encoder.layers, kept, strict=True):
        layer.self_attention = Attention(layer.self_attention, heads)
    return smaller.eval()


def slow_count(model: Any, kept: list[list[int]]) -> int:
    """MACs of the network with these heads, by the sizes of its layers."""
    tokens, width = (SIDE // PATCH) ** 2 + 1, model.hidden_dim
    total = (tokens - 1) * 3 * PATCH**2 * width + width * model.heads.head.out_features
    for heads in kept:
        inner = len(heads) * width // model.encoder.layers[0].num_heads
        total += 4 * tokens * width * inner + 2 * tokens**2 * inner
        total += 2 * tokens * width * model.encoder.layers[0].mlp[0].out_features
    return int(total)


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    torch.manual_seed(0)
    model: Any = torchvision.models.vit_b_16().eval()
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts it at zero
    kept, x = halves(model), torch.randn(1, 3, SIDE, SIDE)
    hand = by_hand(model, kept)
    attached = gatecli.attach(copy.deepcopy(model), "ind-perbatch", kinds=["head"]).network
    skipped = attached.copy()
    for gate, heads in zip(skipped.site_gates.values(), kept, strict=True):
        on = torch.zeros(gate.units).index_fill_(0, torch.tensor(heads), 8.0)
        gate.logits.data.copy_(torch.stack([4 - on, on - 4], 1))  # type: ignore[union-attr,operator]
    pruned = gatecli.prune(skipped).network
    if pruned.macs_dense != slow_count(model, kept):
        raise AssertionError(f"{pruned.macs_dense} MACs, {slow_count(model, kept)} by the sizes")
    with torch.inference_mode():
        torch.testing.assert_close(pruned(x), hand(x), atol=1e-5, rtol=1e-5)
        variants = {
            "plain": partial(model, x),
            "open": partial(attached, x),
            "skipped": partial(skipped, x),
            "by hand": partial(hand, x),
            "pruned": partial(pruned, x),
        }
        times = timing.interleaved(variants, 5 if asked.quick else 25, warmup=2)
    case = f"ViT-B/16, {pruned.macs_dense:,} of {attached.recipe.source.macs:,} MACs"
    return [
        timing.row(case, "plain", times),
        timing.compared(case, "open", times, "plain"),
        timing.compared(case, "by hand", times, "plain"),
        timing.compared(case, "skipped", times, "by hand"),
        timing.compared(case, "pruned", times, "by hand", "<= 1.02"),
    ]


if __name__ == "__main__":
    timing.main(__doc__, "Attention heads, half of them cut: pruned over by hand", rows)
