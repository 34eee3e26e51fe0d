"""Several kinds gated in one step: filters within gated blocks and layers.

What is around decides first: where it is closed, nothing within is computed, nor counted.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest
import torch
from counting import counted
from networks import CASES, Case, infer, masked
from torch import Tensor, nn

import gatecli
from gatecli import methods
from gatecli.checkpoint import write
from gatecli.exporting.export import export
from gatecli.gates.observe import observe
from gatecli.network import Network
from gatecli.network.costs import CostMeter
from gatecli.stages.proof import verify_logits
from gatecli.traced.site import SiteDecision

Decided = dict[str, list[int]]
METHODS = ["ind-perbatch", "aig-perbatch"]


class Inverted(nn.Module):
    """An inverted residual as MobileNetV2's: expand, depthwise, project."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, inside, 1, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inside, inside, 3, 1, 1, groups=inside, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inside, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Squeezed(nn.Module):
    """An inverted residual as MobileNetV3's: its expansion is squeezed, and scaled."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, inside, 1)
        self.conv = nn.Conv2d(inside, inside, 3, 1, 1, groups=inside)
        self.squeeze = nn.Conv2d(inside, 4, 1)
        self.scale = nn.Conv2d(4, inside, 1)
        self.project = nn.Conv2d(inside, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(torch.relu(self.expand(x)))
        scale = torch.sigmoid(self.scale(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(scale * y)


def two_of(block: type[Inverted] | type[Squeezed]) -> nn.Module:
    """A classifier of two such blocks."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        block(6, 12),
        block(6, 9),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


INVERTED = Case(functools.partial(two_of, Inverted), 2, (12, 12))
SQUEEZED = Case(functools.partial(two_of, Squeezed), 2, (12, 12))
PLACES = {
    "own": (CASES["own"], ["block", "filter"]),
    "cifar-projection": (CASES["cifar-projection"], ["block", "filter"]),
    "dense": (CASES["dense"], ["layer", "filter"]),
    "inverted": (INVERTED, ["block", "filter"]),
    "inverted, hidden": (INVERTED, ["block", "filter", "hidden"]),
    "squeezed": (SQUEEZED, ["block", "filter", "hidden"]),
}


@functools.cache
def _gated(name: str, method: str) -> Network:
    case, kinds = PLACES[name]
    found = gatecli.attach(case.build(), method, kinds=kinds, input_size=case.size, arch="")
    assert found.kinds == kinds
    return found.network


def gated(name: str, method: str) -> Network:
    return _gated(name, method).copy().eval()


def drawn(network: Network, seed: int) -> Decided:
    """Decisions of which many close a site as a whole, or but for a few."""
    draw = random.Random(seed)
    found = {}
    for site, gate in network.site_gates.items():
        share = draw.choice([0.0, 0.3, 0.7, 1.0]) if gate.units > 1 else 0.5
        found[site] = [int(draw.random() < share) for _ in range(gate.units)]
    return found


def settled(network: Network, decided: Decided) -> Network:
    """A copy whose gates decide so by themselves, whatever they look at."""
    copy = network.copy().eval()
    for site, gate in copy.site_gates.items():
        limits = [0.0 if runs else 1.0 for runs in decided[site]]
        gate.threshold.copy_(torch.tensor(limits))
    return copy


def near(seen: Tensor, expected: Tensor) -> bool:
    return bool((seen - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PLACES)
def test_skipping_is_masking_whatever_each_image_has_open(name: str, method: str) -> None:
    network, images = gated(name, method), PLACES[name][0].images(3)
    for seed in range(4):
        each = [drawn(network, 10 * seed + number) for number in range(len(images))]
        forced = {site: torch.tensor([one[site] for one in each]) for site in network.site_gates}
        with gatecli.force(network, forced):
            assert near(infer(network, images), masked(network, images))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PLACES)
