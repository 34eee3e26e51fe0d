"""Train what a run's settings say.

They are a network (`arch`, `arch_args`), what is attached to it (`attach`: a list, each a method
and its settings), and how to train (`train`: gatecli's TrainOptions, milestones and warm-up as
shares of the training). What depends on a run's length by default is said. With nothing attached
it is the plain control: as many epochs of the same batches. With `start` (`epochs` and `train`) the
network is trained so by itself before anything is attached, once for all runs of a seed; `gater`
(`arch`, `epochs`, `train`) is the trained network that the first method attached starts from. The
control keeps the epoch that is best on val, or the last one with the option `keep`, as finetune
does. What is compared is the last epoch, as in the papers: an early one can have come down to the
target rate before anything is learnt.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import gatecli
from claims.problem import Problem
from gatecli.methods.schedules import MILESTONES, learning_rate, warmed
from gatecli.network import Network
from gatecli.stages.predict import score
from gatecli.training.examples import Examples
from gatecli.training.options import TrainOptions

__all__ = [
    "ALONE",
    "FROM_SCRATCH",
    "STARTS",
    "WARMED",
    "Run",
    "Trained",
    "in_epochs",
    "one_epoch",
    "plain",
]

# how networks are trained by themselves, before anything is attached
ALONE: Mapping[str, Any] = {
    "lr": 0.1,
    "batch_size": 64,
    "weight_decay": 5e-4,
    "schedule": "step",
}
# how networks with gates are trained from random weights
FROM_SCRATCH: Mapping[str, Any] = {**ALONE, "bn_batches": 46, "keep": "last"}
# A ResNet-56 learns nothing where it begins at a rate of .1: 12 % are right after 60 epochs.
WARMED: Mapping[str, Any] = {"warmup": 0.1}
STARTS: Mapping[str, Mapping[str, Any]] = {
    "ResNet-20": {"epochs": 60, "train": ALONE},
    "ResNet-56": {"epochs": 60, "train": {**ALONE, **WARMED}},
}
OTHER = 100  # so much higher is the seed of a network that must not be the one that it helps


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network in the state of the epoch that is kept, and how it learnt.

    Attributes:
        network: In evaluation mode.
        history: A row an epoch, with `train_top1` and `val_top1` but where exits learn alone.
    """

    network: Network
    history: Sequence[Mapping[str, Any]]

    def learning(self) -> dict[str, float]:
        """How far the training came, and what its last tenth was worth on val.

        Where that is less than half a point, it had converged.
        """
        last = self.history[-1]
        found = {name: last[name] for name in ("train_top1",) if name in last}
        val = [row["val_top1"] for row in self.history if "val_top1" in row]
        tenth = max(1, len(val) // 10)
        if len(val) > tenth:
            before = statistics.fmean(val[-2 * tenth : -tenth])
            found["late_gain"] = statistics.fmean(val[-tenth:]) - before
        return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run.

    Attributes:
        problem: What to train on.
        settings: As this file says.
        epochs: Of the training.
        seed: Of the weights, the batches and the gates.
        cache: A folder that keeps the networks that runs start from.
    """

    problem: Problem
    settings: Mapping[str, Any]
    epochs: int
    seed: int
    cache: Path

    def train(self, problem: Problem | None = None, **changes: Any) -> Trained:
        """Train the network, with what is attached to it.

        Args:
            problem: To train on; None: the run's.
            **changes: TrainOptions that differ from the settings'.

        Raises:
            GatecliError: The settings are no settings, or the training diverged.
        """
        options = self.options(self.epochs, **changes)
        network = self.attached()
        problem = problem or self.problem
        if not self.settings.get("attach"):
            return plain(network, problem, options)
        tuned = gatecli.finetune(network, problem.data, options)
        return Trained(network=tuned.network.eval(), history=tuned.history)

    def options(self, epochs: int, **changes: Any) -> TrainOptions:
        """How the settings want so many epochs to be trained; `changes` differ from them."""
        # CPUs are quicker by a quarter with pixels in that order; results differ by rounding.
        how = {"channels_last": True, **self.settings.get("train", {}), **changes}
        return TrainOptions(epochs=epochs, seed=self.seed, **in_epochs(how, epochs))

    def attached(self) -> Network:
        """The network with its gates, before they are trained."""
        network = self.source()
        given = {"gater_network": self._gater()} if "gater" in self.settings else {}
        for each in self.settings.get("attach", []):
            named = {**each, **given}
            torch.manual_seed(self.seed)
            network = gatecli.attach(network, named.pop("method"), **named).network
            given = {}
        return network

    def source(self) -> Network:
        """The network before anything is attached: with random weights, or trained."""
        start = self.settings.get("start")
        if start is None:
            args = self.settings.get("arch_args", {})
            return self.problem.network(self.settings["arch"], self.seed, args)
        network = {name: self.settings.get(name, {}) for name in ("arch", "arch_args")}
        return self._kept({**network, **start}, self.seed)

    def _gater(self) -> Network:
        return self._kept(self.settings["gater"], self.seed + OTHER)

    def _kept(self, settings: Mapping[str, Any], seed: int) -> Network:
        """A network trained by itself, from the cache where it is there."""
        quick = min(settings["epochs"], self.epochs)  # for a try, as short as the run
        run = replace(self, settings=settings, epochs=quick, seed=seed)
        path = self.place([settings, quick, seed, dict(self.problem.about)], ".pt")
        if not path.exists():
            torch.save(run.train().network.state_dict(), path)
        network = run.source()
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()

    def place(self, said: Any, ending: str) -> Path:
        """Where the cache keeps what these plain data describe; the folder is made."""
        self.cache.mkdir(parents=True, exist_ok=True)
        name = sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        return self.cache / f"{name}{ending}"


def in_epochs(how: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """TrainOptions, with warm-up and milestones in epochs, as far as there are that many."""
    found = dict(how)
    if "warmup" in how:
        found["warmup"] = how["warmup"] * epochs
    if "milestones" in how:
        each = {round(share * epochs) for share in how["milestones"]}
        found["milestones"] = sorted(each & set(range(1, epochs))) or None
    return found


def plain(network: Network, problem: Problem, options: TrainOptions) -> Trained:
    """Train a network without gates, as finetune trains one with gates: the control."""
    examples = Examples(network, problem.data, options)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    for epoch in range(options.epochs):
        right = one_epoch(network, examples, optimizer, options, epoch)
        val = score(network, examples.in_order("val")).top1
        is_last = options.keep == "last"
        if is_last or not history or val > max(row["val_top1"] for row in history):
            best = {name: each.clone() for name, each in network.state_dict().items()}
        history.append({"train_top1": right, "val_top1": val})
    network.load_state_dict(best)
    return Trained(network=network.eval(), history=history)


def one_epoch(
    network: nn.Module,
    examples: Examples,
    optimizer: torch.optim.Optimizer,
    options: TrainOptions,
    epoch: int,
) -> float:
    """One pass over the training images; top-1 on them, in percent."""
    network.train()
    count = examples.steps_per_epoch
    shares = [each / options.epochs for each in options.milestones or ()] or MILESTONES
    right = []
    for number, (x, y) in enumerate(examples.training(epoch)):
        step = epoch * count + number
        rate = learning_rate(options.schedule, options.lr, step / (options.epochs * count), shares)
        for group in optimizer.param_groups:
            group["lr"] = warmed(rate, step, options.warmup * count)
        logits = network(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append((logits.argmax(1) == y).double().mean().item())
    return 100 * statistics.fmean(right)
