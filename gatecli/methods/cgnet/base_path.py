"""Which input channels a convolution's base path has, and which shares are possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from torch import nn

from gatecli.errors import SettingError
from gatecli.methods.cgnet.settings import CGNetSettings

__all__ = ["base_channels", "check_eta"]


def base_channels(inputs: int, settings: CGNetSettings) -> tuple[tuple[int, ...], int]:
    """The base path of a convolution with so many input channels.

    Their order, group by group, and how many groups there are; without a base path no channels.
    """
    if not settings.based:
        return (), 1
    groups = round(1 / settings.eta)
    order = (
        [channel for first in range(groups) for channel in range(first, inputs, groups)]
        if settings.shuffle
        else list(range(inputs))
    )
    if settings.grouped:
        return tuple(order), groups
    return tuple(sorted(order[: round(settings.eta * inputs)])), 1


def check_eta(convs: Mapping[str, nn.Conv2d], settings: CGNetSettings) -> None:
    """Make sure that eta divides the channels of all convolutions, given by site.

    Without a base path it may be anything.

    Raises:
        SettingError: It does not; the first one is named, and the nearest eta that divides all.
    """
    widths = {site: _width(conv, settings) for site, conv in convs.items()}
    odd = next((site for site, width in widths.items() if not _divides(settings, width)), None)
    if odd is None or not settings.based:
        return
    shares = _dividing(math.gcd(*widths.values()), settings)
    advice = f"none divides all: leave it out with --exclude '{odd}'"
    if shares:
        nearest = min(shares, key=lambda share: abs(float(share) - settings.eta))
        advice = f"the nearest that divides all is {nearest}"
    conv = convs[odd]
    grouped = settings.grouped
    outputs = f" and {conv.out_channels} output" if grouped else ""
    groups = " into equal groups" if grouped else ""
    raise SettingError(
        f"expected setting `eta` to divide the {conv.in_channels} input{outputs} channels of"
        f" `{odd}`{groups}, but got {settings.eta:g}; {advice}"
    )


def _width(conv: nn.Conv2d, settings: CGNetSettings) -> int:
    """What eta has to divide of one convolution."""
    if settings.grouped:
        return math.gcd(conv.in_channels, conv.out_channels)
    return conv.in_channels


def _dividing(width: int, settings: CGNetSettings) -> list[Fraction]:
    """All etas that divide so many channels."""
    if settings.grouped:
        return [Fraction(1, n) for n in range(2, width + 1) if width % n == 0]
    return [Fraction(n, width) for n in range(1, width)]


def _divides(settings: CGNetSettings, width: int) -> bool:
    """Whether eta is 1/n with n groups of whole channels.

    Without grouping: whether it is a whole number of channels.
    """
    parts = 1 / settings.eta if settings.grouped else settings.eta * width
    whole = round(parts)
    return abs(parts - whole) < 1e-6 and (
        whole > 1 and width % whole == 0 if settings.grouped else 0 < whole < width
    )
