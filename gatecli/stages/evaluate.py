"""Accuracy and cost of a network on one split, by one of five ways of deciding.

They are `threshold` (run where P(on) > threshold, 1/2 unless calibrated), `stochastic` (sample;
mean and deviation over 5 runs), `always-on`, and two that ask 5 stochastic runs together:
`ensemble` takes the mean of their class probabilities, `vote` the class that most of them name, as
the authors do; of classes with equally many votes, the one of the greater mean probability.

Reference: Herrmann et al. 2018, section 3.2.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from gatecli import together
from gatecli.data import DataSet, Split, Walk, batches, steps
from gatecli.data.augment import generator
from gatecli.data.walk import DEALT
from gatecli.errors import SettingError
from gatecli.gates.decider import STRATEGIES
from gatecli.gates.noise import Noise, draw_from
from gatecli.gates.observe import strategy as deciding
from gatecli.network import Network
from gatecli.network.costs import CostMeter, expected_macs, spread_of
from gatecli.progress import Progress, silent
from gatecli.stages.predict import ExitScore, Pass, predict, score_exits, topk

__all__ = ["Evaluation", "count_ties", "evaluate", "votes"]

ENSEMBLES = ("ensemble", "vote")
ALL_STRATEGIES = (*STRATEGIES, *ENSEMBLES)
RUNS = 5
DECISIONS = 5  # what a generator is for, beside those of gatecli.data.augment


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a split.

    Attributes:
        split: Its name.
        strategy: How the gates decided.
        samples: How many images there are.
        top1: Percent; of several runs the mean.
        top5: Likewise.
        macs_expected: Mean MACs of one image; for `ensemble` and `vote` all runs' together.
        rates: Each unit's rate, by site.
        top1_std: For `stochastic`, the runs' standard deviation.
        ties: For `vote`, the images for which several classes had the most votes.
        exits: For `threshold`, what each exit says of all images and of those that leave there.
        macs_spread: How single images' MACs lie, where there are gates (see
            gatecli.network.costs.spread_of).
    """

    split: str
    strategy: str
    samples: int
    top1: float
    top5: float
    macs_expected: float
    rates: dict[str, list[float]]
    top1_std: float | None = None
    ties: int | None = None
    exits: dict[str, ExitScore] = field(default_factory=dict)
    macs_spread: dict[str, float] = field(default_factory=dict)


