"""What a network costs, counted and timed alike whoever made it small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from counting import counted
from torch import nn

from gatecli.network import Network
from gatecli.network.compare import random_images
from gatecli.runtimes import registry
from gatecli.runtimes.base import Order
from gatecli.stages.timing import Timed, interleaved
from gatecli.traced.recipe import Recipe, Source

__all__ = ["GOALS", "RUNTIME", "Budget", "macs_of", "milliseconds_of", "network_like"]

GOALS = ("macs", "ms")
RUNTIME = "onnxruntime"  # where small networks take about as long as what they multiply
IMAGES, REPEATS = 16, 100


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A share of what the source costs.

    Attributes:
        goal: One of GOALS.
        share: The most that may be left.
        source: The network before anything is taken from it.
    """

    goal: str
    share: float
    source: Network

    def share_of(self, model: nn.Module) -> float:
        """What a network costs, as a share of the source."""
        if self.goal == "macs":
            size = self.source.input.size
            return macs_of(model, size) / macs_of(self.source, size)
        timed = milliseconds_of([self.source, network_like(self.source, model)])
        return timed[1] / timed[0]


def macs_of(model: nn.Module, size: tuple[int, int]) -> int:
    """The multiply-accumulates of an image, counted while it runs in evaluation."""
    was_training = model.training
    with torch.no_grad(), counted() as macs:
        model.eval()(torch.zeros(1, 3, *size))
    model.train(was_training)
    return macs.total


def milliseconds_of(networks: Sequence[Network]) -> list[float]:
    """The fastest call of each with one image, in RUNTIME; they take turns."""
    images = random_images(networks[0], IMAGES)
    everyone = []
    for network in networks:
        order = Order(model=network.copy().eval(), recipe=network.recipe)
        prepared = registry.get(RUNTIME).prepare(order)
        everyone.append(Timed(prepared=prepared, images=images, rates={}))
    return [min(each) for each in interleaved(everyone, 1, REPEATS, lambda: None)]


def network_like(source: Network, model: nn.Module) -> Network:
    """A plain module as a Network that sees its images as `source` does."""
    classes = source.recipe.source.num_classes
    return Network(model, Recipe(Source("", {}, num_classes=classes), source.input))
