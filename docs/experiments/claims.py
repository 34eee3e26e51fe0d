"""Train a checkpoint's layer gates in several ways, evaluate each in the four ways of deciding, and
print two tables.

python docs/experiments/claims.py resnet20_glyphs36.pt npz:glyphs36.npz

Works in the current folder; appends one JSON line a run to CHECKPOINT.claims.jsonl, and skips runs
that are there already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from command import gatecli

PULL = [
    "gate_lr=3",
    "loss_weight=4",
]  # a schedule of two epochs needs a stronger pull than one of a hundred
RUNS: dict[str, tuple[str, int, list[str]]] = {  # name -> method, epochs, settings
    "control, t = 1": ("ind-perbatch", 2, ["target_rate=1"]),
    "aig-perbatch": ("aig-perbatch", 2, ["target_rate=0.5"]),
    "aig-pergate": ("aig-pergate", 2, ["target_rate=0.5"]),
    "ind-perbatch": ("ind-perbatch", 2, ["target_rate=0.5"]),
    "ind-pergate": ("ind-pergate", 2, ["target_rate=0.5"]),
    "aig-perbatch, 4 epochs": ("aig-perbatch", 4, ["target_rate=0.5"]),
    "aig-perbatch, annealed": (
        "aig-perbatch",
        4,
        ["target_rate=0.5", "anneal_start=0.875", "anneal_step=0.125", "anneal_every=1"],
    ),
    "aig-perbatch, variable": (
        "aig-perbatch",
        2,
        ["target_rate=0.5", "variable=exponential", "loss_form=const-quad"],
    ),
}
STRATEGIES = ("threshold", "stochastic", "ensemble", "always-on")


def train(source: str, data: str, name: str, seed: int, more: list[str]) -> dict[str, Any]:
    method, epochs, settings = RUNS[name]
    stem = f"{Path(source).stem}.{''.join(c if c.isalnum() else '-' for c in name)}.{seed}"
    gated, tuned = f"{stem}.gated.safetensors", f"{stem}.tuned.safetensors"
    gatecli(
        "attach",
        source,
        "--method",
        method,
        "--seed",
        seed,
        *(word for setting in [*PULL, *settings] for word in ("--set", setting)),
        "--out",
        gated,
        "--force",
    )
    schedule = ["--lr", 0.05, "--batch-size", 64, "--schedule", "cosine", "--bn-batches", 100]
    trained = gatecli(
        "finetune",
        gated,
        "--data",
        data,
        "--epochs",
        epochs,
        *schedule,
        "--seed",
        seed,
        "--out",
        tuned,
        "--force",
        *more,
    )
    scores = {
        strategy: gatecli("eval", tuned, "--split", "test", "--strategy", strategy, *more)
        for strategy in STRATEGIES
    }
    return {"name": name, "seed": seed, "finetune": trained, "eval": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("data")
    parser.add_argument("--runs", nargs="*", default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    results = Path(f"{Path(args.source).stem}.claims.jsonl")
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    for name in args.runs:
        if not any((row["name"], row["seed"]) == (name, args.seed) for row in done):
            done.append(
                train(
                    args.source,
                    args.data,
                    name,
                    args.seed,
                    ["--threads", str(args.threads)] if args.threads else [],
                )
            )
            with results.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    report(done)


def report(done: list[dict[str, Any]]) -> None:
    """Two Markdown tables: accuracy on test by way of deciding, and each site's rate there."""
    print(
        "| run | seed | rate asked / achieved (val) | GMACs (test) | threshold | stochastic |"
        " ensemble of 5 | always-on |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in done:
        tuned, scores = row["finetune"], row["eval"]
        cells = [
            f"{scores['threshold']['top1']:.2f}",
            f"{scores['stochastic']['top1']:.2f} ± {scores['stochastic']['top1_std']:.2f}",
            f"{scores['ensemble']['top1']:.2f}",
            f"{scores['always-on']['top1']:.2f}",
        ]
        print(
            f"| {row['name']} | {row['seed']} | {tuned['target_rate']:.2f} /"
            f" {tuned['achieved_rate']:.2f} | {scores['threshold']['macs_expected'] / 1e9:.4f} |"
            f" {' | '.join(cells)} |"
        )
    sites = list(done[0]["eval"]["threshold"]["rates"])
    print(f"\n| run | seed | {' | '.join(sites)} |")
    print(f"|---|---|{'---|' * len(sites)}")
    for row in done:
        print(
            f"| {row['name']} | {row['seed']} |"
            f" {' | '.join(f'{rate:.2f}' for rate in row['eval']['threshold']['rates'].values())} |"
        )


if __name__ == "__main__":
    main()
