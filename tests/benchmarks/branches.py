"""What it costs to let branches read different sums.

A training step and an evaluation of a ResNeXt, over those of the plain one, and the memory of a
step.

`C` branches, `K` read by each; K = C is one stream. Memory: what autograd keeps of a step for its
backward pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet

import gatecli

SIZE, BATCH = (32, 32), 8


def plain_network(branches: int) -> nn.Module:
    torch.manual_seed(0)
    return resnet.ResNet(
        resnet.Bottleneck,
        [2, 2, 2, 2],
        num_classes=10,
        groups=branches,
        width_per_group=64 // branches * 2,
    )


def step(network: nn.Module, x: Tensor) -> None:
    loss: Any = F.cross_entropy(network(x), torch.arange(BATCH) % 10)
    loss.backward()


def kept(network: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that autograd keeps of one forward pass, parameters left out."""
    seen: dict[int, int] = {}
    own = {parameter.data_ptr() for parameter in network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(network(x), torch.arange(BATCH) % 10)
        total = sum(seen.values())
    del loss
    return total


def of(branches: int, fan_ins: list[int], rounds: int) -> list[timing.Row]:
    plain, images = (
        plain_network(branches),
        torch.randn(32, 3, *SIZE, generator=torch.Generator().manual_seed(1)),
    )
    networks = {
        f"K = {fan_in}": (
            gatecli.attach(plain, "gateconnect", input_size=SIZE, fan_in=fan_in).network
        )
        for fan_in in fan_ins
    }
    found = []
    for case, batch, training in (
        ("training step", BATCH, True),
        *(("evaluation", batch, False) for batch in (1, 8, 32)),
    ):
        x = images[:batch]
        variants: dict[str, Callable[[], Any]] = {}
        for name, network in {"plain": plain, **networks}.items():
            network.train(training)
            variants[name] = (
                partial(step, network, x) if training else partial(_evaluate, network, x)
            )
        times = timing.interleaved(variants, rounds, warmup=1)
        memory = (
            {name: kept(network, x) for name, network in {"plain": plain, **networks}.items()}
            if training
            else {}
        )
        title = f"{case}, batch {batch}, C = {branches}"
        found.append(
            timing.row(
                title, "plain", times, note=f"{memory['plain'] / 2**20:.0f} MiB" if memory else ""
            )
        )
        for name in networks:
            macs = f"MACs {networks[name].macs_dense / networks[name].recipe.source.macs:.2f}"
            note = f"{macs}, memory {memory[name] / memory['plain']:.2f}" if memory else macs
            found.append(
                timing.row(title, name, times, timing.ratio(times, name, "plain"), note=note)
            )
    return found


def _evaluate(network: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        network(x)


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    found = []
    for branches, fan_ins in (
        ((4, [4, 2, 1]),) if asked.quick else ((4, [4, 2, 1]), (8, [8, 4, 1]), (16, [16, 8, 1]))
    ):
        found += of(branches, fan_ins, 3 if asked.quick else 5)
    return found


if __name__ == "__main__":
    timing.main(__doc__, "ResNeXts of eight modules at 32x32: over the plain network", rows)
