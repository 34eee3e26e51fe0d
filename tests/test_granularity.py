"""Granularity beside residual blocks: layers of dense blocks, and convolutions without a shortcut.

Herrmann et al. 2018, S2.3: a gate for each n-th part of the output filters, and "we consider also
dropping the added x".
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from counting import counted
from networks import CASES, infer, lively, masked, traced
from test_contract import close, decide
from torch import Tensor, nn

import gatecli
from gatecli import methods
from gatecli.errors import SettingError
from gatecli.gates.decider import Decider
from gatecli.methods import recorded_settings
from gatecli.network import Network
from gatecli.network.costs import CostMeter, expected_macs, gate_macs
from gatecli.stages.predict import predict


class Plain(nn.Module):
    """No shortcut anywhere; the last convolution has no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 8, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


@functools.cache
def plain() -> Network:
    torch.manual_seed(1)
    return traced(lively(Plain(), torch.randn(8, 3, 8, 12)), (8, 12))


SIZE = {"dense": (8, 12), "plain": (8, 12)}
SPLIT = [("dense", "layer", 2), ("dense", "layer", 4), ("plain", "filter", 2)]
SPLIT += [("plain", "filter", 4), ("dense", "filter", 2)]
split = pytest.mark.parametrize(("name", "kind", "units"), SPLIT)
both = pytest.mark.parametrize("method", ["ind-perbatch", "aig-pergate"])


def source(name: str) -> Network:
    return plain() if name == "plain" else CASES["dense"].network()


@functools.cache
def made(name: str, kind: str, method: str, units: int) -> Network:
    return gatecli.attach(source(name), method, kinds=[kind], granularity=units).network


def images(network: Network, count: int) -> Tensor:
    return torch.randn(count, network.input.channels, *SIZE["plain"])