def test_what_lies_in_something_closed_is_neither_computed_nor_counted(
    name: str, method: str
) -> None:
    network, image = gated(name, method), PLACES[name][0].images(1)
    for seed in range(5):
        copy = settled(network, drawn(network, seed))
        meter = CostMeter(copy)
        with observe(copy, meter):
            meter.total += 1
            infer(copy, image)
        with counted() as macs:
            infer(copy, image)
        assert macs.total == round(meter.costs().item(), 6)  # shares are no binary fractions


@pytest.mark.parametrize("name", PLACES)
def test_pruned_is_forced_and_what_goes_takes_what_lies_within(name: str) -> None:
    network, images = gated(name, "ind-perbatch"), PLACES[name][0].images(2)
    for seed in range(4):
        decided = drawn(network, seed)
        result = gatecli.prune(settled(network, decided))
        closed = {site for site, units in decided.items() if not any(units)}
        assert closed == {*result.removed, *result.stuck}
        with gatecli.force(network, decided):
            assert near(infer(result.network, images), infer(network, images))
        for site in result.removed:
            own = network.sites[site]
            gone = network.traced.node(own.branch[0]).target
            assert not any(node.target == gone for node in result.network.graph.nodes)


def test_what_scales_hidden_units_is_not_gated_beside_them() -> None:
    sites = gated("squeezed", "ind-perbatch").site_gates
    assert "1.expand.hidden" in sites and "1.squeeze.filters" in sites
    assert not {"1.expand.filters", "1.scale.filters"} & set(sites)


def test_hidden_units_are_cut_where_their_scale_is_gated_too() -> None:
    """In two steps both can be gated: then the value is widened again, and its gate stays."""
    case = PLACES["squeezed"][0]
    first = gatecli.attach(
        case.build(), "ind-perbatch", kinds=["hidden"], input_size=case.size, arch=""
    ).network
    include = ["*.scale.filters"]
    network = gatecli.attach(first, "aig-perbatch", kinds=["filter"], include=include).network
    decision = SiteDecision.of(12, [1, 4, 5], dynamic=[0, 7, 8, 11])
    decisions = {"1.expand.hidden": decision}
    smaller = network.copy().eval()
    methods.apply_decisions(smaller, decisions)
    assert "1.expand.hidden" in smaller.gated_by and smaller.params < network.params
    assert verify_logits(network, smaller, decisions) <= 1e-5
    images = case.images(3)
    with gatecli.force(smaller, {"1.expand.hidden": [0, 1, 0, 1]}):
        assert near(infer(smaller, images), masked(smaller, images))


@pytest.mark.parametrize("name", PLACES)
def test_all_can_be_closed(name: str) -> None:
    network, images = gated(name, "ind-perbatch"), PLACES[name][0].images(2)
    closed = {site: [0] * gate.units for site, gate in network.site_gates.items()}
    result = gatecli.prune(settled(network, closed))
    with gatecli.force(network, closed):
        assert near(infer(result.network, images), infer(network, images))


@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_several_kinds_is_replayed(method: str, tmp_path: Path) -> None:
    case = PLACES["own"][0]
    kinds = ["block", "filter"]
    network = gatecli.attach(
        case.build(), method, kinds=kinds, input_size=case.size, arch=case.arch
    ).network.eval()
    path = tmp_path / "gated.safetensors"
    write(network, path)
    loaded = gatecli.load(str(path), arch=case.arch)
    images = case.images(2)
    assert dict(loaded.gated_by) == network.gated_by
    assert torch.equal(infer(loaded, images), infer(network, images))


def test_what_is_left_of_several_kinds_is_written_as_source(tmp_path: Path) -> None:
    """Blocks and filters gone, it needs torch alone."""
    case = PLACES["own"][0]
    network = gated("own", "ind-perbatch")
    decided = {site: [1] * gate.units for site, gate in network.site_gates.items()}
    inner = "units.0.c2.filters"
    decided["units.1"] = [0]
    decided[inner] = [unit % 2 for unit in range(len(decided[inner]))]
    pruned = gatecli.prune(settled(network, decided)).network
    assert pruned.params < network.params and not pruned.gated_by
    images = case.images(2)
    done = export(pruned, tmp_path / "plain.weights", "weights", images=images)
    assert done.max_difference <= 1e-5  # of the source, run in another process
