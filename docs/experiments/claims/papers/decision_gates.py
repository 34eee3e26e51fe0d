"""Decision gates: hinge against cross-entropy on the same features, and thresholds by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import gatecli
from claims.claim import Claim, Column, Comparison, Paper, Variant
from claims.differences import Above, AtEqual, Mean
from claims.measures import on_folds, simple, with_thresholds
from claims.problem import Problem
from claims.training import STARTS, Run
from gatecli.network import Network

__all__ = ["PAPER"]

EPOCHS = 60
DROPS = (0.0, 0.5, 1.0, 2.0, 4.0)  # points of val given up
DECAYS = (1e-4, 1e-3, 1e-2, 3e-2)
RATES = {"hinge": 0.05, "cross-entropy": 0.5}
TRAIN = {"batch_size": 256, "schedule": "cosine", "cache_features": True, "augment": "none"}
NETWORKS = {"ResNet-20": "cifar:resnet20", "ResNet-56": "cifar:resnet56"}
POINTS = tuple(f" at {drop:g}" for drop in DROPS)
ZERO = " at thresholds 0"


def make(run: Run) -> dict[str, Any]:
    """Choose the weight decay by one half of val, the thresholds by the other, and measure."""
    choosing, calibrating = halves(run.problem, run.seed)
    each = [run.train(choosing, weight_decay=decay) for decay in run.settings["decays"]]
    best = max(each, key=lambda trained: thrift(trained.network, choosing))
    found = simple(best, run.problem)
    alone = on_folds(with_thresholds(best.network, math.inf), run.problem)
    full = [fold.top1 for fold in alone]
    found["top1_end"] = full
    for drop, point in zip(DROPS, POINTS, strict=True):
        network = calibrated(best.network, calibrating, drop)
        found |= measured(network, run.problem, point, full)
    by_hand = with_thresholds(best.network, 0.0)
    return {**found, **measured(by_hand, run.problem, ZERO, full)}


def halves(problem: Problem, seed: int) -> tuple[Problem, Problem]:
    """The problem with either half of val, dealt out by the seed."""
    val = problem.data.splits["val"]
    order = torch.randperm(len(val), generator=torch.Generator().manual_seed(seed))
    found = []
    for rows in order.chunk(2):
        splits = {**problem.data.splits, "val": val.take(rows)}
        found.append(replace(problem, data=replace(problem.data, splits=splits)))
    return found[0], found[1]


def calibrated(network: Network, problem: Problem, drop: float) -> Network:
    """With the thresholds that give up so much of val."""
    return gatecli.calibrate_exits(network, problem.data, max_drop=drop).network


def thrift(network: Network, problem: Problem) -> float:
    """The share of the MACs that is saved on val, over the drops."""
    saved = []
    for drop in DROPS:
        found = gatecli.calibrate_exits(network, problem.data, max_drop=drop)
        saved.append(1 - found.point.cost / network.macs_dense)
    return statistics.fmean(saved)


def measured(
    network: Network, problem: Problem, point: str, full: Sequence[float]
) -> dict[str, Any]:
    """Accuracy, how far it is above the network's own, and what is saved."""
    seen = on_folds(network, problem)
    costs = [each.macs_expected for each in seen]
    end = network.macs_dense
    return {
        f"top1{point}": [each.top1 for each in seen],
        f"kept{point}": [each.top1 - one for one, each in zip(full, seen, strict=True)],
        f"macs{point}": statistics.fmean(costs),
        f"saved{point}": [100 * (1 - cost / end) for cost in costs],
        f"times{point}": [end / cost for cost in costs],
    }


def variant(network: str, loss: str) -> Variant:
    """A trained network with exits of one loss."""
    settings = {
        "arch": NETWORKS[network],
        "start": STARTS[network],
        "attach": [{"method": "dgate", "loss": loss, "pool": 4}],
        "train": {**TRAIN, "lr": RATES[loss]},
        "decays": list(DECAYS),
    }
    return Variant(name=f"{network}, {loss}", epochs=EPOCHS, settings=settings)