def drawn(network: Network, count: int, seed: int) -> dict[str, Tensor]:
    """Decisions of each image; at the first site all images have the same, with a closed unit."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for site, gate in network.site_gates.items():
        found[site] = torch.randint(0, 2, (count, gate.units), generator=generator).float()
    first = next(iter(found.values()))
    first[:] = 1
    first[:, -1] = 0
    return found


@split
@both
def test_groups_mean_what_their_masks_mean(name: str, kind: str, units: int, method: str) -> None:
    network = made(name, kind, method, units)
    assert {network.sites[site].kind for site in network.gated_by} == {kind}
    assert {gate.units for gate in network.site_gates.values()} == {units}
    x = images(network, 5)
    assert close(infer(source(name), x.clone()), infer(network, x))
    for count in (1, 5):
        with gatecli.force(network, drawn(network, count, seed=count)):
            wanted = masked(network, x[:count])
            torch.testing.assert_close(infer(network, x[:count]), wanted)
            with torch.enable_grad():
                torch.testing.assert_close(network(x[:count]), wanted)
            last = x[:count].contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(infer(network, last), wanted)
    with gatecli.force(network, drawn(network, 1, seed=0)):
        assert infer(network, x[:0]).shape == (0, network.num_classes)


@split
@pytest.mark.parametrize("seed", [0, 1])
def test_what_one_image_costs_is_what_is_multiplied(
    name: str, kind: str, units: int, seed: int
) -> None:
    """Closed groups are not computed, and their MACs are left out of the count; by hand it is the
    whole less the closed share of the last convolution, and all of a layer of which nothing runs,
    and what reads nothing but such groups costs the open share of its inputs.
    """
    network = made(name, kind, "ind-perbatch", units)
    x, decisions = images(network, 1), drawn(network, 1, seed)
    site = list(decisions)[1]
    decisions[site] = torch.zeros(1, units)  # one of which nothing runs
    left = {node: float(cost.macs) for node, cost in network.costs.items()}
    for each, z in decisions.items():
        place, open_ = network.sites[each], z.mean().item()
        for node in place.branch:
            left[node] *= open_ if node in place.tail else float(z.any())
        for reader in {saving.node for saving in place.savings} - set(place.branch):
            left[reader] *= open_
    meter = CostMeter(network)
    with gatecli.force(network, decisions), counted() as run:
        predict(network, [(x, torch.zeros(1))], meter=meter)
    assert meter.costs().item() == pytest.approx(sum(left.values()))
    assert run.total == pytest.approx(meter.costs().item())


@split
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prune_takes_closed_groups_out(name: str, kind: str, units: int, seed: int) -> None:
    network = made(name, kind, "ind-perbatch", units).copy()
    decisions = {site: z[0].int().tolist() for site, z in drawn(network, 1, seed).items()}
    for each in decisions.values():
        each[0] = 1  # none of the convolutions in a line may go altogether
    decide(network, decisions)
    result = gatecli.prune(network)
    x = images(network, 4)
    with gatecli.force(network, decisions):
        assert close(infer(network, x), infer(result.network, x))
    assert not result.network.gated_by and result.network.params < network.params
    assert result.network.macs_dense <= expected_macs(network, decisions)
    assert set(result.thinned) == {site for site, each in decisions.items() if 0 in each}
    again = gatecli.attach(result.network, "ind-perbatch", kinds=[kind]).network
    assert set(again.gated_by) == set(network.gated_by)


def test_a_convolution_keeps_groups_that_always_run_beside_dynamic_ones() -> None:
    """Of four groups one goes, one stays without a gate, two are decided as before."""
    network = made("plain", "filter", "aig-pergate", 4).copy()
    generator = torch.Generator().manual_seed(5)
    for gate in network.site_gates.values():
        decide_: nn.Linear = gate.get_submodule("decide")  # type: ignore[assignment]
        with torch.no_grad():
            decide_.weight.add_(torch.randn(decide_.weight.shape, generator=generator))
    rates = {site: [0.5, 0.0, 1.0, 0.5] for site in network.gated_by}
    result = gatecli.prune(network, rates=rates)
    smaller = result.network
    site = "features.3.filters"
    assert smaller.sites[site].places == (0, 1, 2, 6, 7, 8) and smaller.site_gates[site].units == 2
    assert smaller.state_dict()["features.3.weight"].shape[0] == 9
    x = images(network, 4)
    for z in ([1, 0], [0, 1], [1, 1], [0, 0]):
        small = dict.fromkeys(smaller.gated_by, z)
        with gatecli.force(network, {key: [z[0], 0, 1, z[1]] for key in network.gated_by}):
            wanted = infer(network, x)
        with gatecli.force(smaller, small):
            assert close(wanted, infer(smaller, x)) and close(wanted, masked(smaller, x))
            with counted() as run:
                infer(smaller, x[:1])
        rates_now = {name: [float(unit) for unit in units] for name, units in small.items()}
        gates = sum(gate_macs(smaller.traced, each) for each in small)  # not asked where forced
        assert run.total + gates == pytest.approx(expected_macs(smaller, rates_now))
    twice = gatecli.prune(smaller, rates={key: [0.0, 0.5] for key in smaller.gated_by}).network
    assert twice.sites[site].places == (3, 4, 5) and twice.site_gates[site].units == 1
    with gatecli.force(smaller, {key: [0, 1] for key in smaller.gated_by}):
        wanted = infer(smaller, x)
    with gatecli.force(twice, {key: [1] for key in twice.gated_by}):
        assert close(wanted, infer(twice, x))


def test_a_split_network_is_saved_and_loaded(tmp_path: Path) -> None:
    case = CASES["dense"]
    how = {"arch": case.arch, "input_size": case.size, "granularity": 2}
    network = gatecli.attach(case.build(), "aig-perbatch", **how).network  # type: ignore[arg-type]
    gatecli.write(network, tmp_path / "net.safetensors")
    loaded = gatecli.load(tmp_path / "net.safetensors", arch=case.arch)
    x = images(network, 3)
    assert loaded.sites == network.sites and torch.equal(infer(network, x), infer(loaded, x))


@pytest.mark.parametrize("name", ["aig-perbatch", "ind-pergate"])
def test_files_of_before_split_residual_branches_alone(name: str) -> None:
    """They record the setting for layers and filters too, where it did nothing."""
    method = methods.get(name)
    settings = recorded_settings(method, {"granularity": 2})
    assert settings.granularity_of == "residual"
    network = source("dense")
    for site in network.sites.values():
        if site.kind in ("layer", "filter"):
            assert _gate(name, network, site.name, settings).units == site.units
    residual = CASES["own"].network()
    block = next(site for site in residual.sites.values() if site.kind == "block")
    assert _gate(name, residual, block.name, settings).units == 2


def _gate(name: str, network: Network, site: str, settings: object) -> Decider:
    return methods.get(name).gate(network, network.sites[site], settings)  # type: ignore[arg-type]


def test_what_cannot_be_split_so() -> None:
    with pytest.raises(SettingError, match=r"expected the number of units to divide the 4 filters"):
        gatecli.attach(source("dense"), "ind-perbatch", granularity=3)
    with pytest.raises(SettingError, match=r"to divide the 8 filters of .*, but got 16"):
        gatecli.attach(plain(), "ind-perbatch", kinds=["filter"], granularity=16)
    with pytest.raises(SettingError, match="`granularity_of` to be one of every, residual"):
        gatecli.attach(plain(), "ind-perbatch", granularity_of="all")
