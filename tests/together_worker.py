"""Small trainings of every method, the same in one process and in one of several.

All is computed in float64: in float32 a network's BatchNorms may magnify the rounding of sums until
nothing can be told from it (docs/scale.md).

As a program, started by torchrun: train them all together, and leave what came of it in a folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from commandline import SIDE
from torch import nn

import gatecli
from gatecli import together
from gatecli.architectures.build import build
from gatecli.architectures.cifar import CifarResNet
from gatecli.data import delivery
from gatecli.data.prepare import normalised
from gatecli.training import TrainOptions, finetune, synced
from gatecli.training.loop import Loop

PRICED = "aig-perbatch, priced"  # blocks and filters within them, whose rate is a share of MACs
RECIPE = "ind-perbatch, recipe"  # all that several batches to a step and its end have to agree on
MIXED = "ind-perbatch, mixed"
MORE: dict[str, dict[str, Any]] = {
    RECIPE: {"optimizer": "adamw", "accumulate": 3, "clip_grad": 0.5, "ema": 0.5, "lr": 0.002},
    MIXED: {"mixup": 0.4, "cutmix": 1.0},
}
METHODS = (
    "aig-perbatch",
    PRICED,
    "ind-pergate",
    "cgnet",
    "gateconnect",
    "early-exit",
    "dgate",
    RECIPE,
    MIXED,
)
SENT = ("aig-perbatch", "gaternet", "early-exit")
BATCH = 31  # so that two processes have unequal parts
STEPS = 3


def _network(method: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if method == "gateconnect":
            return build("cifar:resnext20_8x4d", {})
        return CifarResNet(8)


@contextmanager
def in_double() -> Iterator[None]:
    """Compute in float64 inside the block, where gatecli asks for float32 too."""
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.object(delivery, "normalised", _normalised),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def _normalised(*given: Any) -> torch.Tensor:
    return normalised(*given).double()


@in_double()
def trained(method: str, data: Path, device: str = "cpu") -> dict[str, Any]:
    """What a training comes to: the tensors, and the figures that all of its parts gave."""
    torch.manual_seed(0)
    how = {"kinds": ("block", "filter"), "price": "macs"} if method == PRICED else {}
    name = method.partition(",")[0]
    network = gatecli.attach(_network(name), name, input_size=(SIDE, SIDE), **how).network
    network.to(device, torch.float64)
    images = gatecli.load_data(f"npz:{data}")
    gatecli.fit(network, images)
    usual: dict[str, Any] = {"epochs": 1, "lr": 0.02, "batch_size": BATCH, "bn_batches": 2}
    more = MORE.get(method, {})
    options = TrainOptions(sync_norms=True, augment="shift", **{**usual, **more})
    result = finetune(network, images, options)
    return {
        "tensors": {name: each.cpu() for name, each in network.state_dict().items()},
        "history": result.history,
        "top1": result.top1,
        "macs": result.macs_expected,
        "rates": result.rates,
        "exits": {site: vars(each) for site, each in result.exits.items()},
        "batchnorm": result.batchnorm,
    }


def gated(method: str) -> gatecli.Network:
    """A network with a method's gates as they come."""
    return gatecli.attach(_network(method), method, input_size=(SIDE, SIDE)).network


def sent(method: str, data: Path) -> list[list[int]]:
    """How many numbers each sum over the processes has, step by step, gradients left out."""
    network = gated(method)
    images = gatecli.load_data(f"npz:{data}")
    gatecli.fit(network, images)
    found: list[list[int]] = []
    real, step = dist.all_reduce, Loop._step

    def counted(numbers: torch.Tensor) -> None:
        found[-1].append(numbers.numel())
        real(numbers)

    def stepped(*given: Any) -> Any:
        found.append([])
        with mock.patch.object(dist, "all_reduce", counted):
            return step(*given)

    with mock.patch.object(Loop, "_step", stepped):
        finetune(network, images, TrainOptions(epochs=1, batch_size=BATCH, lr=0.01, bn_batches=0))
    return found


def normed() -> tuple[torch.Tensor, ...]:
    """What a synchronised BatchNorm gives for this process's part, and its gradients."""
    whole = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    x = whole[together.part(len(whole))].clone().requires_grad_()
    result, mean, variance, _ = synced.normalised(x, torch.tensor([1.0, 2.0, 3.0]), None, 1e-5)
    result.square().mul(x.detach()).sum().backward()
    assert x.grad is not None
    return result.detach(), mean, variance, x.grad


def main(data: str, out: str, kind: str = "cpu") -> None:
    """Train, as one of several processes, each on a device of its own of this kind."""
    device = kind if kind == "cpu" else f"{kind}:{os.environ['LOCAL_RANK']}"
    if kind == "cuda":
        torch.cuda.set_device(device)
    with together.joined(torch.device(device)):
        parts = together.gathered(normed())
        found: dict[str, Any] = {each: trained(each, Path(data), device) for each in METHODS}
        sums = {each: sent(each, Path(data)) for each in SENT} if kind == "cpu" else {}
        different = [
            name
            for name in METHODS
            if not _alike([each.values() for each in together.gathered(found[name]["tensors"])])
        ]
        if together.rank() == 0:
            more = {"normed": parts, "different": different, "sent": sums}
            torch.save({**found, **more}, out)


def _alike(everyone: list[Any]) -> bool:
    """Whether all processes have the same tensors, to the bit."""
    for tensors in zip(*everyone, strict=True):
        if not all(torch.equal(tensors[0], each) for each in tensors):
            return False
    return True


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
