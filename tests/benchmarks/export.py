"""Exported networks in ONNX Runtime.

How much of the promised speed-up comes true, one image at a time, one thread.

    realised / ideal = (plain file's time / gated file's time) / (plain MACs / expected MACs of
    exactly these decisions, gates or exits included)

ResNet-50 at 224 with AIG's gates, every one computing its decision in the timed call: `all open`
(the ratio is the plain file's time over this one's), `half closed` (every other block), `none
open`. Exits: d-gates after three stages, who leaves given by the threshold; shares as in exits.py.
`by hand`: torchvision's
network without the closed blocks, exported as it is: what is left at most. `plain`: the source
exported by gatecli; `torchvision`: by torch.onnx.export itself.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
import torchvision
from skipping import without_blocks
from torch import Tensor, nn

import gatecli
from gatecli.exporting.export import export
from gatecli.exporting.onnx.run import session_of
from gatecli.network import Network
from gatecli.network.costs import expected_macs

SHARES = (0.25, 0.25, 0.25, 0.25)


def source(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(torchvision.models, name)().eval()


def decided(network: Network, open_: list[bool]) -> Network:
    """Gates that compute as ever and then decide as given: their last bias outweighs the rest."""
    twin = network.copy()
    with torch.no_grad():
        for gate, flag in zip(twin.site_gates.values(), open_, strict=True):
            gate.decide.bias.copy_(torch.tensor([-50.0, 50.0] if flag else [50.0, -50.0]))
    return twin


def leaving(network: Network, number: int) -> Network:
    """Exits of which one alone lets everybody leave; none, where there are not so many.

    The others are looked at all the same.
    """
    twin = network.copy()
    for place, exit_ in enumerate(twin.site_exits.values()):
        exit_.threshold.fill_(-1e30 if place == number else 1e30)
    return twin


def runner(folder: Path, name: str, network: Network, x: Tensor) -> Callable[[], Any]:
    done = export(network, folder / f"{name}.onnx", images=x)
    session, feed = session_of(done.out), {"images": x.numpy()}
    print(f"{name}: logits differ by {done.max_difference:.1e}", flush=True)
    return lambda: session.run(["logits"], feed)


def by_torchvision(folder: Path, model: nn.Module, x: Tensor) -> Callable[[], Any]:
    torch.onnx.export(
        model,
        (x,),
        folder / "torchvision.onnx",
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    session, feed = session_of(folder / "torchvision.onnx"), {"images": x.numpy()}
    return lambda: session.run(["logits"], feed)


def gates(folder: Path, rounds: int) -> list[timing.Row]:
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    model = source("resnet50")
    network = gatecli.attach(model, "aig-perbatch").network
    count, sites = len(network.site_gates), list(network.site_gates)
    cases = {
        "all open": [True] * count,
        "half closed": [index % 2 == 1 for index in range(count)],
        "none open": [False] * count,
    }
    plain = gatecli.prune(
        network, rates={site: [1.0] for site in sites}
    ).network  # the source, read by gatecli
    hand = gatecli.prune(
        network,
        rates={site: [float(flag)] for site, flag in zip(sites, cases["half closed"], strict=True)},
    ).network
    assert torch.allclose(hand(x), without_blocks("NCHW", sites[::2])(x), atol=1e-4)
    runs = {
        "plain": runner(folder, "plain", plain, x),
        "torchvision": by_torchvision(folder, model, x),
        "by hand, half closed": runner(folder, "by hand", hand, x),
    }
    for name, open_ in cases.items():
        runs[name] = runner(folder, name, decided(network, open_), x)
    times = timing.interleaved(runs, rounds, warmup=3)
    source_macs = network.recipe.source.macs
    ideals = {
        name: (
            source_macs
            / expected_macs(
                network, {site: [float(flag)] for site, flag in zip(sites, open_, strict=True)}
            )
        )
        for name, open_ in cases.items()
    }
    case = "ResNet-50, AIG"
    return [
        timing.row(case, "plain", times),
        timing.compared(case, "torchvision", times, "plain"),
        timing.row(case, "all open", times, timing.ratio(times, "plain", "all open"), ">= 0.95"),
        timing.realised(case, "half closed", times, ideals["half closed"], ">= 0.92"),
        timing.realised(case, "by hand, half closed", times, source_macs / hand.macs_dense),
        timing.realised(case, "none open", times, ideals["none open"], ">= 0.80"),
    ]


def exits(folder: Path, rounds: int) -> list[timing.Row]:
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    model = source("resnet50")
    network = gatecli.attach(model, "dgate").network
    sites = list(network.site_exits)
    runs = {"plain": runner(folder, "plain again", Network(model, network.recipe).eval(), x)}
    for number in range(len(sites) + 1):
        runs[str(number)] = runner(folder, f"leave {number}", leaving(network, number), x)
    times = timing.interleaved(runs, rounds, warmup=3)
    times["25/25/25/25"] = [
        sum(share * times[str(number)][turn] for number, share in enumerate(SHARES))
        for turn in range(rounds)
    ]
    times["nobody leaves"] = times[str(len(sites))]
    ideal = network.recipe.source.macs / expected_macs(
        network, {site: [share] for site, share in zip(sites, SHARES, strict=False)}
    )
    case = "ResNet-50, exits"
    return [
        timing.row(case, "plain", times),
        timing.realised(case, "25/25/25/25", times, ideal, ">= 0.92"),
        timing.compared(case, "nobody leaves", times, "plain"),
    ]


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    rounds = 3 if asked.quick else 25
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        return gates(Path(name), rounds) + exits(Path(name), rounds)


if __name__ == "__main__":
    timing.main(
        __doc__,
        "Exported to ONNX: ONNX Runtime, batch 1, at 224",
        rows,
        onnxruntime=timing.needs("onnxruntime").__version__,
    )
