"""Train probabilistic exits with a network, alone and with layer gates, and print what each exit
says of all images and of those that it chose.

python docs/experiments/early_exit.py resnet20_glyphs36.pt npz:glyphs36.npz --epochs 2

Works in the current folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from command import gatecli

SCHEDULE = ["--batch-size", "64", "--lr", "0.05", "--schedule", "cosine", "--bn-batches", "100"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("data")
    parser.add_argument("--epochs", default="2")
    parser.add_argument("--width", default="16")
    parser.add_argument("--loss-weight", default="20")
    args = parser.parse_args()
    stem = Path(args.source).stem
    print(
        "| exits with | test top-1 | GMACs (test), of | exit | leave there | top-1 on all images |"
        " on those that leave |\n|---|---|---|---|---|---|---|"
    )
    for others in ([], ["ind-perbatch"]):
        gated = args.source
        for method in others:
            gated = gatecli(
                "attach",
                gated,
                "--method",
                method,
                "--set",
                "target_rate=0.9",
                "--set",
                "gate_lr=3",
                "--set",
                "loss_weight=4",
                "--out",
                f"{stem}.layers.safetensors",
                "--force",
            )["out"]
        both = ",".join(["early-exit", *others])
        gated = gatecli(
            "attach",
            gated,
            "--method",
            "early-exit",
            "--set",
            f"width={args.width}",
            "--set",
            f"loss_weight={args.loss_weight}",
            "--out",
            f"{stem}.{both}.gated.safetensors",
            "--force",
        )["out"]
        tuned = gatecli(
            "finetune",
            gated,
            "--data",
            args.data,
            "--epochs",
            args.epochs,
            *SCHEDULE,
            "--train",
            both,
            "--out",
            f"{stem}.{both}.tuned.safetensors",
            "--force",
        )
        test = gatecli("eval", tuned["out"], "--split", "test")
        for site, each in test["exits"].items():
            cells = [
                ", ".join(others) or "nothing else",
                f"{test['top1']:.2f}",
                f"{test['macs_expected'] / 1e9:.4f} of {test['macs_dense'] / 1e9:.4f}",
                site,
                f"{100 * each['share']:.1f} %",
            ]
            chosen = "-" if each["top1_chosen"] is None else f"{each['top1_chosen']:.2f}"
            print(
                f"| {' | '.join([*cells, format(each['top1_all'], '.2f'), chosen])} |", flush=True
            )


if __name__ == "__main__":
    main()
