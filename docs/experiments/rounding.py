"""How quick a network is in ONNX Runtime that has lost half of its filters or hidden units, by what
they are rounded to, and by whether filters that share an addition go together: closed at random,
one image, one thread, CPU time.

PYTHONPATH=tests/benchmarks python docs/experiments/rounding.py
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import timing
import torch

import gatecli
from gatecli.architectures.build import build
from gatecli.network import Network
from gatecli.runtimes import registry
from gatecli.runtimes.base import Order

ROUND_TO = (1, 4, 8, 16)
CLOSED = -4.0  # a logit


class Case(NamedTuple):
    """A network, its images' side, how often it is timed, and what is gated how."""

    arch: str
    side: int
    rounds: int
    kind: str = "filter"
    settings: Mapping[str, str] = {}

    @property
    def gated(self) -> str:
        """What is gated, for the table."""
        return f"{self.kind}, coupled" if self.settings else self.kind


COUPLED = {"coupled": "yes"}
CASES = (
    Case("torchvision:resnet18", 224, 20),
    Case("torchvision:resnet18", 224, 20, settings=COUPLED),
    Case("cifar:resnet20", 16, 400),
    Case("cifar:resnet20", 16, 400, settings=COUPLED),
    Case("torchvision:mobilenet_v2", 224, 20, "hidden"),
    Case("torchvision:vit_b_32", 224, 20, "hidden"),
)


def main() -> None:
    timing.one_thread()
    print("| network | gated | `prune --round-to` | MACs left | ms | of the source's |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        report(case)


def report(case: Case) -> None:
    """Print the rows of one network."""
    size = (case.side, case.side)
    torch.manual_seed(0)
    model = build(case.arch, {}).eval()
    how: dict[str, Any] = {"input_size": size, "arch": case.arch, **case.settings}
    network = gatecli.attach(model, "ind-perbatch", kinds=[case.kind], **how).network
    close_half(network)
    cut = {each: gatecli.prune(network, round_to=each).network for each in ROUND_TO}
    x = torch.randn(1, 3, *size)
    calls = {"source": call(model, network, x)}
    calls |= {str(each): call(cut[each], network, x) for each in ROUND_TO}
    with torch.inference_mode():
        times = timing.interleaved(calls, case.rounds, seconds=timing.process_seconds)
    for each in ROUND_TO:
        macs = cut[each].macs_dense / network.recipe.source.macs
        ms = min(times[str(each)]) * 1e3
        share = 1 / timing.ratio(times, "source", str(each))
        named = f"{case.arch} at {case.side}"
        print(f"| {named} | {case.gated} | {each} | {macs:.3f} | {ms:.3f} | {share:.2f} |")


def close_half(network: Network) -> None:
    """Let half of the filters be off for good."""
    draw = torch.Generator().manual_seed(1)
    for gate in network.site_gates.values():
        closed = torch.rand(gate.units, generator=draw) > 0.5
        with torch.no_grad():
            gate.get_parameter("logits")[closed, 1] = CLOSED


def call(model: Any, network: Network, x: torch.Tensor) -> Any:
    """A network in ONNX Runtime, ready to be called."""
    order = Order(model=model, recipe=network.recipe)
    prepared = registry.get("onnxruntime").prepare(order)
    return partial(prepared.call, prepared.feed(x))


if __name__ == "__main__":
    main()
