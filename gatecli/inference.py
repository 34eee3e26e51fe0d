"""Run a network over a split: accuracy, and how often each unit ran."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatecli.errors import DataError
from gatecli.progress import Progress, silent
from gatecli.record import RateMeter, observe

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Scores:
    """Accuracy in percent over `samples` images, and the measured rate of each unit of each gated site."""

    top1: float
    top5: float
    samples: int
    rates: dict[str, list[float]]


def score(network: nn.Module, batches: Batches, progress: Progress = silent, label: str = "evaluating", total: int | None = None) -> Scores:
    """Accuracy and rates of `network`, in evaluation mode, over the batches (images (N, C, H, W), labels (N,)).

    Raises: DataError where there are no batches. Interrupted, from `progress`, between batches.
    """
    logits, labels, rates = predict(network, batches, progress, label, total)
    return Scores(topk(logits, labels, 1), topk(logits, labels, 5), len(labels), rates)


def predict(
    network: nn.Module, batches: Batches, progress: Progress = silent, label: str = "evaluating", total: int | None = None, meter: RateMeter | None = None
) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
    """All logits (N, classes) and labels (N,) on the CPU, and the rates, of one pass in evaluation mode; `meter` counts them, and may see more."""
    device = next(network.parameters()).device
    training = network.training
    logits, labels, meter = [], [], meter or RateMeter()
    with torch.no_grad(), observe(network.eval(), meter), progress.task(label, total) as task:
        for x, y in batches:
            logits.append(network(x.to(device)).float().cpu())
            labels.append(y)
            task.advance()
    network.train(training)
    if not logits:
        raise DataError("expected at least one image to evaluate on, but the split is empty")
    return torch.cat(logits), torch.cat(labels), meter.rates()


def topk(scores: Tensor, labels: Tensor, k: int) -> float:
    """Percent of rows of scores (N, classes) whose label is among the k largest; NaN rows count as wrong."""
    best = scores.nan_to_num(-math.inf).topk(min(k, scores.shape[1]), 1).indices
    hits = (best == labels[:, None]).any(1) & ~scores.isnan().any(1)
    return 100 * hits.double().mean().item()
