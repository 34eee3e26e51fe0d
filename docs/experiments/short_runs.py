"""Train gates for a few epochs, with several learning rates of theirs, and print what they do.

python docs/experiments/short_runs.py --optimizer adamw --lr 1e-3

Two networks on scikit-learn's digits, each trained from scratch first: a ResNet-20 at 16 pixels and
torchvision's MobileNetV2 at 32. `travel` is what the gates' learning rate comes to over all steps:
gate_lr is travel / steps; none: what finetune takes by itself; off: without its rule for short
runs. Works in the current folder.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from command import gatecli
from torch.nn import functional as F

from gatecli.architectures.build import build
from gatecli.data import Walk, batches, load_data, steps
from gatecli.traced.images import InputSpec

BATCH = 64
DATA = ["--data", "digits", "--batch-size", BATCH, "--bn-batches", 20, "--schedule", "cosine"]
SIZES = {"cifar:resnet20": 16, "torchvision:mobilenet_v2": 32}
FIRST = {"cifar:resnet20": 4, "torchvision:mobilenet_v2": 12}  # epochs of the source
HEAD = "| network, method, epochs | travel | gate_lr | rate by threshold | val top-1 |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--lr", default="1e-3")
    parser.add_argument("--target", default="0.5")
    parser.add_argument("--epochs", nargs="*", type=int, default=[5])
    parser.add_argument("--travel", nargs="*", default=["none"])
    parser.add_argument("--methods", nargs="*", default=["aig-perbatch", "ind-perbatch"])
    parser.add_argument("--archs", nargs="*", default=list(SIZES), choices=list(SIZES))
    args = parser.parse_args()
    print(HEAD + "\n|---|---|---|---|---|")
    for arch in args.archs:
        source = trained(arch)
        for method in args.methods:
            for epochs in args.epochs:
                for travel in args.travel:
                    said = row(source, SIZES[arch], method, epochs, travel, args)
                    print(f"| {arch}, {method}, {epochs} | {travel} | {said} |", flush=True)


def trained(arch: str) -> str:
    """A source from scratch; the one that is there, where it is."""
    path = f"{arch.partition(':')[2]}.pt"
    if Path(path).exists():
        return path
    torch.manual_seed(0)
    network = build(arch, {"num_classes": 10}).train()
    data = load_data("digits")
    spec = replace(InputSpec((SIZES[arch],) * 2), mean=data.mean, std=data.std)
    total = FIRST[arch] * steps(data.splits["train"], BATCH, drop_last=True)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total)
    for epoch in range(FIRST[arch]):
        walk = Walk(augment=data.augment, shuffle=True, epoch=epoch, drop_last=True)
        for x, y in batches(data.splits["train"], input=spec, batch_size=BATCH, walk=walk):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
            schedule.step()
    torch.save(network.state_dict(), path)
    return path


def row(
    source: str, size: int, method: str, epochs: int, travel: str, args: argparse.Namespace
) -> str:
    """Attach and train, once; the cells from gate_lr on."""
    stem = f"{Path(source).stem}.{method}"
    gated, tuned = f"{stem}.safetensors", f"{stem}.tuned.safetensors"
    target = ["--set", f"target_rate={args.target}"]
    into = ["--input-size", size, "--out", gated, "--force"]
    gatecli("attach", source, "--method", method, *target, *into)
    train = steps(load_data("digits").splits["train"], BATCH, drop_last=True)
    rate = {"none": "", "off": "short_run=0"}.get(travel)
    if rate is None:
        rate = f"gate_lr={float(travel) / epochs / train:.3g}"
    how: list[Any] = ["--optimizer", args.optimizer, "--lr", args.lr, "--epochs", epochs]
    how += ["--set", rate] if rate else []
    found = gatecli("finetune", gated, *DATA, *how, "--out", tuned, "--force")
    suited = found["suited"].get(method, {}).get("gate_lr")
    told = rate.partition("gate_lr=")[2] or suited or args.lr
    achieved, top1 = found["achieved_rate"], found["top1"]
    return f"{told} | {achieved:.3f} | {top1:.2f}"


if __name__ == "__main__":
    main()
