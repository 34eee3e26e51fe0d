"""Take a checkpoint down the road with both layer-gate methods and two target rates, and print one
table.

python docs/experiments/layer_gates.py resnet56_glyphs36.pt npz:glyphs36.npz --epochs 1

Works in the current folder; writes one JSON line a variant to CHECKPOINT.results.jsonl, and skips
variants that are there already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import command

ALWAYS: list[str] = []  # options of every command


def gatecli(*words: object) -> dict[str, Any]:
    return command.gatecli(*words, *ALWAYS, "--threads", "1")


def variant(
    source: str,
    data: str,
    wanted: str,
    options: list[object],
    settings: list[str],
    reading: list[str],
) -> dict[str, Any]:
    """Attach what is wanted, METHOD:RATE, fine-tune, prune; accuracy on test after the last two."""
    method, rate = wanted.split(":")
    name = f"{Path(source).stem}.{method}.{rate}"
    gated, tuned, pruned = (f"{name}.{done}.safetensors" for done in ("gated", "tuned", "pruned"))
    extra = [word for setting in [f"target_rate={rate}", *settings] for word in ("--set", setting)]
    gatecli("attach", source, *reading, "--method", method, *extra, "--out", gated, "--force")
    trained = gatecli("finetune", gated, "--data", data, *options, "--out", tuned, "--force")
    dynamic = gatecli("eval", tuned, "--split", "test")
    cut = gatecli("prune", tuned, "--threshold", "0.5", "--out", pruned, "--force")
    final = gatecli("eval", pruned, "--split", "test")
    return {
        "method": method,
        "rate": rate,
        "tuned": tuned,
        "pruned": pruned,
        "finetune": trained,
        "dynamic": dynamic,
        "prune": cut,
        "final": final,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("data")
    parser.add_argument("--epochs", default="2")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=["ind-perbatch:0.5", "ind-perbatch:0.7", "aig-perbatch:0.5", "aig-perbatch:0.7"],
    )
    parser.add_argument("--set", nargs="*", default=["gate_lr=3", "loss_weight=4"], dest="settings")
    parser.add_argument(
        "--arch", help="the architecture, where it is a user's own: package.module:callable"
    )
    parser.add_argument(
        "--reading",
        default="",
        help="options for reading the source, as '--input-size 64 --mean 0.4 --std 0.2'",
    )
    args = parser.parse_args()
    reading = args.reading.split()
    ALWAYS.extend(["--arch", args.arch] if args.arch else [])
    options = command.schedule(args.epochs, 100)
    results = Path(f"{Path(args.source).stem}.results.jsonl")
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    source = gatecli("eval", args.source, *reading, "--data", args.data, "--split", "test")
    for name in args.variants:
        if not any(f"{row['method']}:{row['rate']}" == name for row in done):
            done.append(variant(args.source, args.data, name, options, args.settings, reading))
            with results.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    report(
        source,
        done,
        gatecli("profile", *(row["pruned"] for row in done), "--batch", "1,32", "--repeats", "40"),
    )


def report(source: dict[str, Any], done: list[dict[str, Any]], profile: dict[str, Any]) -> None:
    """A Markdown table: accuracies on test, MACs and parameters after pruning, latency measured in
    one interleaved run.
    """
    print(
        "| network | test top-1 | GMACs expected | parameters | file, MB | ms at batch 1 / 32 |"
        " speed-up at 1 / 32 | ideal | blocks removed / dynamic |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    accuracies = [source["top1"], *(row["final"]["top1"] for row in done)]
    labels = [
        "source",
        *(
            f"{row['method']}, t = {row['rate']} (rate {row['finetune']['achieved_rate']:.2f})"
            for row in done
        ),
    ]
    blocks = [
        "",
        *(f"{len(row['prune']['removed'])} / {len(row['prune']['kept_dynamic'])}" for row in done),
    ]
    for label, top1, row, cut in zip(labels, accuracies, profile["rows"], blocks, strict=True):
        ms = command.milliseconds(row)
        speed = " / ".join(f"{row['speedups'][size]:.2f}" for size in ("1", "32"))
        print(
            f"| {label} | {top1:.2f} | {row['macs_expected'] / 1e9:.4f} | {row['params'] / 1e6:.3f}"
            f" M | {row['file_bytes'] / 1e6:.2f} | {ms} | {speed} | {row['ideal_speedup']:.2f} |"
            f" {cut} |"
        )


if __name__ == "__main__":
    main()
