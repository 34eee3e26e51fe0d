"""Train what a variant's settings say.

They are a network (`arch`), what is attached to it (`attach`: a list, each a method and its
settings), and how to train (`train`: gatecli's TrainOptions). With nothing attached it is the plain
control: as many epochs of the same batches. With `start` (epochs) the network is trained so long by
itself before anything is attached, and is the same for all variants of a seed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import gatecli
from claims.problem import Problem
from gatecli.methods.schedules import learning_rate
from gatecli.network import Network
from gatecli.stages.predict import score
from gatecli.training.examples import Examples
from gatecli.training.options import TrainOptions

__all__ = ["Trained", "plain", "source", "train"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network in the state of its best epoch on val, and how it learnt.

    Attributes:
        network: In evaluation mode.
        history: A row an epoch, with `train_top1` and `val_top1`.
    """

    network: Network
    history: Sequence[Mapping[str, Any]]

    def learning(self) -> dict[str, float]:
        """How far the training came, and what its last tenth was worth on val.

        Where that is less than half a point, it had converged.
        """
        tenth = max(1, len(self.history) // 10)
        val = [row["val_top1"] for row in self.history]
        late = statistics.fmean(val[-tenth:]) - statistics.fmean(val[-2 * tenth : -tenth] or val)
        return {"train_top1": self.history[-1]["train_top1"], "late_gain": late}


def train(
    problem: Problem, settings: Mapping[str, Any], epochs: int, seed: int, cache: Path
) -> Trained:
    """Train a network from scratch, or a trained one further.

    Args:
        problem: What to train on.
        settings: As this file says.
        epochs: How many.
        seed: Of the weights, the batches and the gates.
        cache: A folder that keeps trained networks to start from.

    Raises:
        GatecliError: The settings are no settings, or the training diverged.
    """
    network = source(problem, settings, seed, cache)
    options = TrainOptions(epochs=epochs, seed=seed, **settings.get("train", {}))
    for each in settings.get("attach", []):
        named = dict(each)
        torch.manual_seed(seed)
        network = gatecli.attach(network, named.pop("method"), **named).network
    if not settings.get("attach"):
        return plain(network, problem, options)
    tuned = gatecli.finetune(network, problem.data, options)
    return Trained(network=tuned.network.eval(), history=tuned.history)


def source(problem: Problem, settings: Mapping[str, Any], seed: int, cache: Path) -> Network:
    """The network before anything is attached: with random weights, or trained for `start` epochs.

    A trained one is kept in the folder `cache`, and read from there the next time.
    """
    network = problem.network(settings["arch"], seed)
    epochs = settings.get("start", 0)
    if not epochs:
        return network
    how = {name: settings[name] for name in ("arch", "start", "start_train")}
    said = json.dumps([how, seed, dict(problem.about)], sort_keys=True)
    path = cache / f"{sha256(said.encode()).hexdigest()[:16]}.pt"
    if not path.exists():
        options = TrainOptions(epochs=epochs, seed=seed, **settings["start_train"])
        trained = plain(network, problem, options).network
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(trained.state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


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
        right = _epoch(network, examples, optimizer, options, epoch)
        val = score(network, examples.in_order("val")).top1
        if not history or val > max(row["val_top1"] for row in history):
            best = {name: each.clone() for name, each in network.state_dict().items()}
        history.append({"train_top1": right, "val_top1": val})
    network.load_state_dict(best)
    return Trained(network=network.eval(), history=history)


def _epoch(
    network: Network,
    examples: Examples,
    optimizer: torch.optim.Optimizer,
    options: TrainOptions,
    epoch: int,
) -> float:
    """One pass over the training images; top-1 on them, in percent."""
    network.train()
    count = examples.steps_per_epoch
    right = []
    for number, (x, y) in enumerate(examples.training(epoch)):
        done = (epoch + number / count) / options.epochs
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options.schedule, options.lr, done)
        logits = network(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append((logits.argmax(1) == y).double().mean().item())
    return 100 * statistics.fmean(right)
