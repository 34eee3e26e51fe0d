"""Layer gates: per-batch and per-gate targets, ways of deciding, annealing, variable targets."""

from __future__ import annotations

from typing import Any

from claims.claim import Claim, Column, Comparison, Paper, Variant
from claims.differences import AtEqual, Less, Mean
from claims.measures import in_all_ways
from claims.training import FROM_SCRATCH, WARMED

__all__ = ["PAPER"]

EPOCHS = 60
# 2 is AIG's own weight on CIFAR; the rate is the weights' own. Decay alone would close gates.
GATES: dict[str, Any] = {"loss_weight": 2.0, "gate_lr": 0.1, "gate_weight_decay": 0.0}
TARGETS = (0.3, 0.5, 0.7)
CONTROL = "plain"
FAR = (
    "ResNet-20 of nine blocks, {epochs} epochs on 3,000 images; the paper has ResNet-110 and 350"
    " epochs of CIFAR-10, and ResNet-50 and 101 on ImageNet."
)


def variant(name: str, method: str, arch: str = "cifar:resnet20", **settings: Any) -> Variant:
    """A network with gates, from scratch."""
    attach = [{"method": method, **GATES, **settings}]
    return Variant(
        name=name, epochs=EPOCHS, settings={"arch": arch, "attach": attach, "train": FROM_SCRATCH}
    )


def grid(method: str) -> list[str]:
    """The names of a method's variants, by target."""
    return [f"{method}, t = {target}" for target in TARGETS]


def annealed(target: float) -> Variant:
    """With the target lowered from 1 on: it has come down when a quarter of the epochs is over."""
    how: dict[str, Any] = {"anneal_start": 1.0, "anneal_step": 0.05, "anneal_every": 2}
    name = f"annealed to {target}"
    return variant(name, "aig-perbatch", target_rate=target, **how)


def variable(form: str, momentum: float) -> Variant:
    """With a target that follows the network's rate, from .8 on."""
    how: dict[str, Any] = {
        "variable": "exponential",
        "variable_momentum": momentum,
        "loss_form": form,
    }
    name = f"variable, {form}, momentum {momentum:g}"
    return variant(name, "aig-perbatch", target_rate=0.8, **how)


METHODS = ("aig-perbatch", "aig-pergate", "ind-perbatch", "ind-pergate")
GRID = [
    variant(f"{method}, t = {target}", method, target_rate=target)
    for target in TARGETS
    for method in METHODS
]
HIGH = [
    variant(f"aig-perbatch, t = {target}", "aig-perbatch", target_rate=target)
    for target in (0.6, 0.8)
]
ANNEALED = [annealed(0.6), annealed(0.8)]
VARIABLE = [
    variable(form, momentum) for form in ("quadratic", "const-quad") for momentum in (0, 0.9)
]
OF_DEEP = variant("", "ind-perbatch", "cifar:resnet56", target_rate=0.5).settings
DEEP = Variant(
    name="ResNet-56, ind-perbatch, t = 0.5",
    epochs=EPOCHS,
    settings={**OF_DEEP, "train": {**FROM_SCRATCH, **WARMED}},
    seeds=(0,),
)
PLAIN = Variant(
    name=CONTROL, epochs=EPOCHS, settings={"arch": "cifar:resnet20", "train": FROM_SCRATCH}
)
CONSTANT = [*grid("aig-perbatch"), *(each.name for each in HIGH)]
ALL = [name for method in METHODS for name in grid(method)]
ACCURACIES = (
    Column(figure="top1", head="top-1, threshold"),
    Column(figure="top1_new", head="with new fonts"),
    Column(figure="rate", head="rate"),
    Column(figure="macs", head="MMACs", scale=1e-6),
)
SAMPLED = (
    Column(figure="top1_stochastic", head="top-1, stochastic"),
    Column(figure="rate_stochastic", head="rate, stochastic"),
)
OTHERS = (
    Column(figure="top1_ensemble", head="ensemble of 5"),
    Column(figure="top1_always-on", head="always-on"),
)
THIRDS = (
    Column(figure="rate_first", head="rate, first third"),
    Column(figure="rate_last", head="rate, last third"),
)


