"""Beside other libraries: Torch-Pruning at equal MACs, and earlyon with the same exits, both as the
registry has them.

Torch-Pruning: half of a ResNet-50's blocks removed by gatecli, and channels cut from all its layers
until the MACs are the same (the ratio found by bisection; `multiples of 8`: its `round_to`, at the
MACs nearest to ours). realised / ideal = (plain time / time) / (plain MACs / MACs), counted the
same way. Random weights: what is compared is speed, size, and how the file is loaded, not which of
the two costs less accuracy.

earlyon: a CIFAR ResNet-20 trained on digits; both have the same heads, weights included, at the
same places, and leave at the same softmax probabilities (those that earlyon chooses for a point of
accuracy), so they decide alike. Its batches leave together, where the last of them is sure; `one by
one` is its way to let each image leave where it can.
`MACs at equal accuracy`: what each calibration spends on val, ours asked for at least the val top-1
that earlyon's ended with; the network's MACs, heads included, counted the same way.
"""

from __future__ import annotations

import argparse
import copy
import math
import pickle
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
from skipping import resnet
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

import gatecli
from gatecli.calibration.exits.gather import gather
from gatecli.calibration.exits.samples import Samples, measure
from gatecli.calibration.exits.search import search
from gatecli.data import DataSet, batches
from gatecli.graph.macs import count_nodes
from gatecli.network import Network
from gatecli.progress import silent
from gatecli.stages.demo import SIZE, train_source

PIXELS = (3, 224, 224)
DROPS = (0.0, 0.005, 0.01, 0.02)  # shares of val, as earlyon takes them


# Torch-Pruning: blocks against channels


def half_the_blocks(model: nn.Module) -> Network:
    attached = gatecli.attach(model, "aig-perbatch", arch="torchvision:resnet50").network
    return gatecli.prune(
        attached, rates={site: [float(index % 2)] for index, site in enumerate(attached.site_gates)}
    ).network


def macs_of(model: nn.Module) -> int:
    return sum(
        cost.macs for cost in count_nodes(model, fx.symbolic_trace(model).graph, PIXELS).values()
    )


def cut_channels(model: nn.Module, wanted: int, round_to: int | None, steps: int) -> nn.Module:
    """A copy with the same share of channels cut everywhere, by Torch-Pruning.

    The share that comes nearest to the MACs wanted.
    """
    pruning = timing.needs("torch-pruning")
    low, high, best = 0.0, 0.9, model
    for _ in range(steps):
        share, trial = (low + high) / 2, copy.deepcopy(model)
        pruner = pruning.pruner.MagnitudePruner(
            trial,
            torch.randn(1, *PIXELS),
            importance=pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            ignored_layers=[trial.fc],
            round_to=round_to,
        )
        pruner.step()
        low, high = (share, high) if macs_of(trial) > wanted else (low, share)
        best = min(best, trial, key=lambda each: abs(macs_of(each) - wanted))
    best.zero_grad()
    return best.eval()


def blocks_or_channels(asked: argparse.Namespace) -> list[timing.Row]:
    model = resnet("NCHW")
    ours = half_the_blocks(model)
    steps = 4 if asked.quick else 10
    theirs = {
        "Torch-Pruning": cut_channels(model, ours.macs_dense, None, steps),
        "Torch-Pruning, multiples of 8": cut_channels(model, ours.macs_dense, 8, steps),
    }
    plain, networks = macs_of(model), {"gatecli, half the blocks": ours, **theirs}
    macs = {
        name: ours.macs_dense if network is ours else macs_of(network)
        for name, network in networks.items()
    }
    rows = []
    for batch, rounds in ((1, 3),) if asked.quick else ((1, 25), (8, 9)):
        x, case = (
            torch.randn(batch, *PIXELS, generator=torch.Generator().manual_seed(2)),
            f"ResNet-50, batch {batch}",
        )
        with torch.inference_mode():
            times = timing.interleaved(
                {
                    "plain": partial(model, x),
                    **{name: partial(network, x) for name, network in networks.items()},
                },
                rounds,
                warmup=1,
            )
        rows.append(timing.row(case, "plain", times, note=f"{plain / 1e9:.2f} GMACs"))
        for name in networks:
            rows.append(
                timing.realised(
                    case, name, times, plain / macs[name], note=f"{macs[name] / 1e9:.2f} GMACs"
                )
            )
    return rows + files(model, ours, theirs)


