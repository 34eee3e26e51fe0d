"""Channel gating on a trained network: the four gate functions, base paths, eps and eta.

Error against MACs, each after a short schedule.

python docs/experiments/channel_gates.py resnet20_glyphs36.pt npz:glyphs36.npz

Trains on the first --images of the training split, chooses nothing on val (the last epoch is kept),
and tests on the first --test images of test. Writes a JSON line a variant to
CHECKPOINT.channels.jsonl in the current folder, and skips those that are there already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import gatecli

# few channels close at first: with 0 half of them do at once, and a schedule as short as this one
# does not recover
START = {"start": "-2"}
PARTS: dict[str, list[dict[str, str]]] = {
    "gate functions": [
        {"gate": gate, "target": target}
        for gate in ("coarse", "fine", "fc", "l1")
        for target in ("0", "1")
    ],
    "base paths": [
        {"grouping": grouping, "shuffle": shuffle}
        for grouping, shuffle in (("no", "yes"), ("yes", "no"), ("yes", "yes"))
    ],
    "eps": [{"eps": eps} for eps in ("1", "4")],
    "eta": [{"eta": eta} for eta in ("1/8", "1/2")],
}


def variant(
    source: str, data: Any, part: str, settings: dict[str, str], args: argparse.Namespace
) -> dict[str, Any]:
    began = time.monotonic()
    network = gatecli.load(source)
    gatecli.fit(network, data)
    gated = gatecli.attach(network, "cgnet", **START, **settings).network
    options = gatecli.TrainOptions(
        epochs=args.epochs, lr=0.02, batch_size=64, schedule="cosine", augment="none", bn_batches=0
    )
    changes = {"target": settings.get("target", "1"), "gate_lr": "0.05", "loss_weight": "0.05"}
    tuned = gatecli.finetune(gated, data, options, changes=changes)
    test = gatecli.evaluate(tuned.network, data, split="test")
    return {
        "part": part,
        "settings": settings,
        "top1": test.top1,
        "val_top1": tuned.top1,
        "macs_dense": tuned.network.macs_dense,
        "macs_source": network.macs_dense,
        "macs_expected": test.macs_expected,
        "rate": statistics.fmean(rate for units in test.rates.values() for rate in units),
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--parts", nargs="*", default=list(PARTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = gatecli.load_data(args.data)
    sizes = {"train": args.images, "val": 200, "test": args.test}
    data = replace(
        data,
        splits={
            name: split.take(torch.arange(min(len(split), sizes[name])))
            for name, split in data.splits.items()
        },
    )
    results = Path(f"{Path(args.source).stem}.channels.jsonl")
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    for part in args.parts:
        for settings in PARTS[part]:
            if not any((row["part"], row["settings"]) == (part, settings) for row in done):
                done.append(variant(args.source, data, part, settings, args))
                with results.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    plain = gatecli.load(args.source)
    gatecli.fit(plain, data)
    before = gatecli.evaluate(plain, data, split="test").top1
    print(
        f"source: {before:.2f} on test, {plain.macs_dense / 1e6:.1f} MMACs\n\n| part | settings |"
        " test top-1 | change | MMACs | times fewer | rate |\n|---|---|---|---|---|---|---|"
    )
    for row in done:
        named = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        macs = row["macs_expected"]
        print(
            f"| {row['part']} | {named} | {row['top1']:.2f} | {row['top1'] - before:+.2f} |"
            f" {macs / 1e6:.1f} | {plain.macs_dense / macs:.2f} | {row['rate']:.2f} |"
        )


if __name__ == "__main__":
    main()
