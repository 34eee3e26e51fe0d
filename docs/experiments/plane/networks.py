"""What is trained: one source, each method on it for as many epochs, and plain networks beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from claims.claim import Paper, Variant
from claims.measures import simple
from claims.problem import Problem
from claims.training import Run, Trained

import gatecli
from gatecli.checkpoint import write
from gatecli.network import Network

__all__ = ["PAPER", "kept"]

ARCH = "cifar:resnet20"
TUNING, SOURCE = 20, 60  # epochs
ALONE = {"lr": 0.1, "batch_size": 64, "weight_decay": 5e-4, "schedule": "step"}
START = {"epochs": SOURCE, "train": ALONE}
TRAIN = {"lr": 0.02, "batch_size": 64, "weight_decay": 5e-4, "schedule": "cosine"}
GATED = {**TRAIN, "bn_batches": 46, "keep": "last"}
EXITS_ALONE = {"lr": 0.05, "batch_size": 256, "schedule": "cosine", "cache_features": True}
LESS = 1.0  # points of val that decision gates may give up
RATES = (0.5, 0.35)


def make(run: Run) -> dict[str, Any]:
    """Train, prune what can be, keep the network, and measure all but its milliseconds."""
    trained = run.train()
    network = finished(trained.network, run)
    if "arch_args" not in run.settings:
        write(network, run.cache / run.settings["file"])
    return simple(Trained(network=network, history=trained.history), run.problem)


def finished(network: Network, run: Run) -> Network:
    """The network as somebody would deploy it: calibrated, or without what never runs on val."""
    if run.settings.get("calibrate"):
        return gatecli.calibrate_exits(network, run.problem.data, max_drop=LESS).network
    if not network.site_gates or network.site_exits:
        return network
    rates = gatecli.evaluate(network, run.problem.data, split="val").rates
    return gatecli.prune(network, rates=rates).network


def tuned(name: str, **attach: Any) -> Variant:
    """The source with a method's gates; settings that nobody says follow from the run's length."""
    return _of(name, attach=[attach], train=GATED, start=START, epochs=TUNING)


def _of(name: str, *, epochs: int, arch: str = ARCH, **settings: Any) -> Variant:
    file = "".join(sign if sign.isalnum() else "-" for sign in name) + ".safetensors"
    return Variant(name=name, epochs=epochs, settings={"arch": arch, "file": file, **settings})


def kept(variant: Variant, cache: Path, problem: Problem) -> Network | None:
    """The network that was trained, or of a narrower one another of its form; None: it was not."""
    settings = variant.settings
    if "arch_args" in settings:  # a file's word is not enough for code
        return problem.network(settings["arch"], 0, settings["arch_args"]).eval()
    path = cache / settings["file"]
    return gatecli.load(path).eval() if path.exists() else None


LAYERS = [
    tuned(f"{method}, t = {rate}", method=method, target_rate=rate)
    for method in ("aig-perbatch", "ind-perbatch")
    for rate in RATES
]
# A gate that is open for half of the samples is open by threshold: a rate of each below 1/2.
EACH = [
    tuned(f"{method}, t = 0.4", method=method, target_rate=0.4)
    for method in ("aig-pergate", "ind-pergate")
]
OTHERS = [
    tuned("early-exit, t = 0.3", method="early-exit", target_rate=0.3),
    _of(
        "dgate, 1 point of val",
        attach=[{"method": "dgate"}],
        train=EXITS_ALONE,
        start=START,
        epochs=TUNING,
        calibrate=True,
    ),
    tuned("cgnet, coarse, T = 1", method="cgnet", gate="coarse", target=1.0),
    tuned("gaternet, l1_weight 0.3", method="gaternet", l1_weight=0.3),
]
PLAIN = [
    _of("ResNet-20, as many epochs", train=TRAIN, start=START, epochs=TUNING),
    *(
        _of(
            f"ResNet-20 of {width} the width, from scratch",
            arch="budget.networks:resnet20",
            arch_args={"width": width},
            train=ALONE,
            epochs=SOURCE + TUNING,
        )
        for width in (0.7, 0.5)
    ),
]
PAPER = Paper(
    name="plane",
    title="All methods on one network",
    variants=[*LAYERS, *OTHERS, *EACH, *PLAIN],
    claims=(),
    make=make,
)