def evaluate(  # noqa: PLR0913 - its command's options, by keyword
    network: Network,
    data: DataSet,
    *,
    split: str = "val",
    strategy: str = "threshold",
    batch_size: int = 256,
    workers: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate `network` on a split.

    Args:
        network: With its input normalisation known (see gatecli.stages.fit).
        data: Has the split.
        split: Its name.
        strategy: How the gates decide, one of ALL_STRATEGIES.
        batch_size: Images at a time.
        workers: Processes that read images; None: as many as help.
        seed: Of the first run, where gates are sampled; each further one has the next.
        progress: Is told of each batch.

    Raises:
        SettingError: There is no such strategy.
    """
    if strategy not in ALL_STRATEGIES:
        raise SettingError(
            f"expected --strategy to be one of {', '.join(ALL_STRATEGIES)}, but got `{strategy}`"
        )
    images = _Images(network, data.splits[split], batch_size, workers)
    label = f"{strategy} on {split}"
    runs = _run(network, images, strategy, label, seed, progress)
    passes = [each.seen for each in runs]
    labels = passes[0].labels
    top1, top5 = _accuracy(passes, strategy)
    top1_std = None
    if strategy == "stochastic":
        top1_std = statistics.stdev([each.top(1) for each in passes])
    exits = {}
    if strategy == "threshold":
        exits = score_exits(network, images.batches(), progress, images.steps)
    times = RUNS if strategy in ENSEMBLES else 1  # how often an image is computed
    macs = [expected_macs(network, each.rates, each.busy) for each in passes]
    costs = torch.stack([each.costs for each in runs]).mean(0) * times
    return Evaluation(
        split=split,
        strategy=strategy,
        samples=len(labels),
        top1=top1,
        top5=top5,
        macs_expected=times * statistics.fmean(macs),
        rates=_mean_rates(passes),
        top1_std=top1_std,
        ties=count_ties(_answers(passes)) if strategy == "vote" else None,
        exits=exits,
        macs_spread=spread_of(costs) if len(costs) else {},
    )


class _Images:
    """A split in batches for a network, as often as they are asked for; processes share them."""

    def __init__(
        self, network: Network, split: Split, batch_size: int, workers: int | None
    ) -> None:
        self.network = network
        self.split = split
        self.batch_size = batch_size
        self.workers = workers
        self.steps = -(-steps(split, batch_size) // together.count())

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(
            self.split,
            input=self.network.input,
            batch_size=self.batch_size,
            walk=Walk(divided=DEALT, device=self.network.device),
            workers=self.workers,
        )


@dataclass(frozen=True)
class _Run:
    """One pass, and the MACs of each image in it, (N,), or (0,) without gates."""

    seen: Pass
    costs: Tensor


def _run(
    network: Network,
    images: _Images,
    strategy: str,
    label: str,
    seed: int,
    progress: Progress,
) -> list[_Run]:
    """Pass over the images, once, or RUNS times where gates are sampled."""
    several = strategy in ("stochastic", *ENSEMBLES)
    runs = []
    with deciding(network, "stochastic" if several else strategy):
        for number in range(RUNS if several else 1):
            meter = CostMeter(network)
            name = f"{label}, run {number + 1}/{RUNS}" if several else label
            drawn = _drawing(images.batches(), network.device, seed + number)
            seen = predict(network, drawn, progress, name, images.steps, meter)
            runs.append(_Run(seen=seen, costs=meter.costs()))
    return runs


def _drawing(
    dealt: Iterable[tuple[Tensor, Tensor]], device: torch.device, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches dealt to this process; what gates draw for one is a function of its number.

    So it is the same however many processes share them.
    """
    for turn, (x, y) in enumerate(dealt):
        place = together.rank() + turn * together.count()
        chance = generator(DECISIONS, seed, 0, place).initial_seed()
        own = torch.Generator(device).manual_seed(chance)
        with draw_from(Noise(generator=own, start=0, here=len(x), total=len(x))):
            yield x, y


def _accuracy(passes: list[Pass], strategy: str) -> tuple[float, float]:
    """Top-1 and top-5 in percent: of what the runs say together, or the runs' means."""
    if strategy in ENSEMBLES:
        labels, answers = passes[0].labels, _answers(passes)
        scores = votes(answers) if strategy == "vote" else answers.mean(0)
        return topk(scores, labels, 1), topk(scores, labels, 5)
    top1 = statistics.fmean(each.top(1) for each in passes)
    top5 = statistics.fmean(each.top(5) for each in passes)
    return top1, top5


def _answers(passes: list[Pass]) -> Tensor:
    """Each run's class probabilities: (runs, N, K)."""
    return torch.stack([each.logits.double().softmax(1) for each in passes])


def votes(answers: Tensor) -> Tensor:
    """Rank classes by how many runs find them the likeliest, and then by mean probability.

    Args:
        answers: Each run's class probabilities (runs, N, K).

    Returns:
        Scores (N, K): the number of votes, and less than one vote for the mean probability.
    """
    return _count(answers) + answers.mean(0) / 2


def count_ties(answers: Tensor) -> int:
    """For how many images several classes have the most votes: answers (runs, N, K)."""
    counts = _count(answers)
    most = counts.amax(1, keepdim=True)
    return int(((counts == most).sum(1) > 1).sum())


def _count(answers: Tensor) -> Tensor:
    """Each class's votes: (runs, N, K) -> (N, K)."""
    classes = answers.shape[2]
    return F.one_hot(answers.argmax(2), classes).sum(0).to(answers.dtype)


def _mean_rates(passes: list[Pass]) -> dict[str, list[float]]:
    """Each unit's mean rate over the passes, by site."""
    rates = {}
    for site in passes[0].rates:
        by_unit = zip(*(each.rates[site] for each in passes), strict=True)
        rates[site] = [statistics.fmean(unit) for unit in by_unit]
    return rates
