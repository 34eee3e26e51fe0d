"""Train probabilistic exits and print what each says of all images, and of those that it chose.

python docs/experiments/early_exit.py resnet20_glyphs36.pt npz:glyphs36.npz \
    --supervise 0 1 --loss-weights 1 2 5 --frozen --exits exit2 \
    --train 3000 --epochs 5 --precision bf16

trains a single exit, target .3, at six settings while the network's weights stay (its BatchNorm
statistics do not: they follow the 3,000 images). One seed, 235 steps; what it printed, on test:

| supervise | loss weight | top-1 | leave at exit2 | right of those | right of all |
|---|---|---|---|---|---|
| 0 | 1 | 90.72 | 0.0 % | - | 4.14 |
| 0 | 2 | 90.72 | 0.0 % | - | 5.16 |
| 0 | 5 | 90.70 | 0.1 % | 0.00 | 5.64 |
| 1 | 1 | 90.72 | 0.0 % | - | 78.68 |
| 1 | 2 | 90.50 | 11.1 % | 96.20 | 78.96 |
| 1 | 5 | 88.98 | 31.5 % | 91.94 | 77.70 |

python docs/experiments/early_exit.py resnet20_glyphs36.pt npz:glyphs36.npz --epochs 2
python docs/experiments/early_exit.py resnet20_glyphs36.pt npz:glyphs36.npz --epochs 2 --layers

train the network with its exits, the second with layer gates (ind-perbatch, target .9) too.

Works in the current folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command import gatecli, schedule
from subset import subset

LR = 0.05
LAYERS = {"target_rate": 0.9, "gate_lr": 3, "loss_weight": 4}
HEAD = (
    "| supervise | loss weight | test top-1 | GMACs (test), of | exit | leave there |"
    " top-1 on those that leave | on all images |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    args = arguments()
    data = args.data
    if args.train:
        data = "npz:" + subset(data.removeprefix("npz:"), args.train)
    print(HEAD)
    for supervise in args.supervise:
        for weight in args.loss_weights:
            settings = {"width": args.width, "supervise": supervise, "loss_weight": weight}
            settings["rate_of"] = args.rate_of
            test = train(args, data, settings)
            for site, seen in test["exits"].items():
                print(row(supervise, weight, test, site, seen), flush=True)


def arguments() -> argparse.Namespace:
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    parser.add_argument("source")
    parser.add_argument("data")
    parser.add_argument("--epochs", default="2")
    parser.add_argument("--width", default="16")
    parser.add_argument("--supervise", nargs="*", default=["1"])
    parser.add_argument("--loss-weights", nargs="*", default=["2"])
    parser.add_argument("--rate-of", default="comers")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--exits", help="which exits; none: all")
    parser.add_argument("--frozen", action="store_true", help="the network's weights stay")
    parser.add_argument("--layers", action="store_true", help="train layer gates too")
    parser.add_argument("--train", type=int, help="so many training images; none: all")
    return parser.parse_args()


def train(args: argparse.Namespace, data: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Attach exits with these settings, train them, and say what they do on test."""
    stem = Path(args.source).stem
    methods, gated = ["early-exit"], args.source
    if args.layers:
        methods.append("ind-perbatch")
        gated = attach(gated, methods[1], LAYERS, f"{stem}.layers.safetensors")
    only = ["--include", args.exits] if args.exits else []
    gated = attach(gated, methods[0], settings, f"{stem}.exits.safetensors", only)
    how = [*schedule(args.epochs, 100), "--precision", args.precision]
    if args.frozen:
        how += ["--lr", 0, "--set", f"gate_lr={LR}"]
    how += ["--train", ",".join(methods), "--out", f"{stem}.exits.tuned.safetensors", "--force"]
    tuned = gatecli("finetune", gated, "--data", data, *how)
    return gatecli("eval", tuned["out"], "--split", "test")


def attach(
    source: str, method: str, settings: dict[str, Any], out: str, only: Sequence[str] = ()
) -> str:
    """Put a method's gates into a checkpoint, and return the new one's name."""
    words: list[object] = ["attach", source, "--method", method, *only]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    made: str = gatecli(*words, "--out", out, "--force")["out"]
    return made


def row(supervise: str, weight: str, test: dict[str, Any], site: str, seen: dict[str, Any]) -> str:
    """A line of the table: what one exit makes of the test images."""
    chosen = "-" if seen["top1_chosen"] is None else f"{seen['top1_chosen']:.2f}"
    cells = [
        supervise,
        weight,
        f"{test['top1']:.2f}",
        f"{test['macs_expected'] / 1e9:.4f} of {test['macs_dense'] / 1e9:.4f}",
        site,
        f"{100 * seen['share']:.1f} %",
        chosen,
        f"{seen['top1_all']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
