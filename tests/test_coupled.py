"""Filters that share an addition, gated as one site: a closed channel is zero throughout."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from networks import CASES, Case, infer, masked
from test_contract import close, decide, run_macs
from torch import nn
from torch.nn import functional as F

import gatecli
from gatecli.errors import SettingError
from gatecli.network import Network
from gatecli.network.costs import expected_macs, gate_macs

NAMES = ["cifar-projection", "bottleneck"]
METHODS = ["ind-perbatch", "aig-pergate"]
each = pytest.mark.parametrize("name", NAMES)
both = pytest.mark.parametrize("method", METHODS)


@functools.cache
def source(name: str) -> nn.Module:
    return CASES[name].build()


@functools.cache
def coupled(name: str, method: str, granularity: int = 1) -> Network:
    case = CASES[name]
    return gatecli.attach(
        source(name),
        method,
        kinds=["filter"],
        include=["*.stream"],
        coupled=True,
        granularity=granularity,
        input_size=case.size,
        arch=case.arch,
    ).network


def drawn(network: Network, seed: int, count: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for site, gate in network.site_gates.items():
        z = torch.randint(0, 2, (count, gate.units), generator=generator).float()
        z[:, 0] = 1
        found[site] = z
    return found


def alike(network: Network, seed: int) -> dict[str, list[int]]:
    return {site: z[0].int().tolist() for site, z in drawn(network, seed).items()}


def test_a_stream_is_all_that_is_added_up() -> None:
    network = coupled("cifar-projection", "ind-perbatch")
    widths = {site: network.sites[site].units for site in network.gated_by}
    assert widths == {
        "conv1.stream": 16,
        "layer2.0.conv2.stream": 32,
        "layer3.0.conv2.stream": 64,
    }
    first = network.sites["conv1.stream"]
    convolutions = [name for name in first.tail if "conv" in name]
    assert len(convolutions) == 4  # the stem and three blocks
    assert not {"conv1.filters", "layer1.0.conv2.filters"} & set(network.sites)
    assert "layer1.0.conv1.filters" in network.sites


@each
@both
def test_masked_skipped_and_pruned_are_the_same(name: str, method: str) -> None:
    network, case = coupled(name, method), CASES[name]
    x = case.images(4)
    assert close(infer(source(name), x.clone()), infer(network, x))
    for seed in range(2):
        with gatecli.force(network, drawn(network, seed, 4)):
            assert close(masked(network, x), infer(network, x))
    decisions = alike(network, 5)
    rates = {site: [float(unit) for unit in units] for site, units in decisions.items()}
    said = network.copy()
    if method == METHODS[0]:
        decide(said, decisions)
    result = gatecli.prune(said, rates=rates, static=0.5)
    with gatecli.force(network, decisions):
        assert close(infer(network, x), infer(result.network, x))
        gates = sum(gate_macs(network.traced, site) for site in decisions)  # forced: not run
        expected = expected_macs(network, rates) - gates
        assert expected == pytest.approx(run_macs(network, case.images(1)), rel=1e-9)
    assert result.network.macs_dense == run_macs(result.network, case.images(1))
    assert not result.network.gated_by and set(result.thinned) == set(decisions)


@each
def test_every_tensor_of_a_stream_loses_the_same_channels(name: str) -> None:
    """Against the plain network with these channels cut out of its tensors by hand."""
    network = coupled(name, "ind-perbatch").copy()
    decisions = alike(network, 2)
    decide(network, decisions)
    smaller = gatecli.prune(network).network
    for site, units in decisions.items():
        kept = [channel for channel, flag in enumerate(units) if flag]
        before, after = network.state_dict(), smaller.state_dict()
        for node in network.sites[site].tail:
            found = network.traced.node(node)
            weight = f"{found.target}.weight"
            if found.op == "call_module" and weight in before:
                rows = before[weight][kept]
                assert after[weight].shape[0] == len(kept)
                assert rows.ndim > 1 or torch.equal(rows, after[weight])


def test_a_stream_that_stays_partly_dynamic_is_replayed(tmp_path: Path) -> None:
    network, case = coupled("cifar-projection", "aig-pergate").copy(), CASES["cifar-projection"]
    x = case.images(3)
    rates = {}
    for site, gate in network.site_gates.items():
        rates[site] = [(0.0, 0.5, 1.0)[unit % 3] for unit in range(gate.units)]
    result = gatecli.prune(network, rates=rates)
    assert result.kept_dynamic == list(network.gated_by)
    gatecli.write(result.network, tmp_path / "net.safetensors")
    loaded = gatecli.load(tmp_path / "net.safetensors", arch=case.arch)
    assert loaded.sites == result.network.sites and loaded.recipe == result.network.recipe
    assert torch.equal(infer(result.network, x), infer(loaded, x))
    ours = {site: [int(rate > 0) for rate in units] for site, units in rates.items()}
    theirs = {site: [1] * gate.units for site, gate in loaded.site_gates.items()}
    with gatecli.force(network, ours), gatecli.force(loaded, theirs):
        assert close(infer(network, x), infer(loaded, x))
    z = drawn(loaded, 3, 3)
    with gatecli.force(loaded, z):
        assert close(masked(loaded, x), infer(loaded, x))


def test_groups_and_multiples() -> None:
    network = coupled("cifar-projection", "ind-perbatch", 4).copy()
    assert {gate.units for gate in network.site_gates.values()} == {4}
    decide(network, {site: [1, 0, 0, 1] for site in network.gated_by})
    result = gatecli.prune(network, round_to=12)
    smaller = result.network
    assert list(result.padded.values()) == [4, 8, 4]
    widths = [smaller.sites[site].units for site in network.gated_by]
    assert widths == [12, 24, 36]
    x = CASES["cifar-projection"].images(2)
    with gatecli.force(network, {site: [1, 0, 0, 1] for site in network.gated_by}):
        assert close(infer(network, x), infer(smaller, x))


def test_all_filters_together_and_within_blocks() -> None:
    case = CASES["cifar-projection"]
    result = gatecli.attach(
        source("cifar-projection"),
        "ind-perbatch",
        kinds=["filter"],
        coupled=True,
        input_size=case.size,
    )
    network, x = result.network, case.images(3)
    assert len(network.gated_by) == 3 + 9
    with gatecli.force(network, drawn(network, 1, 3)):
        assert close(masked(network, x), infer(network, x))
    decisions = alike(network, 4)
    decide(network, decisions)
    smaller = gatecli.prune(network)
    with gatecli.force(network, decisions):
        assert close(infer(network, x), infer(smaller.network, x))
    blocks = gatecli.attach(smaller.network, "ind-perbatch").network
    assert {blocks.sites[site].kind for site in blocks.gated_by} == {"block"}


def test_a_whole_stream_cannot_go() -> None:
    network = coupled("cifar-projection", "ind-perbatch").copy()
    decide(network, {site: [0] * gate.units for site, gate in network.site_gates.items()})
    result = gatecli.prune(network)
    assert list(result.stuck) == list(network.gated_by)
    assert "nothing would be left" in next(iter(result.stuck.values()))


class Mixing(nn.Module):
    """Its stream is read by a convolution in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.grouped, self.fc = nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.one(x))
        return self.fc(self.grouped(x + self.two(x)).mean((2, 3)))


def test_streams_that_cannot_lose_channels_are_refused_in_one_line() -> None:
    with pytest.raises(SettingError, match=r"`coupled`.*leave it out") as error:
        gatecli.attach(
            Mixing().eval(), "ind-perbatch", kinds=["filter"], coupled=True, input_size=(8, 8)
        )
    assert "\n" not in str(error.value)
    with pytest.raises(SettingError, match="coupled"):
        gatecli.attach(Mixing().eval(), "ind-perbatch", coupled="perhaps", input_size=(8, 8))
    case: Case = CASES["cifar-projection"]
    with pytest.raises(SettingError, match="--kind filter"):
        gatecli.attach(
            source("cifar-projection"), "ind-perbatch", coupled=True, input_size=case.size
        )
