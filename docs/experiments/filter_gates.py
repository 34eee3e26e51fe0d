"""Give a CIFAR ResNet a gater, fine-tune, prune it, and set it beside the plain and a widened
network with the same extra epochs; print two tables.

python docs/experiments/filter_gates.py resnet20_glyphs36.pt glyphs36.npz --train 5000 --epochs 2

The widened network is the trained one with twice the filters inside each block, so that it has the
parameters of backbone and gater together: each filter is there twice, and its two copies share its
weight in the next convolution unequally (the function is the same, and training drives them apart).
Works in the current folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from command import gatecli, milliseconds, schedule
from subset import subset
from torch import Tensor, nn

from gatecli.architectures.build import build

HERE = Path(__file__).parent
ALONE = [
    "--method",
    "ind-perbatch",
    "--set",
    "target_rate=1",
]  # gates that stay open, and go with prune: the plain network, trained on
WIDE = [
    "--arch",
    "filter_gates:widened",
    "--input-size",
    "32",
    "--mean",
    "0.4458",
    "--std",
    "0.2389",
]  # the glyphs'; a function says neither


def widened(num_classes: int = 36) -> nn.Module:
    """A ResNet-20 with twice the filters inside its blocks."""
    net = build("cifar:resnet20", {"num_classes": num_classes})
    for block in (block for layer in (net.layer1, net.layer2, net.layer3) for block in layer):
        conv, width = block.conv1, block.conv1.out_channels
        block.conv1 = nn.Conv2d(conv.in_channels, 2 * width, 3, conv.stride, 1, bias=False)
        block.bn1, block.conv2 = (
            nn.BatchNorm2d(2 * width),
            nn.Conv2d(2 * width, width, 3, 1, 1, bias=False),
        )
    return net


def widen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `widened`, with the function of `state`."""
    torch.manual_seed(0)
    wide = dict(state)
    for name, tensor in state.items():
        if ".conv1.weight" in name or (".bn1." in name and tensor.ndim):
            wide[name] = torch.cat([tensor, tensor])
        elif ".conv2.weight" in name:
            share = torch.empty(1, tensor.shape[1], 1, 1).uniform_(0.3, 0.7)
            wide[name] = torch.cat([tensor * share, tensor * (1 - share)], 1)
    return wide


def variant(
    name: str, source: str, data: str, attach: list[Any], tune: list[Any], reading: list[str]
) -> dict[str, Any]:
    """Attach, fine-tune, prune; what each step says, and the accuracies on test."""
    stem = f"{Path(source).stem}.{name}"
    gated, tuned, pruned = (f"{stem}.{done}.safetensors" for done in ("gated", "tuned", "pruned"))
    gatecli("attach", source, *reading, *attach, "--out", gated, "--force")
    trained = gatecli(
        "finetune", gated, "--data", f"npz:{data}", *reading, *tune, "--out", tuned, "--force"
    )
    cut = gatecli("prune", tuned, *reading, "--out", pruned, "--force")
    scores = {
        file: gatecli("eval", file, *reading, "--data", f"npz:{data}", "--split", "test")
        for file in (tuned, pruned)
    }
    return {
        "tuned": tuned,
        "pruned": pruned,
        "finetune": trained,
        "prune": cut,
        "scores": scores,
        "reading": reading,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("data")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--val", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--set", nargs="*", default=["l1_weight=15", "target_rate=0.6"], dest="settings"
    )
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    data = subset(args.data, args.train, args.val)
    gater, wide = "gater.pt", f"{Path(args.source).stem}.wide.pt"
    if not Path(gater).exists():
        subprocess.run(
            [
                sys.executable,
                HERE / "train_source.py",
                "cifar:resnet20",
                data,
                gater,
                "--epochs",
                str(args.epochs),
            ],
            check=True,
            stdout=sys.stderr,
        )
    torch.save(widen(torch.load(args.source)), wide)
    tune = schedule(args.epochs, 50)
    sets = [word for setting in args.settings for word in ("--set", setting)]
    gated = variant(
        "filters", args.source, data, ["--method", "gaternet", "--gater", gater, *sets], tune, []
    )
    show_gates(gatecli("gates", gated["tuned"], "--split", "test"))
    others = {
        "plain, trained on": variant("plain", args.source, data, ALONE, tune, []),
        "widened, trained on": variant("plain", wide, data, ALONE, tune, WIDE),
    }
    source = gatecli("eval", args.source, "--data", f"npz:{data}", "--split", "test")
    profile = ["--batch", "1,32", "--repeats", "60"]
    rows = gatecli(
        "profile", gated["tuned"], gated["pruned"], others["plain, trained on"]["pruned"], *profile
    )["rows"]
    rows += gatecli("profile", others["widened, trained on"]["pruned"], *WIDE, *profile)["rows"][1:]
    scores = [
        source,
        *gated["scores"].values(),
        *(list(other["scores"].values())[1] for other in others.values()),
    ]
    print(
        "\n| network | test top-1 | parameters | GMACs expected | file, MB | ms at batch 1 / 32"
        " |\n|---|---|---|---|---|---|"
    )
    for name, score, row in zip(
        ["source", "gated", "gated, pruned", *others], scores, rows, strict=True
    ):
        print(
            f"| {name} | {score['top1']:.2f} | {row['params'] / 1e6:.3f} M |"
            f" {row['macs_expected'] / 1e9:.4f} | {row['file_bytes'] / 1e6:.2f} |"
            f" {milliseconds(row)} |"
        )


def show_gates(found: dict[str, Any]) -> None:
    print(
        "| site | filters | always on | by the image | always off | mean rate"
        " |\n|---|---|---|---|---|---|"
    )
    for site in found["sites"]:
        print(
            f"| {site['name']} | {site['units']} | {site['on']} | {site['dependent']} |"
            f" {site['off']} | {site['rate']:.2f} |"
        )
    on = found["units_on"]
    print(
        f"\nfilters on for an image: {on['mean']:.1f} on average, {on['least']:g} to"
        f" {on['most']:g}; of those that depend on the image, so many are on for 0-10 %, 10-20 %,"
        f" ... of the images: {found['histogram']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