def at_equal_macs(network: str, points: Sequence[str], says: str) -> Comparison:
    """How much more accurate hinge is at the MACs of cross-entropy."""
    of = AtEqual(
        ones=[f"{network}, hinge"],
        others=[f"{network}, cross-entropy"],
        figure="top1",
        cost="macs",
        points=points,
        reach=1e6,
    )
    return Comparison(says=f"{network}: hinge less cross-entropy at equal MACs, {says}", of=of)


def of_hinge(network: str, figure: str) -> Mean:
    """A figure of the network with hinge exits."""
    return Mean(variants=[f"{network}, hinge"], figure=figure)


def above(says: str, one: Mean, number: float, **expected: Any) -> Comparison:
    """A figure that shall not be below a number of the paper's."""
    return Comparison(says=says, of=Above(one=one, number=number), expect="no less", **expected)


def keeps_accuracy(network: str) -> Comparison:
    """Where no accuracy of val is given up."""
    says = f"{network}: accuracy over the original's, no accuracy of val given up"
    return above(says, of_hinge(network, f"kept{POINTS[0]}"), 0)


def saves_a_fifth(network: str) -> Comparison:
    """What is saved there."""
    says = f"{network}: percent of the MACs saved there, over 20"
    return above(says, of_hinge(network, f"saved{POINTS[0]}"), 20, unit="percent")


def six_times(network: str) -> Comparison:
    """With thresholds of 0."""
    says = f"{network}: times fewer MACs, over 6"
    return above(says, of_hinge(network, f"times{ZERO}"), 6, unit="times", margin=0.5)


def nine_points(network: str) -> Comparison:
    """With thresholds of 0."""
    says = f"{network}: accuracy over the original's less 9 points"
    return above(says, of_hinge(network, f"kept{ZERO}"), -9)


ALL = [f"{network}, {loss}" for network in NETWORKS for loss in RATES]
HINGE = [f"{network}, hinge" for network in NETWORKS]
CURVE = tuple(
    Column(figure=f"{name}{point}", head=f"{head}{point}")
    for point in POINTS
    for name, head in (("top1", "top-1"), ("saved", "% saved"))
)
FAR = (
    "ResNet-20 and ResNet-56 at 16x16 with exits after three stages (after each the map pooled to"
    " 4x4); the paper has ResNet-101 and DenseNet-201 of CIFAR-10 with two or three. The weight"
    " decay is chosen on one half of val, the thresholds on the other; `at 1`: one point of that"
    " half given up."
)
CLAIMS = (
    Claim(
        says="Exits trained by hinge beat those trained by cross-entropy at equal FLOPs.",
        rows=ALL,
        columns=(Column(figure="top1_end", head="with nobody leaving"), *CURVE),
        comparisons=[at_equal_macs(network, POINTS, "all points") for network in NETWORKS],
        distance=FAR,
    ),
    Claim(
        says="The more so, the fewer the FLOPs.",
        rows=ALL,
        columns=CURVE[-4:],
        comparisons=[
            at_equal_macs(network, POINTS[-2:], "where two and four points are given up")
            for network in NETWORKS
        ],
        distance=FAR,
    ),
    Claim(
        says="At a fifth fewer FLOPs the accuracy is the original's.",
        rows=HINGE,
        columns=(Column(figure="top1_end", head="with nobody leaving"), *CURVE[:4]),
        comparisons=[*map(keeps_accuracy, NETWORKS), *map(saves_a_fifth, NETWORKS)],
        distance=FAR,
    ),
    Claim(
        says="Thresholds of 0 take six times fewer FLOPs for nine points of accuracy.",
        rows=HINGE,
        columns=(
            Column(figure="top1_end", head="with nobody leaving"),
            Column(figure=f"top1{ZERO}", head="at thresholds 0"),
            Column(figure=f"times{ZERO}", head="times fewer MACs"),
        ),
        comparisons=[*map(six_times, NETWORKS), *map(nine_points, NETWORKS)],
        distance=FAR,
    ),
)
PAPER = Paper(
    name="decision-gates",
    title="Dynamic representations toward efficient inference by decision gates",
    variants=[variant(network, loss) for network in NETWORKS for loss in RATES],
    claims=CLAIMS,
    make=make,
)
