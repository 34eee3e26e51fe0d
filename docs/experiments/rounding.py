"""How quick a network is in ONNX Runtime that has lost half of its filters, by what they are
rounded to, and by whether those that share an addition go together: closed at random, one image,
one thread, CPU time.

PYTHONPATH=tests/benchmarks python docs/experiments/rounding.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timing
import torch

import gatecli
from gatecli.architectures.build import build
from gatecli.network import Network
from gatecli.runtimes import registry
from gatecli.runtimes.base import Order

SIZES = {"torchvision:resnet18": 224, "cifar:resnet20": 16}
ROUNDS = {"torchvision:resnet18": 20, "cifar:resnet20": 400}
ROUND_TO = (1, 8, 16)
CLOSED = -4.0  # a logit


def main() -> None:
    timing.one_thread()
    print("| network | coupled | rounded to | MACs | ms | of the source's |")
    print("|---|---|---|---|---|---|")
    for arch in SIZES:
        for coupled in ("no", "yes"):
            report(arch, coupled)


def report(arch: str, coupled: str) -> None:
    """Print the rows of one network."""
    size = SIZES[arch]
    torch.manual_seed(0)
    model = build(arch, {}).eval()
    how: dict[str, Any] = {"input_size": (size, size), "arch": arch, "coupled": coupled}
    network = gatecli.attach(model, "ind-perbatch", kinds=["filter"], **how).network
    close_half(network)
    cut = {each: gatecli.prune(network, round_to=each).network for each in ROUND_TO}
    x = torch.randn(1, 3, size, size)
    calls = {"source": call(model, network, x)}
    calls |= {str(each): call(cut[each], network, x) for each in ROUND_TO}
    with torch.inference_mode():
        times = timing.interleaved(calls, ROUNDS[arch], seconds=timing.process_seconds)
    for each in ROUND_TO:
        macs = cut[each].macs_dense / network.recipe.source.macs
        ms = min(times[str(each)]) * 1e3
        share = 1 / timing.ratio(times, "source", str(each))
        print(f"| {arch} at {size} | {coupled} | {each} | {macs:.3f} | {ms:.3f} | {share:.2f} |")


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