def files(model: nn.Module, ours: Network, theirs: dict[str, nn.Module]) -> list[timing.Row]:
    """Each network's file, written as its library's manual says, over the plain state dict's.

    And whether it loads without running code out of it.
    """
    with tempfile.TemporaryDirectory() as name:
        source, own = Path(name, "plain.pt"), Path(name, "own.safetensors")
        torch.save(model.state_dict(), source)
        gatecli.write(ours, own)
        x = torch.randn(1, *PIXELS)
        with torch.inference_mode():
            torch.testing.assert_close(gatecli.load(own)(x), ours(x))
        rows = [_file("gatecli, half the blocks", own, source, "loads safely, and as it was")]
        for variant, network in theirs.items():
            path = Path(name, "theirs.pt")
            torch.save(network, path)
            rows.append(_file(variant, path, source, _loading(path)))
    return rows


def _loading(path: Path) -> str:
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return "needs weights_only=False, which runs what the file says"
    return "loads safely"


def _file(variant: str, path: Path, source: Path, note: str) -> timing.Row:
    size, plain = path.stat().st_size, source.stat().st_size
    return timing.Row(
        "ResNet-50, file over the plain one's",
        variant,
        None,
        None,
        size / plain,
        "",
        f"{size / 1e6:.1f} MB, {note}",
    )


# earlyon: the same exits


def trained(epochs: int, folder: Path) -> tuple[Network, DataSet]:
    """A ResNet-20 with linear classifiers after its first two stages, each sure by its softmax,
    trained on digits.
    """
    data = gatecli.load_data("digits")
    train_source(folder / "source.pt", epochs, silent)
    source = gatecli.load(folder / "source.pt", input_size=(SIZE, SIZE))
    gatecli.fit(source, data)
    network = gatecli.attach(source, "dgate", loss="cross-entropy").network
    return (
        gatecli.finetune(
            network,
            data,
            gatecli.TrainOptions(
                epochs=2 * epochs, batch_size=64, schedule="cosine", cache_features=True
            ),
        ).network.eval(),
        data,
    )


def wrapped(network: Network, folder: Path) -> Any:
    """The plain network of the same weights in earlyon's wrapper, with copies of our heads."""
    timing.needs("earlyon")
    from earlyon.core.types import EarlyExitConfig, ExitPoint
    from earlyon.core.wrappers import EarlyExitWrapper

    from gatecli.architectures.cifar import CifarResNet

    plain = CifarResNet(20, network.num_classes)
    plain.load_state_dict(torch.load(folder / "source.pt", weights_only=True))
    exits = list(network.site_exits.items())
    points = [
        ExitPoint(site, f"layer{number}", network.sites[site].channels)
        for number, (site, _) in enumerate(exits, 1)
    ]
    heads = {site: copy.deepcopy(exit_).head() for site, exit_ in exits}
    return EarlyExitWrapper(
        plain,
        heads,
        lambda logits: logits,
        EarlyExitConfig("cifar", network.num_classes, points),
        input_shape=(1, 3, SIZE, SIZE),
    ).eval()


def exits(asked: argparse.Namespace) -> list[timing.Row]:
    with tempfile.TemporaryDirectory() as name:
        network, data = trained(2 if asked.quick else 15, Path(name))
        theirs = wrapped(network, Path(name))
    from earlyon.core.thresholds import calibrate_thresholds

    val, test = (
        next(batches(data.splits[split], input=network.input, batch_size=1000))
        for split in ("val", "test")
    )
    loader: Any = DataLoader(TensorDataset(*val), batch_size=256)
    samples = {
        split: gather(network, replace(data, splits={"val": data.splits[split]}), 256, 0, silent)[0]
        for split in ("val", "test")
    }
    times = timing.interleaved(
        {
            "gatecli": partial(gatecli.calibrate_exits, network, data, max_drop=1),
            "earlyon": partial(calibrate_thresholds, theirs, loader, 0.01),
        },
        2 if asked.quick else 9,
    )
    case = f"choosing thresholds, {len(val[1])} images of val"
    rows = [timing.row(case, "earlyon", times), timing.compared(case, "gatecli", times, "earlyon")]
    for drop in DROPS:
        calibrate_thresholds(theirs, loader, drop)
        rows += equal_accuracy(
            f"MACs at equal accuracy, {drop:.1%} given up", samples, chosen(theirs)
        )
    calibrate_thresholds(theirs, loader, 0.01)
    return rows + speed(network, theirs, test[0], samples["test"], asked)


