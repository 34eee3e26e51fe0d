"""Channel gating: convolutions that look at the rest of their input only where it is worth it.

A convolution looks at a share of its input channels first, and at the others only where these
promise something.

    base path   Yp = Wp * xp,  xp = eta of the input channels
    decision    d = 1 where BN_na(s) > Delta, s = Yp;  BN_na: BatchNorm without affine, Delta:
        learned, one a channel
    output      d ? BN2(W * x) : BN1(Yp),  what W has beyond Wp computed where d = 1 only

Hua, Zhou, De Sa, Zhang, Suh, "Channel gating neural networks" (2019) and its supplement. Gradient:
that of sigmoid(eps (BN_na(s) - Delta)), the decision staying hard. Loss: cross-entropy +
loss_weight * sum over channels (T - Delta)^2, without weight decay on Delta. BN2 is the
checkpoint's own BatchNorm.

Gate functions (A.5), `s` being what is compared:
    fine    Yp, a decision for each activation; no dense kernel can use it, so what it saves is
        theoretical
    coarse  the mean of Yp over its positions, one decision for each output channel (the paper: the
        fine ones aggregated; ours: normalised anew, so that T means
            the same, standard deviations, in all four)
    l1      the mean |x| of each input channel that is not in the base path, one decision for each
        of these: it is computed with, or not; no BN1
    fc      a linear layer of all input channels' mean |x|, one decision for each output channel
        (ours: starts at the mean |W| of each kernel)

With grouping (3.3), output group i has input group i for its base path, block-diagonal in the
weights that are there; with shuffle, groups are made of every (1/eta)-th channel rather than of
neighbours. Neither changes what the network computes. The stem is never gated. With groups, what an
open channel still needs
lies all over the input: it is computed in one dense convolution, its base path anew, which costs
eta of it once more and is counted so.

Neutral start: no finite Delta opens every gate for every input, so a saved flag does, until the
first training step clears it; Delta then starts at `start`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gatecli.errors import SettingError
from gatecli.gates.cache import Remembered
from gatecli.gates.decider import Decider
from gatecli.gates.gate import Gate
from gatecli.graph.ops import others
from gatecli.graph.slices import cut_norm, keep_entries
from gatecli.kinds.base import CHANNELS
from gatecli.methods.base import Method, register
from gatecli.methods.settings import Settings, setting
from gatecli.network import Network, surgery
from gatecli.traced.site import Site

GATES = ("coarse", "fine", "fc", "l1")
OPEN = 1e30  # what a neutral gate's margin is: finite, and above whatever an image can bring about


@dataclass(frozen=True)
class CGNetSettings(Settings):
    """Settings of channel gating; the paper's are named where ours differ."""

    gate: str = setting(
        "coarse",
        "gate function: coarse, fc and l1 save time, fine (the paper's own) on paper only",
        choices=GATES,
        structural=True,
    )
    eta: float = setting(
        0.25,
        "share of the input channels in the base path (1/8 in the paper, 1/4 in its code)",
        low=0.001,
        high=0.999,
        structural=True,
    )
    target: float = setting(
        1.0,
        "threshold that Delta is drawn to, T in the paper (0, 1, 2 there): the higher, the less is"
        " computed",
        low=-100,
        high=100,
    )
    loss_weight: float = setting(
        1e-4,
        "weight of the sum of (T - Delta)^2 beside the cross-entropy, lambda in the paper",
        low=0,
        high=1e30,
    )
    eps: float = setting(
        2.0,
        "steepness of the smoothed gate that gives the gradient (2, 3, 4 in the paper)",
        low=0.001,
        high=1000,
        structural=True,
    )
    start: float = setting(
        0.0,
        "what Delta starts from at the first training step",
        low=-100,
        high=100,
        structural=True,
    )
    grouping: str = setting(
        "no",
        "yes: each group of output channels has its own group of input channels for its base path"
        " (not with gate=l1); open channels are then computed anew",
        choices=("yes", "no"),
        structural=True,
    )
    shuffle: str = setting(
        "no",
        "yes: the base path takes every (1/eta)-th input channel, rather than neighbours",
        choices=("yes", "no"),
        structural=True,
    )


