"""Run a network over a split: accuracy, and how often each unit ran."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatecli import together
from gatecli.errors import DataError
from gatecli.gates.observe import RateMeter, gates_of, observe
from gatecli.network import Network
from gatecli.network.compare import require_finite
from gatecli.progress import Progress, silent

__all__ = ["ExitScore", "Pass", "Scores", "ask_exits", "predict", "score", "score_exits", "topk"]

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Scores:
    """Accuracy on a split, and how often the gates let anything run.

    Attributes:
        top1: Percent.
        top5: Percent.
        samples: How many images there are.
        rates: Of each unit of each gated site.
        busy: For sites of several units, the share of images for which any of them ran.
    """

    top1: float
    top5: float
    samples: int
    rates: dict[str, list[float]]
    busy: dict[str, float]


@dataclass(frozen=True)
class Pass:
    """One pass over a split.

    Attributes:
        logits: (N, classes), on the CPU.
        labels: (N,), on the CPU.
        rates: As in Scores.
        busy: As in Scores.
    """

    logits: Tensor
    labels: Tensor
    rates: dict[str, list[float]]
    busy: dict[str, float]

    def top(self, k: int) -> float:
        """Percent of images whose label is among the k likeliest classes."""
        return topk(self.logits, self.labels, k)


def score(
    network: nn.Module,
    batches: Batches,
    progress: Progress = silent,
    label: str = "evaluating",
    total: int | None = None,
) -> Scores:
    """Accuracy and rates of `network` in evaluation mode.

    Args:
        network: (N, C, H, W) -> logits (N, classes).
        batches: Images (N, C, H, W) and labels (N,).
        progress: Is told of each batch.
        label: What it is told.
        total: How many batches there are.

    Raises:
        DataError: There are no batches.
        CheckpointError: Logits are not finite.
        Interrupted: From `progress`, between batches.
    """
    seen = predict(network, batches, progress, label, total)
    return Scores(
        top1=seen.top(1),
        top5=seen.top(5),
        samples=len(seen.labels),
        rates=seen.rates,
        busy=seen.busy,
    )


def predict(
    network: nn.Module,
    batches: Batches,
    progress: Progress = silent,
    label: str = "evaluating",
    total: int | None = None,
    meter: RateMeter | None = None,
) -> Pass:
    """One pass in evaluation mode; `meter` counts what the gates do, and may see more.

    Otherwise as `score`. Of several processes each is given some of the batches, as they are dealt
    (gatecli.data.splits.DEALT), and all get what they have seen together.
    """
    device = next(network.parameters()).device
    training = network.training
    logits = []
    labels = []
    meter = meter or RateMeter()
    with torch.no_grad(), observe(network.eval(), meter), progress.task(label, total) as task:
        for x, y in batches:
            logits.append(network(x.to(device)).float().cpu())
            labels.append(y)
            meter.total += len(y)
            task.advance()
    network.train(training)
    together.agree_to_go_on(progress)
    logits = together.in_order(logits)
    labels = together.in_order(labels)
    if not logits:
        raise DataError("expected at least one image to evaluate on, but the split is empty")
    if together.count() > 1:
        meter.gather()
    nobody_came = {site: [0.0] * gate.units for site, gate in gates_of(network).items()}
    require_finite(torch.cat(logits))
    return Pass(
        logits=torch.cat(logits),
        labels=torch.cat(labels),
        rates={**nobody_came, **meter.rates()},
        busy=meter.busy(),
    )


@dataclass(frozen=True)
class ExitScore:
    """One exit on a split.

    Attributes:
        share: Of all images, those that leave there.
        top1_all: Percent, on all images.
        top1_chosen: Percent, on those that leave there; None where nobody does.
    """

    share: float
    top1_all: float
    top1_chosen: float | None


def score_exits(
    network: Network, batches: Batches, progress: Progress = silent, total: int | None = None
) -> dict[str, ExitScore]:
    """What each exit says of all images, and of those that it lets leave.

    Empty where there are no exits. Arguments as of `score`.

    Reference: Herrmann et al. 2018, figure 9.
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
            for site, gate in exits.items():
                right = answers[site].argmax(1).cpu() == y
                leaves = (scores[site] >= gate.threshold).cpu() & here
                sums[site] += torch.stack([right.sum(), leaves.sum(), (right & leaves).sum()])
                here = here & ~leaves
            count += len(y)
            task.advance()
    together.agree_to_go_on(progress)
    count = sum(together.gathered(count))
    whole = {site: together.summed(each).tolist() for site, each in sums.items()}
    return {site: _exit_score(*each, count=count) for site, each in whole.items()}


def _exit_score(right: float, left: float, both: float, *, count: int) -> ExitScore:
    """The score of an exit that is right on `right` of `count` images, where `left` leave."""
    return ExitScore(
        share=left / count,
        top1_all=100 * right / count,
        top1_chosen=100 * both / left if left else None,
    )


def ask_exits(
    network: Network, images: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """What the network says of images (N, C, H, W) with nobody leaving.

    Returns:
        By exit its logits (N, K), by exit how sure it is (N,), and the final classifier's logits.
    """
    weights = next(network.parameters())  # a network in half precision takes such images here
    values, logits = network.at_exits(images.to(weights.device, weights.dtype))
    answers = {}
    sure = {}
    for site, gate in network.site_exits.items():
        answers[site] = gate.classify(values[site])
        sure[site] = gate.finite_score(values[site], answers[site]).reshape(-1).float()
    return answers, sure, logits.float()


def topk(scores: Tensor, labels: Tensor, k: int) -> float:
    """Percent of rows of scores (N, classes) whose label is among the k largest.

    NaN rows count as wrong.
    """
    best = scores.nan_to_num(-math.inf).topk(min(k, scores.shape[1]), 1).indices
    hits = (best == labels[:, None]).any(1) & ~scores.isnan().any(1)
    return 100 * hits.double().mean().item()
