"""GateConnect: learned connectivity against full, random and real-valued."""

from __future__ import annotations

from typing import Any

import gatecli
from claims.claim import Claim, Column, Comparison, Paper, Variant
from claims.differences import Above, Less, Mean
from claims.measures import simple
from claims.training import Run, Trained

__all__ = ["PAPER"]

EPOCHS = 48
PHASES = "0.42,0.32,0.13,0.13"  # joint, then the weights alone
GATE_LR = 1.0  # a plain step; the paper's is .2 for fifty times as many
ARCH = "cifar:resnext20_8x4d"
TRAIN = {
    "lr": 0.05,
    "batch_size": 64,
    "weight_decay": 5e-4,
    "schedule": "step",
    "bn_batches": 46,
    "channels_last": False,  # it would take this network twice as long, unlike the others
}
PLAIN = "plain ResNeXt"


def make(run: Run) -> dict[str, Any]:
    """Train, prune, and measure both."""
    trained = run.train()
    found = simple(trained, run.problem)
    if not trained.network.gated_by:
        return {**found, "params_pruned": found["params"], "gone": 0.0}
    pruned = gatecli.prune(trained.network).network
    small = simple(Trained(network=pruned, history=trained.history), run.problem)
    gone = 100 * (1 - small["params"] / found["params"])
    return {**found, "params_pruned": small["params"], "gone": gone}


def variant(name: str, fan_in: int, **settings: Any) -> Variant:
    """A ResNeXt with gates between its branches, from scratch."""
    gates = {"fan_in": fan_in, "phases": PHASES, "gate_lr": GATE_LR}
    attach = [{"method": "gateconnect", **gates, **settings}]
    return Variant(
        name=name, epochs=EPOCHS, settings={"arch": ARCH, "attach": attach, "train": TRAIN}
    )


VARIANTS = (
    Variant(
        name=PLAIN,
        epochs=EPOCHS,
        settings={"arch": ARCH, "train": {**TRAIN, "milestones": [0.74, 0.87], "keep": "last"}},
    ),
    variant("full, K = 8", 8),
    variant("learned, K = 4", 4),
    variant("random, K = 4", 4, connectivity="random"),
    variant("real-valued", 4, connectivity="real"),
    variant("learned, K = 1", 1),
)
COLUMNS = (
    Column(figure="top1", head="top-1"),
    Column(figure="top1_new", head="with new fonts"),
    Column(figure="params", head="k parameters", form=".1f", scale=1e-3),
    Column(figure="params_pruned", head="pruned", form=".1f", scale=1e-3),
    Column(figure="gone", head="% pruned", form=".1f"),
)
FAR = (
    f"ResNeXt {{20, 4, 8}} at 16x16, {EPOCHS} epochs on 3,000 images of ten classes; the paper"
    " trains it and larger ones for 320 epochs on CIFAR-100. The identity is carried as the mean."
)


def less(one: str, other: str, expect: str = "more") -> Comparison:
    """The accuracy of one variant less another's."""
    of = Less(one=Mean(variants=[one], figure="top1"), other=Mean(variants=[other], figure="top1"))
    return Comparison(says=f"{one} less {other}", of=of, expect=expect)


CLAIMS = (
    Claim(
        says="K = C/2 beats full and random connectivity at equal parameters.",
        rows=[PLAIN, "full, K = 8", "learned, K = 4", "random, K = 4"],
        columns=COLUMNS,
        comparisons=[
            less("learned, K = 4", "full, K = 8"),
            less("learned, K = 4", "random, K = 4"),
        ],
        distance=FAR,
    ),
    Claim(
        says="K = 1 matches full connectivity with a quarter to two fifths fewer parameters.",
        rows=["full, K = 8", "learned, K = 1"],
        columns=COLUMNS,
        comparisons=[
            less("learned, K = 1", "full, K = 8", "no less"),
            Comparison(
                says="percent of the parameters pruned, over 24",
                of=Above(one=Mean(variants=["learned, K = 1"], figure="gone"), number=24),
                expect="no less",
                unit="percent",
            ),
        ],
        distance=FAR,
    ),
    Claim(
        says="Binary gates beat real-valued ones.",
        rows=["learned, K = 4", "real-valued"],
        columns=COLUMNS,
        comparisons=[less("learned, K = 4", "real-valued")],
        distance=FAR,
    ),
)
PAPER = Paper(
    name="gateconnect",
    title="Connectivity learning in multi-branch networks",
    variants=VARIANTS,
    claims=CLAIMS,
    make=make,
)
