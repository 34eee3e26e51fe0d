"""Train a plain network on an npz data set of grey images and save its state dict, as a user of
gatecli would bring it.

python docs/experiments/train_source.py cifar:resnet56 glyphs36.npz resnet56_glyphs36.pt --epochs 5
python docs/experiments/train_source.py torchvision:densenet121 glyphs36.npz densenet_glyphs36.pt
--epochs 3 --size 48 --arch-arg growth_rate=12
python docs/experiments/train_source.py cifar:resnet20 glyphs36.npz wide.pt --baseline wider

Pixels are divided by 255 and normalised with the train split's own mean and deviation, which it
prints.
"""

import argparse
import time

import baselines
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gatecli.architectures.arguments import parse_arch_args
from gatecli.architectures.build import build
from gatecli.errors import GatecliError


def check_baseline(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with one line where there is no such baseline."""
    try:
        baselines.check(args.arch, args.baseline)
    except GatecliError as error:
        parser.exit(1, f"error: {error}\n")


def made(args: argparse.Namespace, classes: int) -> nn.Module:
    """The network with random weights, in evaluation mode; of a baseline, its size is printed."""
    if args.baseline:
        print(baselines.told(args.arch, args.baseline, classes))
        torch.manual_seed(0)  # whatever it took to find its widths
        return baselines.build(args.arch, args.baseline, classes)
    return build(args.arch, {"num_classes": classes, **parse_arch_args(args.arch_arg)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=58)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--arch-arg", action="append", default=[])
    parser.add_argument("--baseline", help="se or wider: see baselines.py")
    args = parser.parse_args()
    if args.baseline:
        check_baseline(parser, args)
    torch.manual_seed(0)
    data = np.load(args.data)
    grey = data["train_images"] / 255.0
    mean, std = float(grey.mean()), float(grey.std())
    print(f"mean {mean:.4f}, std {std:.4f}")

    def prepared(grey: torch.Tensor) -> torch.Tensor:
        """Images (N, 1, H, W) as the network takes them: (N, 3, size, size)."""
        if args.size != grey.shape[-1]:
            grey = F.interpolate(grey, (args.size, args.size), mode="bilinear", antialias=True)
        return grey.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)

    def tensors(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(data[f"{split}_images"]).float().div(255).sub(mean).div(std)
        return images[:, None], torch.from_numpy(data[f"{split}_labels"]).reshape(-1).long()

    images, labels = tensors("train")
    net = made(args, int(labels.max()) + 1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), args.lr, 0.9, weight_decay=5e-4, nesterov=True)
    steps = len(images) // args.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * steps, pct_start=0.2
    )
    for epoch in range(args.epochs):
        net.train()
        start, order, total = time.time(), torch.randperm(len(images)), 0.0
        for step in range(steps):
            pick = order[step * args.batch_size : (step + 1) * args.batch_size]
            dy, dx = torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(
                net(prepared(torch.roll(images[pick], (dy, dx), (2, 3)))), labels[pick]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        net.eval()
        scores = []
        with torch.no_grad():
            for split in ("val", "test"):
                x, y = tensors(split)
                hits = [
                    (net(prepared(a)).argmax(1) == b).sum().item()
                    for a, b in zip(x.split(500), y.split(500), strict=True)
                ]
                scores.append(100 * sum(hits) / len(y))
        print(
            f"epoch {epoch + 1}: loss {total / steps:.3f}, val {scores[0]:.2f}, test"
            f" {scores[1]:.2f}, {time.time() - start:.0f} s",
            flush=True,
        )
        torch.save({k: v.contiguous() for k, v in net.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
