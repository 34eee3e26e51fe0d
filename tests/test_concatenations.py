"""GaterNet behind concatenations: Inception modules, poolings among their parts, concatenations
within concatenations.
"""

from __future__ import annotations

import functools

import pytest
import torch
from networks import lively
from torch import Tensor, nn
from torch.nn import functional as F

import gatecli
from gatecli.network import Network
from gatecli.network.compare import relative_change
from gatecli.network.costs import expected_macs
from gatecli.stages.profile import real_share, subject_of
from gatecli.traced.recipe import InputSpec, Recipe, Source


def conv(channels: int, width: int, size: int | tuple[int, int] = 1) -> nn.Module:
    size = size if isinstance(size, tuple) else (size, size)
    return nn.Sequential(
        nn.Conv2d(channels, width, size, padding=(size[0] // 2, size[1] // 2), bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


class Module(nn.Module):
    """Two ways, one of them a concatenation of two, and a pooling, which a convolution of `after`
    filters may follow: (N, C, H, W) -> (N, 12 + (after or C), H, W).
    """

    def __init__(self, channels: int, after: int = 0) -> None:
        super().__init__()
        self.after = conv(channels, after) if after else None
        self.one, self.two, self.wide, self.high = (
            conv(channels, 4),
            conv(channels, 6),
            conv(6, 5, (1, 3)),
            conv(6, 3, (3, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        inner, pooled = self.two(x), F.max_pool2d(x, 3, 1, 1)
        return torch.cat(
            [
                self.one(x),
                torch.cat([self.wide(inner), self.high(inner)], 1),
                pooled if self.after is None else self.after(pooled),
            ],
            1,
        )


class Inception(nn.Module):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.fc = (
            conv(3, 6, 3),
            Module(6),
            Module(18, after),
            nn.Linear(12 + (after or 18), 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(self.stem(x))).mean((2, 3)))


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(4))


@functools.cache
def source(after: int = 7) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(Inception(after), images(8))


@functools.cache
def gated(after: int = 7) -> Network:
    return gatecli.attach(
        Network(source(after), Recipe(Source("own:inception", {}), InputSpec((8, 8), 3))),
        "gaternet",
        bottleneck=2,
    ).network


PARTS = [
    "first.one.0",
    "first.wide.0",
    "first.high.0",
    "first.max_pool2d",
    "second.one.0",
    "second.wide.0",
    "second.high.0",
    "second.after.0",
]


def test_every_part_of_a_concatenation_is_gated() -> None:
    network = gated()
    assert sorted(network.gated_by) == sorted(f"{part}.filters" for part in PARTS)
    assert [network.sites[f"{part}.filters"].units for part in PARTS] == [4, 5, 3, 6, 4, 5, 3, 7]
    with torch.no_grad():
        assert relative_change(source()(images()), network(images())) < 1e-5


def drawn(network: Network, count: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        site: torch.randint(0, 2, (count, gate.units), generator=draw).float()
        for site, gate in network.site_gates.items()
    }


@pytest.mark.parametrize("count", [1, 3])
def test_gates_are_those_behind_the_concatenation(count: int) -> None:
    network, model, x = gated(), source(), images(count)
    z = drawn(network, count)
    behind = {
        name: torch.cat([z[f"{part}.filters"] for part in PARTS if part.startswith(name)], 1)
        for name in ("first", "second")
    }
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: out * behind[name][:, :, None, None]
        )
        for name in behind
    ]  # type: ignore[misc]
    with torch.no_grad():
        expected = model(x)
    for hook in hooks:
        hook.remove()
    with torch.no_grad(), gatecli.force(network, z):
        assert (
            relative_change(expected, network(x)) < 1e-5
            and relative_change(expected, network._masked(network, x)) < 1e-5
        )


def test_a_closed_gate_saves_its_filter_and_behind_a_pooling_nothing() -> None:
    network = gated()
    dense = network.macs_dense
    for site, saved in (
        ("first.one.0.filters", 6 * 64),
        ("first.wide.0.filters", 6 * 3 * 64),
        ("first.max_pool2d.filters", 0),
    ):
        rates = {name: [1.0] * gate.units for name, gate in network.site_gates.items()}
        rates[site][1] = 0.0
        assert dense - expected_macs(network, rates) == saved


def test_profile_knows_what_a_batch_saves() -> None:
    network = gated()
    rates = {site: [1.0] * gate.units for site, gate in network.site_gates.items()}
    rates["first.one.0.filters"][:2] = [0.0, 0.75]
    subject = subject_of("x", network, 0, rates)
    assert real_share(subject, 1) == pytest.approx(1) and real_share(subject, 3) == pytest.approx(
        (1 + 0.25**3) / 1.25
    )
    assert (
        real_share(
            subject_of(
                "x",
                network,
                0,
                {site: [1.0] * gate.units for site, gate in network.site_gates.items()},
            ),
            2,
        )
        is None
    )


@pytest.mark.parametrize("rates", [(0.0, 1.0, 0.5), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0)])
def test_prune_takes_maps_out_of_a_concatenation(rates: tuple[float, ...]) -> None:
    network = gated()
    result = gatecli.prune(
        network,
        rates={
            site: [rates[unit % 3] for unit in range(gate.units)]
            for site, gate in network.site_gates.items()
        },
    )
    assert result.max_logit_change < 1e-5
    smaller = result.network
    kept = {
        units: sum(rate > 0 for rate in [rates[unit % 3] for unit in range(units)])
        for units in (3, 4, 5, 6, 7)
    }
    assert smaller.get_submodule("first.one.0").out_channels == kept[4]
    assert (
        smaller.get_submodule("second.one.0").in_channels == kept[4] + kept[5] + kept[3] + kept[6]
    )  # who reads the concatenation shrinks, poolings' maps included
    assert smaller.get_submodule("fc").in_features == kept[4] + kept[5] + kept[3] + kept[7]
    assert ("gater" in smaller._modules) is (0.5 in rates)


def test_a_pooling_of_which_nothing_is_read_goes() -> None:
    network = gated()
    rates = {
        site: [0.0 if "pool" in site else 1.0] * gate.units
        for site, gate in network.site_gates.items()
    }
    result = gatecli.prune(network, rates=rates)
    assert (
        result.removed == [site for site in network.gated_by if "pool" in site]
        and result.max_logit_change < 1e-5
    )
    assert [node.name for node in result.network.graph.nodes if "pool" in node.name] == [
        "max_pool2d_1"
    ]


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_pooling_whose_maps_are_gated_keeps_what_it_reads_wide(rate: float) -> None:
    network = gated(0)
    result = gatecli.prune(
        network,
        rates={
            site: [(0.0, 1.0, rate)[unit % 3] for unit in range(gate.units)]
            for site, gate in network.site_gates.items()
        },
    )
    assert result.max_logit_change < 1e-5
    assert (
        result.network.get_submodule("first.one.0").out_channels == 2
        and result.network.get_submodule("second.one.0").in_channels == 18
    )


def test_googlenet_is_gated_behind_its_modules() -> None:
    from gatecli.architectures.build import build_skeleton

    network = Network(
        build_skeleton("torchvision:googlenet", {"aux_logits": False}),
        Recipe(Source("torchvision:googlenet", {"aux_logits": False}), InputSpec((224, 224), 3)),
    )
    assert (
        sum(site.units for site in network.sites.values() if site.role == "concatenation")
        == 256 + 480 + 512 + 512 + 512 + 528 + 832 + 832 + 1024
    )
