"""Make subjects ready to be timed, each in its runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from gatecli.runtimes import registry
from gatecli.runtimes.base import Order, Runtime
from gatecli.runtimes.rates import at_rates, varied_images
from gatecli.stages.subject import Subject
from gatecli.stages.timing import Timed
from gatecli.traced.recipe import Recipe

__all__ = ["Cell", "cells_of", "ready"]

RANDOM_IMAGES = 16  # on which rates come out to a sixteenth


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One subject in one runtime.

    Attributes:
        subject: The subject.
        runtime: The runtime's name.
        precision: One that it has.
        model: What runs there: the subject's network, or one that decides by itself at its rates.
        images: (n, C, H, W), to be drawn from; None: random ones.
        drawn: Whether decisions are drawn from the rates for each call.
    """

    subject: Subject
    runtime: str
    precision: str
    model: nn.Module
    images: Tensor | None
    drawn: bool


def cells_of(
    subjects: Sequence[Subject], runtimes: Sequence[str], precision: str, images: Tensor | None
) -> list[Cell]:
    """Every subject in every runtime, runtime by runtime.

    Without real images gates decide by their rates: drawn for each call where a runtime can be
    told decisions, else by thresholds that give these rates on random images.

    Args:
        subjects: What is to be timed.
        runtimes: Names of runtimes.
        precision: One that all of them have.
        images: Real ones (n, C, H, W); None: random ones.

    Raises:
        SettingError: A runtime is missing, or has no such precision.
    """
    standing = [_Standing(subject, images) for subject in subjects]
    cells: list[Cell] = []
    for name in dict.fromkeys(runtimes):
        runtime = registry.get(name)
        runtime.require(precision)
        cells += [each.in_runtime(runtime, precision) for each in standing]
    return cells


class _Standing:
    """A subject, made to decide at its rates by itself once, whatever runtimes need that."""

    def __init__(self, subject: Subject, images: Tensor | None) -> None:
        self.subject = subject
        self.images = images
        network = subject.network
        self.drawn = network if images is None and network and network.site_gates else None

    def in_runtime(self, runtime: Runtime, precision: str) -> Cell:
        model, images = self.subject.module, self.images
        if self.drawn is not None and not runtime.obeys:
            model, images = self._by_itself
        return Cell(
            subject=self.subject,
            runtime=runtime.name,
            precision=precision,
            model=model,
            images=images,
            drawn=self.drawn is not None,
        )

    @cached_property
    def _by_itself(self) -> tuple[nn.Module, Tensor]:
        """A copy whose thresholds give its rates on these images."""
        assert self.drawn is not None
        images = varied_images(self.drawn, RANDOM_IMAGES)
        return at_rates(self.drawn, self.subject.rates, images), images


def ready(cells: Sequence[Cell], batch: int, recipe: Recipe) -> list[Timed]:
    """The cells, prepared.

    Args:
        cells: What is to be timed.
        batch: Images a call.
        recipe: Of a network among the subjects.

    Raises:
        ExportError: A runtime cannot take a network.
    """
    return [_timed(cell, batch, recipe) for cell in cells]


def _timed(cell: Cell, batch: int, recipe: Recipe) -> Timed:
    order = Order(model=cell.model, recipe=recipe, batch=batch, precision=cell.precision)
    prepared = registry.get(cell.runtime).prepare(order)
    return Timed(
        prepared=prepared,
        images=_random_images(recipe) if cell.images is None else cell.images,
        forced=prepared.obeying if cell.drawn else None,
        rates=cell.subject.rates,
    )


def _random_images(recipe: Recipe) -> Tensor:
    spec = recipe.input
    draw = torch.Generator().manual_seed(0)
    return torch.randn(RANDOM_IMAGES, spec.channels, *spec.size, generator=draw)
