"""The settings of GaterNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatecli.kinds import registry
from gatecli.methods.settings import Settings, setting
from gatecli.methods.values import FrozenDict

__all__ = ["DEFAULT_KIND", "DRAWN", "ROLES", "GaterNetSettings"]

DEFAULT_KIND = "filter"
ROLES = registry.get(DEFAULT_KIND).roles
POLICIES = ("auto", *ROLES)
DRAWN, ZEROS = "drawn", "zeros"
STARTS = (DRAWN, ZEROS)


@dataclass(frozen=True)
class GaterNetSettings(Settings):
    """Settings of GaterNet."""

    gater: str | None = setting(
        None,
        "the gater's architecture, torchvision:NAME or cifar:NAME; none: cifar:resnet20, or"
        " torchvision:resnet18 for large images",
        structural=True,
    )
    gater_args: Mapping[str, Any] = setting(
        FrozenDict(),
        "`args` of its architecture and `names`, its file's spellings; attach says what they are",
        structural=True,
    )
    bottleneck: int = setting(
        8,
        "features between the gater's two last layers, b in the paper (8; 256 for ImageNet)",
        low=1,
        high=65536,
        structural=True,
    )
    policy: str = setting(
        "auto",
        "which convolutions to gate: " + ", ".join(ROLES) + "; auto: what the network has",
        choices=POLICIES,
        structural=True,
    )
    where: str | None = setting(
        None, "instead: pattern of convolutions, as layer3.*", structural=True
    )
    l1_weight: float = setting(
        1.0,
        "weight of the gates' mean beside the cross-entropy, lambda in the paper, which gives no"
        " value",
        low=0,
        high=1e30,
    )
    start: str = setting(
        DRAWN,
        "the weights of the gater's last layer when training begins: drawn, so that each filter is"
        " decided in its own way, or zeros, from which all move alike",
        choices=STARTS,
        before=lambda stored: ZEROS,
    )
    target_rate: float | None = setting(
        None,
        "press the gates' mean no further down than this; none: as the paper, on and on",
        low=0,
        high=1,
    )
