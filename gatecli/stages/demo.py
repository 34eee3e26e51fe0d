"""What the demo needs before its first command.

A plain network, trained and saved as a user would have it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from gatecli.architectures.cifar import CifarResNet
from gatecli.data import Walk, batches, load_data, steps
from gatecli.progress import Progress
from gatecli.traced.recipe import InputSpec

__all__ = ["CLASSES", "SIZE", "train_source"]

SIZE = 16  # pixels: the digits are 8x8, so more would only cost time
CLASSES = 10
DEPTH = 20
BATCH_SIZE = 64
LEARNING_RATE = 0.1


def train_source(path: Path, epochs: int, progress: Progress, seed: int = 0) -> None:
    """Train a CIFAR-style ResNet-20 on scikit-learn's handwritten digits.

    Args:
        path: Where to save its state dict.
        epochs: Passes over the training split.
        progress: Told of each batch.
        seed: Of all that is random.

    Raises:
        DataError: scikit-learn is not installed.
    """
    data = load_data("digits")
    train = data.splits["train"]
    torch.manual_seed(seed)
    network = CifarResNet(DEPTH, CLASSES)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4
    )
    total = epochs * steps(train, BATCH_SIZE, drop_last=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=total
    )
    spec = replace(InputSpec((SIZE, SIZE)), mean=data.mean, std=data.std)
    with progress.task("training the source", total) as task:
        for epoch in range(epochs):
            walk = Walk(augment=data.augment, shuffle=True, seed=seed, epoch=epoch, drop_last=True)
            for x, y in batches(train, input=spec, batch_size=BATCH_SIZE, walk=walk):
                loss = F.cross_entropy(network(x), y)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                task.advance(loss=f"{loss.item():.3f}")
    torch.save(network.state_dict(), path)
