"""Put decision gates into a checkpoint, train and calibrate them, and print their operating points,
with hinge loss and with cross-entropy, for features pooled to several sizes.

python docs/experiments/exits.py resnet20_glyphs36.pt npz:glyphs36.npz --drops 0 0.5 1 2

Works in the current folder.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from command import gatecli

LEARNING_RATES = {"hinge": "0.1", "cross-entropy": "0.5"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("data")
    parser.add_argument("--epochs", default="100")
    parser.add_argument("--drops", nargs="*", default=["0", "0.5", "1", "2"])
    parser.add_argument("--losses", nargs="*", default=["hinge", "cross-entropy"])
    parser.add_argument("--pools", nargs="*", default=["none"], help="see gatecli methods dgate")
    parser.add_argument("--repeats", default="200", help="timed calls of each network")
    parser.add_argument(
        "--after", help="blocks after which the exits stand; none: the ends of stages"
    )
    args = parser.parse_args()
    stem = Path(args.source).stem
    print(
        "| loss | pool | exits alone (val) | points given up | thresholds | val top-1 |"
        " test top-1 | GFLOPs (test) | less | leaving at each, at the end, % (val) |"
        " speed-up at 1 / 32 | ideal |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for loss, pool in itertools.product(args.losses, args.pools):
        name = f"{stem}.{loss}.{pool}"
        gated, tuned = f"{name}.dgate.safetensors", f"{name}.tuned.safetensors"
        gatecli(
            "attach",
            args.source,
            "--method",
            "dgate",
            "--set",
            f"loss={loss}",
            "--set",
            f"pool={pool}",
            *(["--set", f"after={args.after}"] if args.after else []),
            "--out",
            gated,
            "--force",
        )
        schedule = [
            "--epochs",
            args.epochs,
            "--cache-features",
            "--lr",
            LEARNING_RATES[loss],
            "--schedule",
            "cosine",
            "--batch-size",
            "256",
        ]
        trained = gatecli(
            "finetune", gated, "--data", args.data, *schedule, "--out", tuned, "--force"
        )
        alone = max(
            (row["exits"] for row in trained["history"]), key=lambda exits: sum(exits.values())
        )
        rows = []
        for asked in [
            *(["--max-drop", drop] for drop in args.drops),
            ["--max-drop", args.drops[-1], "--confidence", "0.95"],
        ]:
            out = f"{name}.{'-'.join(asked).strip('-')}.safetensors"
            rows.append((asked, gatecli("calibrate", tuned, *asked, "--out", out, "--force")))
        profile = gatecli(
            "profile",
            *(row["out"] for _, row in rows),
            "--data",
            args.data,
            "--batch",
            "1,32",
            "--repeats",
            args.repeats,
        )["rows"]
        for (asked, row), timed in zip(rows, profile[1:], strict=True):
            report(
                f"{loss} | {pool}",
                alone,
                asked,
                row,
                gatecli("eval", row["out"], "--split", "test"),
                timed,
            )


def report(
    what: str,
    alone: dict[str, float],
    asked: list[str],
    row: dict[str, Any],
    test: dict[str, Any],
    timed: dict[str, Any],
) -> None:
    limits = ", ".join(
        "never" if value is None else f"{value:.3g}" for value in row["thresholds"].values()
    )
    given_up = asked[1] + (f", confidence {asked[3]}" if len(asked) > 2 else "")
    less = 100 * (1 - test["macs_expected"] / row["macs_dense"])
    cells = [
        what,
        ", ".join(f"{top1:.1f}" for top1 in alone.values()),
        given_up,
        limits,
        f"{row['top1']:.2f}",
        f"{test['top1']:.2f}",
        f"{2 * test['macs_expected'] / 1e9:.4f}",
        f"{less:.1f} %",
        " / ".join(f"{100 * share:.1f}" for share in row["shares"]),
        " / ".join(f"{timed['speedups'][size]:.2f}" for size in ("1", "32")),
        f"{timed['ideal_speedup']:.2f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
