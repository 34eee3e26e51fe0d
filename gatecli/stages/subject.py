"""What is profiled: a network with its rates, or the source."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gatecli.network import Network
from gatecli.network.costs import Rates, expected_macs

__all__ = ["Subject", "subject_of"]


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