class ChannelGate(Gate):
    """Decides for a convolution's channels.

    It does from the base path's sums (fine, coarse) or from the convolution's input (l1, fc).

    Args: conv, norm: the convolution gated and the BatchNorm behind it; order, groups: its base
    path, see gatecli.kinds.conv.ops.
    Attributes: of_inputs: units are input channels. shared: open channels build on the base path's
    sums. always: the share of the convolution that runs whatever is decided, with every channel
    gated. `base` is BN1.
    """

    undecayed = ("delta",)
    neutral: Tensor

    def __init__(
        self,
        site: str,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d,
        order: tuple[int, ...],
        groups: int,
        settings: CGNetSettings,
    ) -> None:
        self.of_inputs = settings.gate == "l1"
        rest = others(conv.in_channels, order[: len(order) // groups])
        super().__init__(site, len(rest) if self.of_inputs else conv.out_channels)
        self.function, self.slope, self.order, self.groups = (
            settings.gate,
            settings.eps,
            order,
            groups,
        )
        self.per_activation = settings.gate == "fine"
        self.reads_input, self.shared = settings.gate in ("l1", "fc"), groups == 1
        self.always = 1 - len(rest) / conv.in_channels if self.shared else 0.0
        self.norm = (nn.BatchNorm2d if settings.gate == "fine" else nn.BatchNorm1d)(
            self.units, affine=False
        )
        self.delta = nn.Parameter(torch.full((self.units,), settings.start))
        self.register_buffer("neutral", torch.tensor(True))
        if settings.gate == "fc":
            self.weight = nn.Parameter(conv.weight.detach().abs().mean((2, 3)))
        if not self.of_inputs:
            self.base = _like(norm, 1 - len(rest) / conv.in_channels)
        self._folded, self._flag, self._reached = Remembered(), Remembered(), Remembered()

    def keep(self, units: Sequence[int]) -> None:
        """Decide for these units alone."""
        index = torch.tensor(units)
        keep_entries(
            self, ("delta", "threshold", *(("weight",) if self.function == "fc" else ())), index
        )
        keep_entries(self.norm, ("running_mean", "running_var"), index)
        self.units = self.norm.num_features = len(units)
        if not self.of_inputs:
            self.base = cut_norm(self.base, units)

    @property
    def settled(self) -> bool:
        """Whether evaluation decides without looking at anything."""
        return self.forced is not None or self.strategy == "always-on" or self._is_open()

    @property
    def unasked(self) -> bool:
        """Whether all units run, and nobody wants to be told."""
        if self.training or self.observer is not None or self.forced is not None:
            return False
        return self.strategy == "always-on" or (
            self._is_open()
            and bool(self._reached(lambda: bool((self.threshold < 1).all()), self.threshold))
        )

    def _is_open(self) -> bool:
        return not self.neutral.is_meta and bool(
            self._flag(lambda: bool(self.neutral), self.neutral)
        )

    def saliency(self, x: Tensor) -> Tensor:
        """What is compared with Delta once it is normalised.

        The base path's sums or x, (N, C, H, W) -> (N, units), for `fine` (N, units, H, W).
        """
        if self.function == "fine":
            return x
        if self.function == "coarse":
            return x.mean((2, 3))
        size = x.abs().mean((2, 3))
        if self.function == "fc":
            return F.linear(size, self.weight)
        return size.index_select(1, torch.tensor(others(x.shape[1], self.order), device=x.device))

    def log_odds(self, x: Tensor) -> Tensor:
        """`eps (BN_na(s) - Delta)`: (N, units), for `fine` (N, units, H, W).

        Above 0 where d = 1.
        """
        if self.training:
            odds: Tensor = self.slope * (self.norm(self.saliency(x)) - self._wide(self.delta))
            return odds
        exported = (
            torch.compiler.is_compiling()
        )  # there, nothing may depend on a tensor's value but by an operation
        if not exported and self._is_open():
            return self._wide(torch.full((x.shape[0], self.units), OPEN, device=x.device))
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None and var is not None
        scale, shift = self._folded(lambda: self._fold(mean, var), self.delta, mean, var)
        odds = torch.addcmul(shift, self.saliency(x), scale)
        return torch.where(self.neutral, torch.full_like(odds, OPEN), odds) if exported else odds

    def _fold(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(var + self.norm.eps)
        return self._wide(self.slope * scale), self._wide(-self.slope * (mean * scale + self.delta))

    def _wide(self, each: Tensor) -> Tensor:
        """(..., units) as (..., units, 1, 1) where decisions are made for each activation."""
        return each[..., None, None] if self.function == "fine" else each

    def _compared(self) -> Tensor:
        return self._wide(self.limit())

    def _decide(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training or self.forced is not None:
            return super()._decide(x)
        self.neutral.fill_(False)  # the first training step
        odds = self.log_odds(x)
        return smoothed(odds), odds

    def forward(self, x: Tensor) -> Tensor:
        """What the gate reads -> decisions z (N, units), for `fine` (N, units, H, W).

        Of the latter, observers are told the means over positions.
        """
        z, odds = self._decide(x)
        self.report(_per_channel(z), None if odds is None else _per_channel(odds))
        return z


def smoothed(odds: Tensor) -> Tensor:
    """1 where odds > 0, else 0, with the gradient of sigmoid(odds)."""
    soft = torch.sigmoid(odds)
    return (odds > 0).to(odds.dtype) + (soft - soft.detach())


def _per_channel(value: Tensor) -> Tensor:
    return value.mean((2, 3)) if value.ndim == 4 else value


def _like(norm: nn.BatchNorm2d, share: float) -> nn.BatchNorm2d:
    """BN1, as like BN2 as can be said without data.

    Its affine part, and the statistics of a `share` of the terms of its sums.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    base = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine)
    with torch.no_grad():
        for name, tensor in norm.named_parameters(recurse=False):
            getattr(base, name).copy_(tensor)
        base.running_mean.copy_(share * norm.running_mean)  # type: ignore[union-attr]
        base.running_var.copy_(share * norm.running_var)  # type: ignore[union-attr]
    return base


class ChannelGating(Method):
    """Channel gating, as this file describes it."""

    needs: ClassVar[str] = (
        "convolutions behind the stem, not grouped, each with a BatchNorm that alone reads it"
        " (those of 1x1 must be named with --include)"
    )
    paper: ClassVar[str] = "Hua, Zhou, De Sa, Zhang, Suh: Channel gating neural networks, 2019"
    aims: ClassVar[bool] = False
    samples: ClassVar[bool] = False
    requires: ClassVar[frozenset[str]] = frozenset({CHANNELS})
    default_kinds: ClassVar[tuple[str, ...]] = ("conv",)

    def by_default(self, network: Network, site: Site) -> bool:
        return max(_conv(network, site).kernel_size) > 1

    def attach(self, network: Network, sites: Iterable[str], settings: Any) -> None:
        sites = list(sites)
        _check_eta(network, sites, settings)
        super().attach(network, sites, settings)

    def insert(self, network: Network, site: str, settings: Any) -> None:
        conv, norm = (
            network.get_submodule(str(node.target))
            for node in network.graph.nodes
            if node.name in network.sites[site].branch
        )
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        order, groups = base_channels(conv.in_channels, settings)
        gate = ChannelGate(site, conv, norm, order, groups, settings)
        surgery.insert_gate(network.traced, site, gate, self.name)

    def targets(self, settings: Any, sites: Iterable[str], epoch: int) -> dict[str, float]:
        return {}

    def loss(
        self, decisions: Mapping[str, Tensor], settings: Any, targets: Mapping[str, float]
    ) -> Tensor:
        return next(iter(decisions.values())).new_zeros(())

    def penalty(self, gates: Iterable[Decider], settings: Any) -> Tensor:
        weight: float = settings.loss_weight
        return weight * torch.cat([(settings.target - gate.delta).square() for gate in gates]).sum()


def base_channels(inputs: int, settings: CGNetSettings) -> tuple[tuple[int, ...], int]:
    """The base path of a convolution with so many input channels.

    Their order, group by group, and how many groups there are.
    """
    groups = round(1 / settings.eta)
    order = (
        [channel for first in range(groups) for channel in range(first, inputs, groups)]
        if settings.shuffle == "yes"
        else list(range(inputs))
    )
    if _grouped(settings):
        return tuple(order), groups
    return tuple(sorted(order[: round(settings.eta * inputs)])), 1


def _grouped(settings: CGNetSettings) -> bool:
    return settings.grouping == "yes" and settings.gate != "l1"


def _conv(network: Network, site: Site) -> nn.Conv2d:
    path = site.name.removesuffix(".channels")
    conv = network.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    return conv


def _check_eta(network: Network, sites: Iterable[str], settings: CGNetSettings) -> None:
    """Raises SettingError where eta does not divide a convolution's channels.

    It names the first one and the nearest eta that divides all.
    """
    convs = {site: _conv(network, network.sites[site]) for site in sites}
    widths = {site: _width(conv, settings) for site, conv in convs.items()}
    odd = next((site for site, width in widths.items() if not _divides(settings, width)), None)
    if odd is None:
        return
    shares = _dividing(math.gcd(*widths.values()), settings)
    advice = f"none divides all: leave it out with --exclude '{odd}'"
    if shares:
        nearest = min(shares, key=lambda share: abs(float(share) - settings.eta))
        advice = f"the nearest that divides all is {nearest}"
    conv = convs[odd]
    grouped = _grouped(settings)
    outputs = f" and {conv.out_channels} output" if grouped else ""
    groups = " into equal groups" if grouped else ""
    raise SettingError(
        f"expected setting `eta` to divide the {conv.in_channels} input{outputs} channels of"
        f" `{odd}`{groups}, but got {settings.eta:g}; {advice}"
    )


def _width(conv: nn.Conv2d, settings: CGNetSettings) -> int:
    """What eta has to divide of one convolution."""
    if _grouped(settings):
        return math.gcd(conv.in_channels, conv.out_channels)
    return conv.in_channels


def _dividing(width: int, settings: CGNetSettings) -> list[Fraction]:
    """All etas that divide so many channels."""
    if _grouped(settings):
        return [Fraction(1, n) for n in range(2, width + 1) if width % n == 0]
    return [Fraction(n, width) for n in range(1, width)]


def _divides(settings: CGNetSettings, width: int) -> bool:
    """Whether eta is 1/n with n groups of whole channels.

    Without grouping: whether it is a whole number of channels.
    """
    parts = 1 / settings.eta if _grouped(settings) else settings.eta * width
    whole = round(parts)
    return abs(parts - whole) < 1e-6 and (
        whole > 1 and width % whole == 0 if _grouped(settings) else 0 < whole < width
    )


register(
    ChannelGating(
        "cgnet",
        "a share of a convolution's input channels decides whether the others are needed, for each"
        " channel",
        CGNetSettings,
    )
)
