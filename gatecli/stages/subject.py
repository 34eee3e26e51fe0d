"""What is profiled: a network with its rates, or the source."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gatecli.checkpoint import skeleton_with_weights
from gatecli.network import Network
from gatecli.network.costs import Rates, expected_macs

__all__ = ["Subject", "source_of", "subject_of"]


@dataclass(frozen=True)
class Subject:
    """A network to profile.

    `rates`: per unit, measured or recorded; `network` None is the source, `module` is what is
    timed.
    """

    name: str
    module: nn.Module
    file_bytes: int
    params: int
    macs_dense: int
    macs_expected: float
    rates: Rates
    network: Network | None = None


def subject_of(name: str, network: Network, file_bytes: int, rates: Rates) -> Subject:
    """A network as a subject, its gates having these rates."""
    return Subject(
        name=name,
        module=network,
        file_bytes=file_bytes,
        params=network.params,
        macs_dense=network.macs_dense,
        macs_expected=expected_macs(network, rates),
        rates=rates,
        network=network,
    )


def source_of(network: Network) -> Subject:
    """The source as a subject, built anew with random weights: its latency does not depend on them.

    Its bytes and counts are those recorded.
    """
    source = network.recipe.source
    return Subject(
        name=source.file or source.arch,
        module=skeleton_with_weights(source).to(network.device).eval(),
        file_bytes=source.file_bytes,
        params=source.params,
        macs_dense=source.macs,
        macs_expected=source.macs,
        rates={},
    )
