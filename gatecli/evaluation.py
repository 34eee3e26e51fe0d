"""eval: accuracy and cost of a checkpoint on one split, by one of four ways of deciding.

Herrmann et al. 2018, section 3.2: `threshold` (run where P(on) > threshold, 1/2 unless calibrated),
`stochastic` (sample; mean and deviation over 5 runs), `always-on`, `ensemble` (the mean of the
class probabilities of 5 stochastic runs).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import torch

from gatecli.data import DataSet, batches, steps
from gatecli.errors import SettingError
from gatecli.gates import STRATEGIES
from gatecli.inference import ExitScore, Pass, predict, score_exits, topk
from gatecli.network import Network
from gatecli.network.costs import CostMeter, expected_macs, spread_of
from gatecli.progress import Progress, silent
from gatecli.record import strategy as deciding

ALL_STRATEGIES = (*STRATEGIES, "ensemble")
RUNS = 5


@dataclass(frozen=True)
class Evaluation:
    """Percent right on `split`.

    MACs of one image, averaged over it (all runs' together for `ensemble`); each unit's rate;
    for `threshold`, what each exit says of all images and of those that leave there; how single
    images' MACs lie (see gatecli.network.costs.spread_of), where there are gates.
    """

    split: str
    strategy: str
    samples: int
    top1: float
    top5: float
    macs_expected: float
    rates: dict[str, list[float]]
    top1_std: float | None = None
    exits: dict[str, ExitScore] = field(default_factory=dict)
    macs_spread: dict[str, float] = field(default_factory=dict)


def evaluate(
    network: Network,
    data: DataSet,
    *,
    split: str = "val",
    strategy: str = "threshold",
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate `network` on a split that `data` has, its input normalisation being known (see
    gatecli.inputs). Raises SettingError.
    """
    if strategy not in ALL_STRATEGIES:
        raise SettingError(
            f"expected --strategy to be one of {', '.join(ALL_STRATEGIES)}, but got `{strategy}`"
        )
    several = strategy in ("stochastic", "ensemble")
    total = steps(data.splits[split], batch_size)
    passes: list[Pass] = []
    meters: list[CostMeter] = []
    with deciding(network, "stochastic" if several else strategy):
        for run in range(RUNS if several else 1):
            torch.manual_seed(seed + run)
            meters.append(CostMeter(network))
            images = batches(
                data.splits[split], input=network.input, batch_size=batch_size, workers=workers
            )
            passes.append(
                predict(
                    network,
                    images,
                    progress,
                    f"{strategy} on {split}" + (f", run {run + 1}/{RUNS}" if several else ""),
                    total,
                    meters[-1],
                )
            )
    labels = passes[0].labels
    rates = {
        site: [
            statistics.fmean(unit)
            for unit in zip(*(each.rates[site] for each in passes), strict=True)
        ]
        for site in passes[0].rates
    }
    macs = statistics.fmean(expected_macs(network, each.rates, each.busy) for each in passes)
    costs = torch.stack([meter.costs() for meter in meters]).mean(0) * (
        RUNS if strategy == "ensemble" else 1
    )
    single = spread_of(costs) if len(costs) else {}
    if strategy == "ensemble":
        mean = torch.stack([each.logits.softmax(1) for each in passes]).mean(0)
        return Evaluation(
            split,
            strategy,
            len(labels),
            topk(mean, labels, 1),
            topk(mean, labels, 5),
            RUNS * macs,
            rates,
            macs_spread=single,
        )
    top1s = [each.top(1) for each in passes]
    spread = statistics.stdev(top1s) if strategy == "stochastic" else None
    exits = (
        score_exits(
            network,
            batches(
                data.splits[split], input=network.input, batch_size=batch_size, workers=workers
            ),
            progress,
            total,
        )
        if strategy == "threshold"
        else {}
    )
    return Evaluation(
        split,
        strategy,
        len(labels),
        statistics.fmean(top1s),
        statistics.fmean(each.top(5) for each in passes),
        macs,
        rates,
        spread,
        exits,
        single,
    )
