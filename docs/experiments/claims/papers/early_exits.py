"""Early exits by probabilistic gates, trained with the network from scratch."""

from __future__ import annotations

import math
import statistics
from typing import Any

from claims.claim import Claim, Column, Comparison, Paper, Variant
from claims.differences import Above, Less, Mean
from claims.measures import on_folds, simple, with_thresholds
from claims.training import FROM_SCRATCH, Run
from gatecli.stages.evaluate import Evaluation

__all__ = ["PAPER"]

EPOCHS = 60
EXITS = {
    "method": "early-exit",
    "width": 16,
    "target_rate": 0.3,
    "loss_weight": 2.0,
    "supervise": 1.0,
    "supervise_end": 1.0,
    "gate_lr": 0.1,
}
LAYERS = {
    "method": "ind-perbatch",
    "target_rate": 0.9,
    "loss_weight": 2.0,
    "gate_weight_decay": 0.0,
    "gate_lr": 0.1,
}
NETWORKS = {"ResNet-20": "cifar:resnet20", "DenseNet-22": "claims.networks:densenet22"}
ALL = ("exits", "exits and layer gates")
KINDS: dict[str, list[dict[str, Any]]] = {
    "plain": [],
    "exits": [EXITS],
    "exits and layer gates": [LAYERS, EXITS],
}


def make(run: Run) -> dict[str, Any]:
    """Train, and measure the network, its end alone, and each exit on all and on its own images."""
    trained, problem = run.train(), run.problem
    found = simple(trained, problem)
    end = on_folds(with_thresholds(trained.network, math.inf), problem)
    found["top1_end"] = [each.top1 for each in end]
    return {**found, **exits(on_folds(trained.network, problem))}


def exits(seen: list[Evaluation]) -> dict[str, Any]:
    """Each exit's share, and how often it is right, on all and on those that leave; by number."""
    found: dict[str, Any] = {}
    if seen[0].exits:
        found["leave"] = [100 * sum(each.share for each in fold.exits.values()) for fold in seen]
    for number, site in enumerate(seen[0].exits, 1):
        each = [fold.exits[site] for fold in seen]
        found[f"share_{number}"] = 100 * statistics.fmean(fold.share for fold in each)
        found[f"all_{number}"] = [fold.top1_all for fold in each]
        if all(fold.top1_chosen is not None for fold in each):
            found[f"chosen_{number}"] = [fold.top1_chosen for fold in each]
    return found


def variant(network: str, kind: str) -> Variant:
    """A network with what is attached to it, from scratch."""
    attach = KINDS[kind]
    together = {"train": ",".join(each["method"] for each in reversed(attach))} if attach else {}
    settings = {"arch": NETWORKS[network], "attach": attach, "train": {**FROM_SCRATCH, **together}}
    return Variant(name=f"{network}, {kind}", epochs=EPOCHS, settings=settings)


def figure(network: str, kind: str, name: str) -> Mean:
    """One figure of one network."""
    return Mean(variants=[f"{network}, {kind}"], figure=name)


def less(says: str, one: Mean, other: Mean, **expected: Any) -> Comparison:
    """The difference of two of them."""
    return Comparison(says=says, of=Less(one=one, other=other), **expected)


def costs(network: str, kind: str) -> Comparison:
    """What leaving early costs the same network."""
    return less(
        f"{network}, {kind}, less the same network with nobody leaving",
        figure(network, kind, "top1"),
        figure(network, kind, "top1_end"),
        expect="no less",
    )


def leaving(network: str) -> Comparison:
    """Whether anybody leaves at all."""
    of = Above(one=figure(network, "exits", "leave"), number=20)
    return Comparison(
        says=f"{network}: percent of images that leave early, over 20", of=of, unit="percent"
    )


def rows(*kinds: str) -> list[str]:
    """The variants' names."""
    return [f"{network}, {kind}" for network in NETWORKS for kind in kinds]


COLUMNS = (
    Column(figure="top1", head="top-1"),
    Column(figure="top1_new", head="with new fonts"),
    Column(figure="top1_end", head="with nobody leaving"),
    Column(figure="macs", head="MMACs", scale=1e-6),
    Column(figure="macs_dense", head="of", scale=1e-6),
)
EACH = tuple(
    Column(figure=f"{name}_{number}", head=f"exit {number}: {head}")
    for number in (1, 2)
    for name, head in (("share", "% leave"), ("all", "top-1 of all"), ("chosen", "of those"))
)
FAR = (
    f"{EPOCHS} epochs on 3,000 images of ten classes, exits of 16 channels; the paper trains"
    " DenseNet-BC of 121 layers and more on CIFAR-10 and ImageNet with 128."
)
CLAIMS = (
    Claim(
        says="An exit is right far more often on the images that it chooses than on all.",
        rows=rows(*ALL),
        columns=(*COLUMNS[:2], *EACH),
        comparisons=[
            less(
                f"{network}, exit {number}: those that leave less all",
                figure(network, "exits", f"chosen_{number}"),
                figure(network, "exits", f"all_{number}"),
            )
            for network in NETWORKS
            for number in (1, 2)
        ],
        distance=FAR,
    ),
    Claim(
        says="Leaving early costs little accuracy.",
        rows=rows("plain", *ALL),
        columns=(*COLUMNS, Column(figure="leave", head="% leave")),
        comparisons=[
            *map(leaving, NETWORKS),
            *(costs(network, kind) for network in NETWORKS for kind in ALL),
        ],
        distance=FAR,
    ),
    Claim(
        says="Exits in the middle harm the end of a ResNet.",
        rows=["ResNet-20, plain", "ResNet-20, exits"],
        columns=COLUMNS,
        comparisons=[
            less(
                "ResNet-20: plain less the end of the one with exits",
                figure("ResNet-20", "plain", "top1"),
                figure("ResNet-20", "exits", "top1_end"),
            )
        ],
        distance=FAR,
    ),
    Claim(
        says="They do not harm that of a DenseNet.",
        rows=["DenseNet-22, plain", "DenseNet-22, exits"],
        columns=COLUMNS,
        comparisons=[
            less(
                "DenseNet-22: the end of the one with exits less plain",
                figure("DenseNet-22", "exits", "top1_end"),
                figure("DenseNet-22", "plain", "top1"),
                expect="no less",
            )
        ],
        distance=FAR,
    ),
)
PAPER = Paper(
    name="early-exits",
    title="Early exits (Deep networks with probabilistic gates, section 5)",
    variants=[variant(network, kind) for network in NETWORKS for kind in KINDS],
    claims=CLAIMS,
    make=make,
)
