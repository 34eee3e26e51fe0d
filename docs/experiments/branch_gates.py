"""Train a ResNeXt with learned, random and full connections between its branches, from scratch,
prune it, and print what came of it.

python docs/experiments/branch_gates.py glyphs36.npz --seeds 0 1 2

Works in the current folder.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from command import gatecli, milliseconds
from subset import subset

from gatecli.architectures.cifar.resnext import RESNEXTS

VARIANTS = {
    "K = 1": ["fan_in=1"],
    "K = 4": ["fan_in=4"],
    "random, K = 4": ["fan_in=4", "connectivity=random"],
    "real, K = 4": ["fan_in=4", "connectivity=real"],
    "full, K = 8": ["fan_in=8"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--arch", default="resnext20_8x4d")
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--epochs", default="6")
    parser.add_argument("--size", default="16")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--connections", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    data, classes = (
        f"npz:{subset(args.data, args.train)}",
        int(np.load(args.data)["train_labels"].max()) + 1,
    )
    print(
        "| connections | seed | test top-1 | parameters | pruned | GMACs | pruned | branches a"
        " module | ms at batch 1 / 32 | pruned |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for seed in args.seeds:
        for name in args.connections:
            stem = f"{args.arch}.{seed}.{name.replace(' ', '').replace(',', '-')}"
            fan_in = int(name.rpartition(" ")[2])
            source = f"{stem}.pt"
            torch.manual_seed(seed)
            network = RESNEXTS[args.arch](num_classes=classes, fan_in=fan_in)
            torch.save(network.state_dict(), source)
            sets = [word for setting in VARIANTS[name] for word in ("--set", setting)]
            gated = gatecli(
                "attach",
                source,
                "--method",
                "gateconnect",
                *sets,
                "--input-size",
                args.size,
                "--seed",
                seed,
                "--out",
                f"{stem}.safetensors",
                "--force",
            )
            schedule = [
                "--epochs",
                args.epochs,
                "--lr",
                "0.03",
                "--batch-size",
                "64",
                "--weight-decay",
                "5e-4",
                "--bn-batches",
                "50",
                "--seed",
                seed,
            ]
            tuned = gatecli(
                "finetune",
                gated["out"],
                "--data",
                data,
                *schedule,
                "--out",
                f"{stem}.tuned.safetensors",
                "--force",
            )
            pruned = gatecli(
                "prune", tuned["out"], "--out", f"{stem}.pruned.safetensors", "--force"
            )
            test = gatecli("eval", pruned["out"], "--split", "test")
            rows = gatecli(
                "profile", tuned["out"], pruned["out"], "--batch", "1,32", "--repeats", "30"
            )["rows"]
            gone = {
                each["site"]: len(each["units"])
                for each in pruned["removed"]
                if isinstance(each, dict)
            }
            branches = ", ".join(
                str(site["units"] - gone.get(site["name"], 0))
                for site in gatecli("inspect", gated["out"])["sites"]
                if site["kind"] == "branch"
            )
            ms = [milliseconds(row) for row in rows[1:]]
            cells = [
                name,
                seed,
                f"{test['top1']:.2f}",
                f"{pruned['params_before'] / 1e6:.3f} M",
                f"{pruned['params'] / 1e6:.3f} M",
                f"{pruned['macs_before'] / 1e9:.4f}",
                f"{pruned['macs_dense'] / 1e9:.4f}",
                branches,
                *ms,
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
