"""Settings of early exits."""

from __future__ import annotations

from dataclasses import dataclass

from gatecli.gates.exit import LOG_ODDS, PROBABILITY
from gatecli.methods.exits import ExitSettings
from gatecli.methods.settings import setting

__all__ = ["ALL", "COMERS", "EarlyExitSettings"]

COMERS, ALL = "comers", "all"  # whose share an exit's rate is


@dataclass(frozen=True)
class EarlyExitSettings(ExitSettings):
    """Settings of early exits."""

    target_rate: float = setting(
        0.3, "share of the images that shall leave at each exit, at least", low=0, high=1
    )
    rate_of: str = setting(
        COMERS,
        "which images that is a share of: those that come to the exit, not having left before, or"
        " all",
        choices=(COMERS, ALL),
        before=lambda stored: ALL,
    )
    loss_weight: float = setting(
        2.0, "weight of the target loss beside the cross-entropy", low=0, high=1e30
    )
    supervise: float = setting(
        1.0,
        "weight of the exits' mean cross-entropy on all images, beside that of the answers given;"
        " 0: a classifier learns from those that leave there alone",
        low=0,
        high=1e30,
        before=lambda stored: 0.0,
    )
    supervise_end: float = setting(
        1.0,
        "weight of the final classifier's cross-entropy on all images; 0: it learns from those"
        " alone that have not left before",
        low=0,
        high=1e30,
        before=lambda stored: 0.0,
    )
    score: str = setting(
        LOG_ODDS,
        "what thresholds are compared with: log-odds, or the probability of leaving, which ties"
        " where it rounds to 1",
        choices=(LOG_ODDS, PROBABILITY),
        structural=True,
        before=lambda stored: PROBABILITY,
    )
    width: int = setting(
        128,
        "channels of the gate's and the classifier's convolutions",
        low=1,
        high=4096,
        structural=True,
    )