def chosen(theirs: Any) -> list[float]:
    """earlyon's thresholds in our words: an exit that is switched off has an infinite one."""
    return [
        threshold if on else math.inf
        for threshold, on in zip(
            theirs.config.confidence_thresholds, theirs.config.enabled_exits, strict=True
        )
    ]


def equal_accuracy(
    case: str, samples: dict[str, Samples], thresholds: list[float]
) -> list[timing.Row]:
    theirs = measure(samples["val"], thresholds)
    found = search(samples["val"], theirs.top1)
    assert found is not None  # what earlyon's thresholds reach is within reach
    rows = []
    for name, point in (("earlyon", theirs), ("gatecli", found.point)):
        test = measure(samples["test"], point.thresholds)
        note = (
            f"{point.cost / 1e6:.2f} MMACs at val {point.top1:.2f}; test: {test.cost / 1e6:.2f} at"
            f" {test.top1:.2f}"
        )
        rows.append(
            timing.Row(
                case,
                name,
                None,
                None,
                None if name == "earlyon" else point.cost / theirs.cost,
                "" if name == "earlyon" else "<= 1",
                note,
            )
        )
    return rows


def speed(
    network: Network, theirs: Any, images: Tensor, samples: Samples, asked: argparse.Namespace
) -> list[timing.Row]:
    """Milliseconds an image of the test split; both leave at earlyon's thresholds."""
    thresholds = chosen(theirs)
    for threshold, exit_ in zip(thresholds, network.site_exits.values(), strict=True):
        exit_.threshold.fill_(threshold)
    if math.inf in thresholds:
        network = gatecli.prune(
            network,
            rates={
                site: [share]
                for site, share in zip(
                    network.site_exits, measure(samples, thresholds).shares, strict=False
                )
            },
            collapse=0,
        ).network
    plain, count = theirs.backbone, 64 if asked.quick else 352
    ideal = network.recipe.source.macs / measure(samples, thresholds).cost
    single, several = torch.split(images[:count], 1), torch.split(images[:count], 32)
    with torch.inference_mode():
        for x in single[:64]:
            torch.testing.assert_close(
                network(x), theirs(x).prediction, atol=1e-4, rtol=1e-4
            )  # they decide alike
    cases: dict[str, dict[str, Callable[[], Any]]] = {
        "batch 1": {
            name: partial(_all, run, single)
            for name, run in (("plain", plain), ("earlyon", theirs), ("gatecli", network))
        },
        "batch 32": {
            "plain": partial(_all, plain, several),
            "earlyon, leaving together": partial(_all, theirs.forward_inference_batched, several),
            "earlyon, one by one": partial(_all, theirs, single),
            "gatecli": partial(_all, network, several),
        },
    }
    rows = []
    for case, variants in cases.items():
        with torch.inference_mode():
            times = {
                name: [each / count for each in own]
                for name, own in timing.interleaved(
                    variants, 3 if asked.quick else 15, warmup=1
                ).items()
            }
        rows.append(timing.row(f"digits, {case}", "plain", times, note=_rate(times, "plain")))
        rows += [
            timing.realised(f"digits, {case}", name, times, ideal, note=_rate(times, name))
            for name in list(variants)[1:]
        ]
    return rows


def _all(run: Callable[[Tensor], Any], parts: tuple[Tensor, ...]) -> None:
    for x in parts:
        run(x)


def _rate(times: timing.Times, name: str) -> str:
    return f"{1 / statistics.median(times[name]):.0f} images/s"


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    return blocks_or_channels(asked) + exits(asked)


if __name__ == "__main__":
    timing.needs("torch-pruning"), timing.needs("earlyon")
    timing.main(__doc__, "Beside other libraries", rows)
