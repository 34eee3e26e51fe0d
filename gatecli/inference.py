"""Run a network over a split: accuracy, and how often each unit ran."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatecli.errors import DataError
from gatecli.network import Network
from gatecli.network.compare import require_finite
from gatecli.progress import Progress, silent
from gatecli.record import RateMeter, gates_of, observe

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Scores:
    """Accuracy in percent over `samples` images.

    The measured rate of each unit of each gated site, and how often any of a site's units ran.
    """

    top1: float
    top5: float
    samples: int
    rates: dict[str, list[float]]
    busy: dict[str, float]


@dataclass(frozen=True)
class Pass:
    """One pass over a split.

    Logits (N, classes) and labels (N,), on the CPU, and what the gates did, as in Scores.
    """

    logits: Tensor
    labels: Tensor
    rates: dict[str, list[float]]
    busy: dict[str, float]

    def top(self, k: int) -> float:
        return topk(self.logits, self.labels, k)


def score(
    network: nn.Module,
    batches: Batches,
    progress: Progress = silent,
    label: str = "evaluating",
    total: int | None = None,
) -> Scores:
    """Accuracy and rates of `network`, in evaluation mode, over the batches (images (N, C, H, W),
    labels (N,)).

    Raises: DataError where there are no batches. CheckpointError where logits are not finite.
    Interrupted, from `progress`, between batches.
    """
    seen = predict(network, batches, progress, label, total)
    return Scores(seen.top(1), seen.top(5), len(seen.labels), seen.rates, seen.busy)


def predict(
    network: nn.Module,
    batches: Batches,
    progress: Progress = silent,
    label: str = "evaluating",
    total: int | None = None,
    meter: RateMeter | None = None,
) -> Pass:
    """One pass in evaluation mode; `meter` counts what the gates do, and may see more."""
    device = next(network.parameters()).device
    training = network.training
    logits, labels, meter = [], [], meter or RateMeter()
    with torch.no_grad(), observe(network.eval(), meter), progress.task(label, total) as task:
        for x, y in batches:
            logits.append(network(x.to(device)).float().cpu())
            labels.append(y)
            meter.total += len(y)
            task.advance()
    network.train(training)
    if not logits:
        raise DataError("expected at least one image to evaluate on, but the split is empty")
    nobody_came = {site: [0.0] * gate.units for site, gate in gates_of(network).items()}
    require_finite(torch.cat(logits))
    return Pass(
        torch.cat(logits), torch.cat(labels), {**nobody_came, **meter.rates()}, meter.busy()
    )


@dataclass(frozen=True)
class ExitScore:
    """One exit on a split.

    The share of all images that leave there, top-1 in percent on all images, and on those that
    leave; None where nobody does.
    """

    share: float
    top1_all: float
    top1_chosen: float | None


def score_exits(
    network: Network, batches: Batches, progress: Progress = silent, total: int | None = None
) -> dict[str, ExitScore]:
    """What each exit says of all images, and of those that it lets leave (Herrmann et al. 2018,
    figure 9); empty where there are no exits.
    """
    exits = network.site_exits
    if not exits:
        return {}
    sums = {site: torch.zeros(3) for site in exits}  # right, leaving, right of those leaving
    count = 0
    with torch.no_grad(), progress.task("exits", total) as task:
        for x, y in batches:
            answers, scores, _ = ask_exits(network, x)
            here = torch.ones_like(y, dtype=torch.bool)
            for site, exit_ in exits.items():
                right, leaves = (
                    answers[site].argmax(1).cpu() == y,
                    (scores[site] >= exit_.threshold).cpu() & here,
                )
                sums[site] += torch.stack([right.sum(), leaves.sum(), (right & leaves).sum()])
                here = here & ~leaves
            count += len(y)
            task.advance()
    return {
        site: ExitScore(left / count, 100 * right / count, 100 * both / left if left else None)
        for site, (right, left, both) in ((site, each.tolist()) for site, each in sums.items())
    }


def ask_exits(
    network: Network, images: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What the network says of images (N, C, H, W) with nobody leaving.

    By exit its logits (N, K) and how sure it is (N,), and the logits of the network's own end.
    """
    values, logits = network.at_exits(images.to(network.device))
    answers = {site: exit_.classify(values[site]) for site, exit_ in network.site_exits.items()}
    return (
        answers,
        {
            site: exit_.finite_score(values[site], answers[site]).reshape(-1)
            for site, exit_ in network.site_exits.items()
        },
        logits,
    )


def topk(scores: Tensor, labels: Tensor, k: int) -> float:
    """Percent of rows of scores (N, classes) whose label is among the k largest.

    NaN rows count as wrong.
    """
    best = scores.nan_to_num(-math.inf).topk(min(k, scores.shape[1]), 1).indices
    hits = (best == labels[:, None]).any(1) & ~scores.isnan().any(1)
    return 100 * hits.double().mean().item()
