"""Channel gating: convolutions that look at the rest of their input only where it is worth it.

A convolution looks at a share of its input channels first, and at the others only where these
promise something.

    base path   Yp = Wp * xp,  xp = eta of the input channels
    decision    d = 1 where BN_na(s) > Delta, s = Yp;  BN_na: BatchNorm without affine, Delta:
        learned, one a channel
    output      d ? BN2(W * x) : BN1(Yp),  what W has beyond Wp computed where d = 1 only

Hua, Zhou, De Sa, Zhang, Suh, "Channel gating neural networks" (2019) and its supplement. Gradient:
that of sigmoid(eps (BN_na(s) - Delta)), the decision staying hard, so there is nothing that the
strategy `stochastic` could draw. Loss: cross-entropy +
loss_weight * sum over channels (T - Delta)^2, without weight decay on Delta. BN2 is the
checkpoint's own BatchNorm.

Gate functions (A.5), `s` being what is compared:
    fine    Yp, a decision for each activation; no dense kernel can use it, so what it saves is
        theoretical
    coarse  the mean of Yp over its positions, one decision for each output channel (the paper: the
        fine ones aggregated; ours: normalised anew, so that T means
            the same, standard deviations, in all four)
    l1      the mean |x| of each input channel, one decision for each of these: it is computed with,
        or not. No base path. BN_na has one mean and one deviation for all channels of all images,
        so that channels are compared with each other: large ones open
    fc      a linear layer of all input channels' mean |x|, one decision for each output channel
        (ours: starts at the mean |W| of each kernel). No base path: a closed channel is zero behind
        BN2, and a convolution that reads it does not look at it, so that both ends of a convolution
        are sparse. Its sites are those of the filters

With `base_path`, as in this project's first version, fc and l1 have one: closed channels of fc are
BN1(Yp), l1 decides for the channels beyond the base path alone, each normalised by itself. Files
without this setting mean that.

With grouping (3.3), output group i has input group i for its base path, block-diagonal in the
weights that are there; with shuffle, groups are made of every (1/eta)-th channel rather than of
neighbours. Neither changes what the network computes. The stem is never gated. An open channel
costs eta + (1 - eta) of itself, with groups too: what its own base path has not looked at is added
to that.

With `sparse_bp` the gradient through a decision is zero where it is 0, as the authors' code has it
as an option: backward passes skip what forward ones do.

Neutral start: no finite Delta opens every gate for every input, so a saved flag does, until the
first training step clears it; Delta then starts at `start`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gatecli.gates.decider import Decider
from gatecli.kinds.base import CHANNELS
from gatecli.methods.base import About, Method
from gatecli.methods.cgnet.base_path import base_channels, check_eta
from gatecli.methods.cgnet.gate import ChannelGate, smoothed
from gatecli.methods.cgnet.settings import CGNetSettings
from gatecli.methods.objective import Objective, Traits
from gatecli.methods.registry import register
from gatecli.network import Network
from gatecli.traced.site import Site

MASKED_KIND = "filter"  # where a closed channel is zero

__all__ = ["CGNetSettings", "ChannelGate", "base_channels", "smoothed"]


class Thresholds(Objective[CGNetSettings]):
    """Draws the gates' thresholds to one of the user's; no rate is aimed at."""

    traits: ClassVar[Traits] = Traits(aims=False, samples=False)

    def targets(
        self, settings: CGNetSettings, sites: Iterable[str], epoch: int
    ) -> dict[str, float]:
        return {}

    def loss(
        self,
        decisions: Mapping[str, Tensor],
        settings: CGNetSettings,
        targets: Mapping[str, float],
    ) -> Tensor:
        """Nothing: the thresholds alone are drawn, see `penalty`."""
        return next(iter(decisions.values())).new_zeros(())

    def penalty(self, gates: Iterable[Decider], settings: CGNetSettings) -> Tensor:
        distances = []
        for gate in gates:
            assert isinstance(gate, ChannelGate)
            distances.append((settings.target - gate.delta).square())
        return settings.loss_weight * torch.cat(distances).sum()


class ChannelGating(Method[CGNetSettings]):
    """Channel gating, as this file describes it."""

    def offers(
        self, network: Network, settings: CGNetSettings, kinds: Sequence[str] = ()
    ) -> list[Site]:
        """The convolutions' insides, or where closed channels are zero, the same ones' filters.

        Those that this method gates in the other way are left out.
        """
        inside = super().offers(network, settings, kinds)
        filters = super().offers(network, settings, (MASKED_KIND,))
        chosen, others = (filters, inside) if settings.masks else (inside, filters)
        mine = {name for name, method in network.gated_by.items() if method == self.about.name}
        convs = {site.branch[0] for site in inside}
        convs -= {site.branch[0] for site in others if site.name in mine}
        return [site for site in chosen if site.branch[0] in convs]

    def by_default(self, network: Network, site: Site) -> bool:
        return max(_conv(network, site).kernel_size) > 1

    def gate(self, network: Network, site: Site, settings: CGNetSettings) -> ChannelGate:
        conv, norm = _conv(network, site), _module(network, site.branch[1])
        assert isinstance(norm, nn.BatchNorm2d)
        order, groups = base_channels(conv.in_channels, settings)
        return ChannelGate(site.name, conv, norm, order, groups, settings)

    def attach(
        self,
        network: Network,
        sites: Sequence[str],
        settings: CGNetSettings,
        gater: Network | None = None,
    ) -> None:
        check_eta({site: _conv(network, network.sites[site]) for site in sites}, settings)
        super().attach(network, sites, settings, gater)


def _conv(network: Network, site: Site) -> nn.Conv2d:
    conv = _module(network, site.branch[0])
    assert isinstance(conv, nn.Conv2d)
    return conv


def _module(network: Network, node: str) -> nn.Module | None:
    return network.traced.module(network.traced.node(node))


register(
    ChannelGating(
        About(
            name="cgnet",
            summary="a share of a convolution's input channels decides whether the others are"
            " needed, for each channel",
            settings=CGNetSettings,
            paper="Hua, Zhou, De Sa, Zhang, Suh: Channel gating neural networks, 2019",
            needs="convolutions behind the stem, not grouped, each with a BatchNorm that alone"
            " reads it (those of 1x1 must be named with --include)",
            requires=frozenset({CHANNELS}),
            default_kinds=("conv",),
        ),
        Thresholds(),
    )
)
