"""What a network costs, counted and timed alike whoever made it small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
            return macs_of(model, self.source.input.size) / self.whole_macs
        whole, part = fastest([self.whole, ready(network_like(self.source, model))])
        return part / whole

    @cached_property
    def whole_macs(self) -> int:
        """The source's multiply-accumulates."""
        return macs_of(self.source, self.source.input.size)

    @cached_property
    def whole(self) -> Timed:
        """The source, ready to be timed."""
        return ready(self.source)


def macs_of(model: nn.Module, size: tuple[int, int]) -> int:
    """The multiply-accumulates of an image, counted while it runs in evaluation."""
    was_training = model.training
    with torch.no_grad(), counted() as macs:
        model.eval()(torch.zeros(1, 3, *size))
    model.train(was_training)
    return macs.total


def milliseconds_of(networks: Sequence[Network]) -> list[float]:
    """The fastest call of each with one image, in RUNTIME; they take turns."""
    return fastest([ready(network) for network in networks])


def ready(network: Network) -> Timed:
    """A network in RUNTIME."""
    order = Order(model=network.copy().eval(), recipe=network.recipe)
    prepared = registry.get(RUNTIME).prepare(order)
    return Timed(prepared=prepared, images=random_images(network, IMAGES), rates={})


def fastest(everyone: Sequence[Timed]) -> list[float]:
    """Milliseconds of the fastest call of each."""
    return [min(each) for each in interleaved(everyone, 1, REPEATS, lambda: None)]


def network_like(source: Network, model: nn.Module) -> Network:
    """A module as a Network, a plain one as one that sees its images as `source` does."""
    if isinstance(model, Network):
        return model
    classes = source.recipe.source.num_classes
    return Network(model, Recipe(Source("", {}, num_classes=classes), source.input))
