"""What gates cost in training, and what recording them costs in evaluation.

`step`: forward, loss, backward and SGD of the gated network as `gatecli finetune` does it, over the
plain network's step.
`record`: an evaluation pass with an observer (`RateMeter`: sums, as validation uses it; `Record`:
all decisions kept) over one without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import timing
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli import methods
from gatecli.architectures.cifar import CifarResNet
from gatecli.gates.observe import RateMeter, Record, observe
from gatecli.network import Network

METHODS = ("ind-perbatch", "aig-perbatch")
CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # network, pixels, batch
    "ResNet-56 at 32, batch 64": (lambda: CifarResNet(56), 32, 64),
    "ResNet-50 at 96, batch 16": (lambda: torchvision.models.resnet50(num_classes=10), 96, 16),
}


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)


def plain_step(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    model.train()
    sgd = optimizer(model)

    def step(x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(model(x), y)
        sgd.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()

    return step


def gated_step(network: Network, name: str) -> Callable[[Tensor, Tensor], None]:
    network.train()
    sgd, method, record = optimizer(network), methods.get(name), Record()
    settings = method.about.settings()

    def step(x: Tensor, y: Tensor) -> None:
        record.clear()
        with observe(network, record):
            loss = F.cross_entropy(network(x), y)
        loss = loss + method.objective.loss(
            record.latest(), settings, method.objective.targets(settings, record.latest(), 0)
        )
        sgd.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()

    return step


def steps(case: str, rounds: int) -> list[timing.Row]:
    make, pixels, batch = CASES[case]
    torch.manual_seed(0)
    model = make()
    x, y = torch.randn(batch, 3, pixels, pixels), torch.randint(10, (batch,))
    gated = {
        name: gatecli.attach(model, name, input_size=(pixels, pixels)).network for name in METHODS
    }
    variants: dict[str, Callable[[], Any]] = {"plain": partial(plain_step(model), x, y)}
    variants |= {name: partial(gated_step(network, name), x, y) for name, network in gated.items()}
    times = timing.interleaved(variants, rounds)
    rows = [timing.row(f"step, {case}", "plain", times)]
    return rows + [
        timing.compared(f"step, {case}", name, times, "plain", "<= 1.10") for name in METHODS
    ]


def recording(case: str, rounds: int) -> list[timing.Row]:
    make, pixels, batch = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(batch, 3, pixels, pixels)
    rows = []
    for name in METHODS:
        network = gatecli.attach(make().eval(), name, input_size=(pixels, pixels)).network
        variants = {
            "not recorded": partial(network, x),
            "RateMeter": partial(_observed, network, x, RateMeter),
            "Record": partial(_observed, network, x, Record),
        }
        with torch.no_grad():
            times = timing.interleaved(variants, rounds)
        title = f"evaluation, {name}, {case}"
        rows.append(timing.row(title, "not recorded", times))
        rows += [
            timing.compared(title, variant, times, "not recorded", "<= 1.03")
            for variant in ("RateMeter", "Record")
        ]
    return rows


def _observed(network: Network, x: Tensor, observer: Callable[[], RateMeter | Record]) -> None:
    with observe(network, observer()):
        network(x)


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    found = []
    for case in list(CASES)[: 1 if asked.quick else 2]:
        found += steps(case, 5 if asked.quick else 15) + recording(case, 5 if asked.quick else 25)
    return found


if __name__ == "__main__":
    timing.main(__doc__, "Training and recording", rows)
