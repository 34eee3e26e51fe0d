"""GaterNet: against the plain, the widened and the squeeze-and-excitation network."""

from __future__ import annotations

from typing import Any

from claims.claim import Claim, Column, Comparison, Paper, Variant
from claims.differences import Best, Less, Mean
from claims.measures import simple
from claims.training import ALONE, STARTS, Run
from gatecli.data import batches
from gatecli.stages.analyse import Use, analyse

__all__ = ["PAPER"]

EPOCHS = 60
TRAIN = {**ALONE, "lr": 0.05, "keep": "last"}
# Statistics are those of the network that evaluation runs: gates on in training are drawn.
JOINT = {**TRAIN, "bn_batches": 46, "bn_gates": "decided"}
NETWORKS = {"ResNet-20": "cifar:resnet20", "ResNet-56": "cifar:resnet56"}
WEIGHTS = {"ResNet-20": (0.03, 0.1, 0.3, 1.0), "ResNet-56": (0.03, 0.3)}
GATE_LR = 0.2
PLAIN, WIDER, SE = "plain", "widened", "squeeze-and-excitation"
BASELINES = {WIDER: "wider", SE: "se"}


def make(run: Run) -> dict[str, Any]:
    """Train; accuracy, and what the gates do."""
    trained = run.train()
    found = simple(trained, run.problem)
    if not trained.network.gated_by:
        return found
    val = run.problem.data.splits["val"]
    images = batches(val, input=trained.network.input, batch_size=256)
    return {**found, **gates(analyse(trained.network, images))}


def gates(use: Use) -> dict[str, float]:
    """Which gates are always off and which go by the image, early and late; how alike they are."""
    third = len(use.sites) // 3
    found = {}
    for name, sites in {"first": use.sites[:third], "last": use.sites[-third:]}.items():
        units = sum(site.units for site in sites)
        found[f"off_{name}"] = 100 * sum(site.off for site in sites) / units
        found[f"dependent_{name}"] = 100 * sum(site.dependent for site in sites) / units
    alike = use.alike
    if alike.within is not None and alike.between is not None:
        found |= {"within": alike.within, "between": alike.between}
    return found


def gated(network: str, weight: float) -> Variant:
    """The trained network with a trained gater."""
    settings = {
        "arch": NETWORKS[network],
        "start": STARTS[network],
        "gater": {"arch": "cifar:resnet20", **STARTS["ResNet-20"]},
        "attach": [
            {"method": "gaternet", "l1_weight": weight, "gate_lr": GATE_LR, "start": "drawn"}
        ],
        "train": JOINT,
    }
    return Variant(name=f"{network}, l1_weight {weight:g}", epochs=EPOCHS, settings=settings)


def control(network: str, kind: str) -> Variant:
    """A network without gates, with as many epochs in all."""
    settings: dict[str, Any] = {
        "arch": NETWORKS[network],
        "start": STARTS[network],
        "train": TRAIN,
    }
    if kind in BASELINES:
        named = {"name": NETWORKS[network], "baseline": BASELINES[kind]}
        settings |= {"arch": "baselines:build", "arch_args": named}
    return Variant(name=f"{network}, {kind}", epochs=EPOCHS, settings=settings)


def names(network: str) -> list[str]:
    """The gated variants' names."""
    return [f"{network}, l1_weight {weight:g}" for weight in WEIGHTS[network]]


def over(network: str, kind: str) -> Comparison:
    """The gated network that val prefers, less a control."""
    of = Less(
        one=Best(variants=names(network), figure="top1"),
        other=Mean(variants=[f"{network}, {kind}"], figure="top1"),
    )
    return Comparison(says=f"{network}, the l1_weight that val prefers, less {kind}", of=of)


def between(network: str, one: str, other: str, says: str, unit: str) -> Comparison:
    """Two figures of all gated variants of a network."""
    of = Less(
        one=Mean(variants=names(network), figure=one),
        other=Mean(variants=names(network), figure=other),
    )
    return Comparison(says=f"{network}: {says}", of=of, unit=unit)


COLUMNS = (
    Column(figure="top1", head="top-1"),
    Column(figure="top1_new", head="with new fonts"),
    Column(figure="val_top1", head="on val"),
    Column(figure="params", head="M parameters", scale=1e-6),
    Column(figure="macs", head="MMACs", scale=1e-6),
    Column(figure="rate", head="rate"),
)
PLACES = tuple(
    Column(figure=f"{name}_{place}", head=f"% {head}, {place} third", form=".1f")
    for name, head in (("off", "always off"), ("dependent", "by the image"))
    for place in ("first", "last")
)
GATED = [name for network in NETWORKS for name in names(network)]
FAR = (
    "ResNet-20 and ResNet-56 with a ResNet-20 as gater, each trained for 60 epochs and then 60 more"
    " together on 3,000 images; the paper trains ResNet-20, 56 and 164 on CIFAR for hundreds, and"
    " says that shallow backbones only tie with wider ones."
)


def rows(*kinds: str) -> list[str]:
    """Controls and gated variants, network by network."""
    found = []
    for network in NETWORKS:
        found += [f"{network}, {kind}" for kind in kinds]
        found += names(network)
    return found


CLAIMS = (
    Claim(
        says="The gated network beats the plain one.",
        rows=rows(PLAIN),
        columns=COLUMNS,
        comparisons=[over(network, PLAIN) for network in NETWORKS],
        distance=FAR,
    ),
    Claim(
        says="It beats the widened one and squeeze-and-excitation on deep backbones.",
        rows=rows(WIDER, SE),
        columns=COLUMNS,
        comparisons=[over("ResNet-56", kind) for kind in (WIDER, SE)],
        distance=FAR,
    ),
    Claim(
        says="Gates that are always off are in shallow layers.",
        rows=GATED,
        columns=PLACES,
        comparisons=[
            between(network, "off_first", "off_last", "always off, first less last third", "%")
            for network in NETWORKS
        ],
        distance=FAR,
    ),
    Claim(
        says="Gates that depend on the image are in deep layers.",
        rows=GATED,
        columns=PLACES,
        comparisons=[
            between(
                network, "dependent_last", "dependent_first", "by the image, last less first", "%"
            )
            for network in NETWORKS
        ],
        distance=FAR,
    ),
    Claim(
        says="Images of one class use similar gates.",
        rows=GATED,
        columns=(
            Column(figure="within", head="gates that differ, one class"),
            Column(figure="between", head="two classes"),
        ),
        comparisons=[
            between(network, "between", "within", "two classes less one", "gates")
            for network in NETWORKS
        ],
        distance=FAR,
    ),
)
PAPER = Paper(
    name="gaternet",
    title="You look twice: GaterNet for dynamic filter selection in CNNs",
    variants=[
        *(control(network, kind) for network in NETWORKS for kind in (PLAIN, WIDER, SE)),
        *(gated(network, weight) for network in NETWORKS for weight in WEIGHTS[network]),
    ],
    claims=CLAIMS,
    make=make,
)