def at_equal_rate(says: str, ones: list[str], others: list[str]) -> Comparison:
    """Sampled accuracy at the same sampled rate, as the paper's S5.1 has it."""
    of = AtEqual(ones=ones, others=others, figure="top1_stochastic", cost="rate_stochastic")
    return Comparison(says=says, of=of)


def between(method: str, one: str, other: str, expect: str = "more") -> Comparison:
    """Two ways of deciding, over a method's targets."""
    names = grid(method)
    of = Less(
        one=Mean(variants=names, figure=f"top1{one}"),
        other=Mean(variants=names, figure=f"top1{other}"),
    )
    return Comparison(says=method, of=of, expect=expect, margin=0.5)


def late_less_early(name: str) -> Comparison:
    """How much more often the last third of the blocks runs than the first."""
    of = Less(
        one=Mean(variants=[name], figure="rate_last"),
        other=Mean(variants=[name], figure="rate_first"),
    )
    return Comparison(says=name, of=of, margin=0.1, unit="of the images")


EARLY = [f"{method}, t = 0.5" for method in ("aig-perbatch", "ind-perbatch")]
CLAIMS = (
    Claim(
        says="Per-batch targets beat per-gate targets at equal rate.",
        rows=[CONTROL, *ALL],
        columns=(*ACCURACIES, *SAMPLED),
        comparisons=[
            at_equal_rate(
                f"{kind}: per-batch less per-gate, sampled, at equal rate",
                grid(f"{kind}-perbatch"),
                grid(f"{kind}-pergate"),
            )
            for kind in ("aig", "ind")
        ],
        distance=FAR.format(epochs=EPOCHS),
    ),
    Claim(
        says="Deciding by threshold beats sampling.",
        rows=ALL,
        columns=(*ACCURACIES, *SAMPLED),
        comparisons=[between(method, "", "_stochastic") for method in METHODS],
        distance="Not at equal cost: with ind-pergate at t > 1/2 the threshold runs every branch,"
        " as in the paper's own table.",
    ),
    Claim(
        says="An ensemble of five samples is at least as good as the threshold.",
        rows=ALL,
        columns=(*ACCURACIES[:1], *OTHERS),
        comparisons=[between(method, "_ensemble", "", "no less") for method in METHODS],
        distance="The probabilities of five runs are averaged; the paper votes, and its own table"
        " agrees in 7 of 13 rows. Five runs cost five times as much.",
    ),
    Claim(
        says="Annealing the target helps the per-batch loss.",
        rows=[CONTROL, *CONSTANT, *(each.name for each in ANNEALED)],
        columns=(*ACCURACIES, *SAMPLED),
        comparisons=[
            at_equal_rate(
                f"{each.name}, less constant targets at equal rate", [each.name], CONSTANT
            )
            for each in ANNEALED
        ],
        distance="The target is down at epochs 8 and 16 of 60, at the highest learning rate, with"
        " nine gates; the paper anneals ResNet-50 over tens of epochs.",
    ),
    Claim(
        says="A variable target beats a constant one.",
        rows=[CONTROL, *CONSTANT, *(each.name for each in VARIABLE)],
        columns=(*ACCURACIES, *SAMPLED),
        comparisons=[
            at_equal_rate(
                f"{each.name}, less constant targets at equal rate",
                [each.name],
                [*CONSTANT, CONTROL],
            )
            for each in VARIABLE
        ],
        distance="Variable targets start at .8 in every epoch. Where the rate went up to 1, the"
        " plain network is what they are compared with.",
    ),
    Claim(
        says="Early layers are the ones that go.",
        rows=[*EARLY, DEEP.name],
        columns=(*ACCURACIES, *THIRDS),
        comparisons=[late_less_early(name) for name in EARLY],
        distance="Blocks by thirds, which are the three stages; the paper shows each layer of"
        " ResNet-50. ResNet-56 is trained for one seed.",
    ),
)
PAPER = Paper(
    name="layer-gates",
    title="Deep networks with probabilistic gates",
    variants=[PLAIN, *GRID, *HIGH, *ANNEALED, *VARIABLE, DEEP],
    claims=CLAIMS,
    make=in_all_ways,
)
