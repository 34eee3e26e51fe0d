"""Make subjects ready to be timed, each in its runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatecli.runtimes import registry
from gatecli.runtimes.base import Order
from gatecli.runtimes.rates import at_rates, varied_images
from gatecli.stages.subject import Subject
from gatecli.stages.timing import Timed
from gatecli.traced.recipe import Recipe

__all__ = ["Cell", "cells_of", "ready"]

RANDOM_IMAGES = 16  # on which rates come out to a sixteenth


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One subject in one runtime."""

    subject: Subject
    runtime: str
    precision: str


def cells_of(subjects: Sequence[Subject], runtimes: Sequence[str], precision: str) -> list[Cell]:
    """Every subject in every runtime, runtime by runtime.

    Raises:
        SettingError: A runtime is missing, or has no such precision.
    """
    cells = []
    for name in dict.fromkeys(runtimes):
        registry.get(name).require(precision)
        cells += [Cell(subject=each, runtime=name, precision=precision) for each in subjects]
    return cells


def ready(cells: Sequence[Cell], batch: int, recipe: Recipe, images: Tensor | None) -> list[Timed]:
    """The cells, prepared.

    Without real images gates decide by their rates: drawn for each call where a runtime can be
    told decisions, else by thresholds that give these rates on random images.

    Args:
        cells: What is to be timed.
        batch: Images a call.
        recipe: Of a network among the subjects.
        images: Real ones (n, C, H, W); None: random ones.

    Raises:
        ExportError: A runtime cannot take a network.
    """
    return [_timed(cell, batch, recipe, images) for cell in cells]


def _timed(cell: Cell, batch: int, recipe: Recipe, images: Tensor | None) -> Timed:
    runtime = registry.get(cell.runtime)
    network = cell.subject.network
    model: nn.Module = cell.subject.module
    shown = _random_images(recipe) if images is None else images
    is_drawn = images is None and network is not None and bool(network.site_gates)
    if is_drawn and network is not None and not runtime.obeys:
        shown = varied_images(network, RANDOM_IMAGES)
        model = at_rates(network, cell.subject.rates, shown)
    order = Order(model=model, recipe=recipe, batch=batch, precision=cell.precision)
    prepared = runtime.prepare(order)
    return Timed(
        prepared=prepared,
        images=shown,
        forced=prepared.obeying if is_drawn else None,
        rates=cell.subject.rates,
    )


def _random_images(recipe: Recipe) -> Tensor:
    spec = recipe.input
    draw = torch.Generator().manual_seed(0)
    return torch.randn(RANDOM_IMAGES, spec.channels, *spec.size, generator=draw)
