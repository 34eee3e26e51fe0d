"""Torch-Pruning on the laboratory's networks: channels by a formula of importance, step by step.

Before each epoch of the cut so many channels go as bring the cost down evenly: the network learns
to do without some before it loses the next, as it does while gates close. Channels of all layers
are ranked together (`global_pruning`), and no layer loses more than nine tenths, as in
Torch-Pruning's own benchmarks.

Reference: Fang et al. 2023, DepGraph: Towards Any Structural Pruning.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from claims.training import Run, one_epoch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from budget.cost import Budget, network_like
from gatecli.architectures.build import build
from gatecli.network import Network
from gatecli.training.examples import Examples
from gatecli.training.options import TrainOptions

__all__ = ["IMPORTANCES", "is_installed", "pruned_outside"]

IMPORTANCES = ("magnitude", "taylor")
STEPS = 200  # from all channels to none; a cut of half takes some 60 of them
AT_ONCE = {"macs": 1, "ms": 8}  # before the cost is looked at again: an export takes seconds
MOST = 0.9  # of a layer's channels that may go
BATCHES = 4  # whose gradients Taylor's importance looks at, at each step


def is_installed() -> bool:
    """Whether Torch-Pruning is."""
    return find_spec("torch_pruning") is not None


def pruned_outside(run: Run, budget: Budget, options: TrainOptions) -> Network:
    """The source with channels removed and trained between the steps, for `options.epochs`."""
    model = _plain(run, budget.source)
    examples = Examples(budget.source, run.problem.data, options)
    pruner = _pruner(model, run.settings, budget.source.input.size)
    share = 1.0  # of the source's cost, as last looked at
    for epoch in range(options.epochs):
        limit = 1 - (1 - budget.share) * (epoch + 1) / options.epochs
        while share > limit and pruner.current_step < STEPS:
            for _ in range(AT_ONCE[budget.goal]):
                if run.settings["importance"] == "taylor":
                    _gradients(model, examples, epoch)
                pruner.step()
                _tell(model)
            share = budget.share_of(model)
        model.zero_grad()
        one_epoch(model, examples, _optimizer(model, options), options, epoch)
    return network_like(budget.source, model)


def _plain(run: Run, source: Network) -> nn.Module:
    """The source's architecture with its weights, without anything of ours around it."""
    args = {**run.settings.get("arch_args", {}), "num_classes": source.num_classes}
    model = build(run.settings["arch"], args)
    model.load_state_dict(source.state_dict())
    return model


def _pruner(model: nn.Module, settings: Mapping[str, Any], size: tuple[int, int]) -> Any:
    import torch_pruning as tp

    names = {"magnitude": "GroupMagnitudeImportance", "taylor": "GroupTaylorImportance"}
    name = names[settings["importance"]]
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    more = {"round_to": settings["round_to"]} if "round_to" in settings else {}
    if isinstance(model, VisionTransformer):  # as its own examples do it
        more["round_to"] = model.encoder.layers[0].num_heads
        more["unwrapped_parameters"] = [(model.class_token, 2), (model.encoder.pos_embedding, 2)]
    return tp.pruner.BasePruner(
        model,
        torch.zeros(1, 3, *size),
        importance=getattr(tp.importance, name)(),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=MOST,
        iterative_steps=STEPS,
        ignored_layers=[last],
        **more,
    )


def _tell(model: nn.Module) -> None:
    """torchvision's ViT remembers its width beside its weights."""
    if isinstance(model, VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels


def _gradients(model: nn.Module, examples: Examples, epoch: int) -> None:
    """Those of the loss on some training images, BatchNorm's statistics left alone."""
    model.eval().zero_grad()
    for x, y in itertools.islice(examples.training(epoch), BATCHES):
        F.cross_entropy(model(x), y).backward()


def _optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """A new one after each cut: the momentum of what has gone has no place."""
    return torch.optim.SGD(
        model.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )
