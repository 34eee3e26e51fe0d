"""Time several networks in one interleaved run, so that what else happens hits them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from gatecli.gates.observe import force
from gatecli.network import Network
from gatecli.network.costs import Rates, reach
from gatecli.stages.clock import milliseconds
from gatecli.stages.subject import Subject

__all__ = ["interleaved"]

WARM_UP = 3  # rounds


def interleaved(
    subjects: Sequence[Subject],
    size: int,
    repeats: int,
    images: Tensor | None,
    tick: Callable[[], None],
) -> list[list[float]]:
    """Time the subjects in turn, after three rounds to warm up.

    Args:
        subjects: what is timed; the last one says which images they take.
        size: the images of a batch.
        repeats: the rounds that count.
        images: real ones, of which batches are drawn; none: random ones, and drawn decisions.
        tick: is called after each round.

    Returns:
        Milliseconds of each round, by subject.
    """
    draw = torch.Generator().manual_seed(0)
    times: list[list[float]] = [[] for _ in subjects]
    for repeat in range(-WARM_UP, repeats):
        for index, subject in enumerate(subjects):
            x = _images(subjects[-1], size, images, draw)
            with _drawn(subject, size, draw if images is None else None), torch.inference_mode():
                elapsed = milliseconds(subject.module, x)
            if repeat >= 0:
                times[index].append(elapsed)
        if repeat >= 0:
            tick()
    return times


def _images(subject: Subject, size: int, images: Tensor | None, draw: torch.Generator) -> Tensor:
    device = next(subject.module.parameters()).device
    if images is not None:
        return images[torch.randint(len(images), (size,), generator=draw)].to(device)
    assert subject.network is not None
    spec = subject.network.input
    return torch.randn(size, spec.channels, *spec.size, generator=draw).to(device)


def _drawn(
    subject: Subject, size: int, draw: torch.Generator | None
) -> AbstractContextManager[Any]:
    """Decisions for one call drawn from the subject's rates, where no real images decide."""
    network = subject.network
    if draw is None or network is None:
        return nullcontext()
    return force(network, _decisions(network, subject.rates, size, draw))


def _decisions(
    network: Network, rates: Rates, size: int, draw: torch.Generator
) -> Mapping[str, Tensor]:
    """Rates are shares of all samples.

    A gate decides for those that come to it, so it is drawn from the share of these.
    """
    drawn = {}
    for site, units in rates.items():
        come = max(reach(network, site, rates), 1e-9)
        runs = torch.rand(size, len(units), generator=draw) < torch.tensor(units) / come
        drawn[site] = runs.float()
    return drawn
