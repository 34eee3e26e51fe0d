"""Runtimes that compute units by so many at a time: found by the clock, and filled.

No clock is read: a runtime made for these tests says itself what a call takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from clockless import installed
from commandline import SIDE, call, edit, run, save_npz, save_source
from torch import Tensor, nn

import gatecli
from gatecli.calibration.gates.grains import filled
from gatecli.network import Network
from gatecli.network.price import Milliseconds
from gatecli.runtimes.base import Order, Prepared, Runtime
from gatecli.stages import grains
from gatecli.stages.price import How, price
from gatecli.traced.latency import LatencyTable

SIZE = (SIDE, SIDE)
CLASSES = 4
WIDTHS = (32, 40)
UNITS = {"one.filters": WIDTHS[0], "two.filters": WIDTHS[1]}
MS_PER_MAC = 1e-6
START = 0.001
OFF = 3  # times as long takes what is no multiple of four


class Small(nn.Module):
    """Two convolutions side by side: what one saves is nothing of the other's."""

    def __init__(self, passes: bool = True) -> None:
        super().__init__()
        self.passes = passes
        self.one = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.two = nn.Conv2d(3, WIDTHS[1], 3, padding=1)
        self.head = nn.Linear(3 * passes + sum(WIDTHS), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.one(x).relu(), self.two(x).relu(), *([x] if self.passes else [])]
        return self.head(torch.cat(maps, 1).mean((2, 3)))


class Blocks(Runtime):
    """Computes a convolution's filters by so many at a time."""

    name = "blocks"
    about = "a runtime whose calls say what they take"
    at_once = 8

    def missing(self) -> str:
        return ""

    def prepare(self, order: Order) -> Prepared:
        model = order.model
        assert isinstance(model, Network)
        takes = self.takes(model)
        return Prepared(
            feed=lambda images: images, call=lambda images: takes, logits=lambda found: found
        )

    def takes(self, network: Network) -> float:
        total = START
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                out = -(-module.out_channels // self.at_once) * self.at_once
                slow = OFF if self.at_once > 1 and module.out_channels % 4 else 1
                total += MS_PER_MAC * SIZE[0] * SIZE[1] * 27 * out * slow
        return total


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Blocks:
    runtime = Blocks()
    installed(runtime, monkeypatch)
    return runtime


def gated(method: str = "ind-perbatch", passes: bool = True) -> Network:
    torch.manual_seed(0)
    return gatecli.attach(Small(passes), method, kinds=["filter"], input_size=SIZE).network


def priced(network: Network) -> tuple[Network, LatencyTable]:
    return price(network, How(runtime="blocks", repeats=3))


# --- what the clock says ---


@pytest.mark.parametrize(
    ("ms", "grain"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1),  # nothing gained
        ([1.0, 0.97, 0.97, 0.97], 1),  # hardly anything
        ([1.0, 0.5, 0.5, 0.6], 8),  # of those that take as little the largest
        ([1.0, 0.5, 0.51, 0.52], 16),
        ([1.0, 1.0, 0.5, 0.7], 8),
        ([1.0, 1.1, 1.2, 1.3], 1),
    ],
)
def test_the_largest_of_the_quickest_is_taken(ms: Sequence[float], grain: int) -> None:
    assert grains.best(grains.GRAINS, ms) == grain


def test_a_little_more_than_half_of_the_units_are_tried() -> None:
    found = grains.tried(gated(), list(UNITS))
    assert [grain for grain, _ in found] == [1, 4, 8, 16]
    counts = [tuple(running.values()) for _, running in found]
    assert counts == [(17, 21), (20, 24), (24, 24), (32, 32)]


@pytest.mark.parametrize("at_once", [1, 4, 8])
def test_price_finds_them(blocks: Blocks, at_once: int) -> None:
    blocks.at_once = at_once
    network, table = priced(gated())
    assert {times.grain for times in table.sites.values()} == {at_once}
    for site, times in table.sites.items():
        counts = [share * UNITS[site] for share, _ in times.static]
        assert counts == [round(each) for each in counts]
        assert all(round(each) % at_once == 0 for each in counts)
    for counts in itertools.product((8, 17, 23, 24, 31), (8, 9, 20, 33)):
        some = dict(zip(UNITS, counts, strict=True))
        rates = {s: [1.0] * n + [0.0] * (UNITS[s] - n) for s, n in some.items()}
        whole = {s: [-(-n // at_once) * at_once] for s, n in some.items()}
        expected = table.all_on_ms
        for site, (count,) in whole.items():
            expected -= MS_PER_MAC * SIZE[0] * SIZE[1] * 27 * (UNITS[site] - count)
        assert Milliseconds(table).of(network, rates) == pytest.approx(expected)


def test_what_looks_at_images_is_not_counted_in_them(blocks: Blocks) -> None:
    _, table = priced(gated("aig-perbatch"))
    assert {times.grain for times in table.sites.values()} == {1}


def test_sites_that_cannot_all_go_are_timed_as_far_as_they_can(blocks: Blocks) -> None:
    _, table = priced(gated(passes=False))
    assert all(times.static[0][0] == 0 for times in table.sites.values())  # each alone can


# --- filled ---


def test_the_likeliest_of_those_closed_are_let_run() -> None:
    generator = torch.Generator().manual_seed(0)
    for units, grain, tau in itertools.product((3, 8, 13), (2, 4, 16), (0.0, 0.3, 0.5, 0.7, 1.0)):
        odds = torch.randn(units, generator=generator)
        wanted = [unit for unit in range(units) if odds[unit].sigmoid() > tau]
        count = min(units, -(-len(wanted) // grain) * grain)
        ranked = sorted(range(units), key=lambda unit: -odds[unit].item())
        limit = torch.logit(torch.tensor(filled([tau] * units, odds, grain)).clamp(0, 1))
        runs = [unit for unit in range(units) if odds[unit] > limit[unit]]
        assert runs == sorted(ranked[:count])


@pytest.mark.parametrize("per_gate", [False, True])
def test_calibrate_leaves_whole_blocks(blocks: Blocks, tmp_path: Path, per_gate: bool) -> None:
    network = gated()
    data = gatecli.load_data(f"npz:{save_npz(tmp_path / 'data.npz', classes=CLASSES)}")
    gatecli.fit(network, data)
    for gate in network.site_gates.values():
        nn.init.normal_(gate.logits, std=2.0)  # type: ignore[arg-type]
    network, table = priced(network)
    least = Milliseconds(table).least(network)
    limit = (table.all_on_ms + least) / 2
    found = gatecli.calibrate(network, data, max_ms=limit, per_gate=per_gate)
    assert found.ms_expected is not None and least < found.ms_expected <= limit
    counts = {site: sum(rates) for site, rates in found.rates.items()}
    assert any(0 < count < UNITS[site] for site, count in counts.items())
    assert all(count % 8 == 0 for count in counts.values())
    assert blocks.takes(gatecli.prune(found.network).network) == pytest.approx(found.ms_expected)


# --- on the command line ---


def test_price_and_prune_say_the_multiples(
    blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    where = ["--kind", "filter", "--include", "layer2.*", "--input-size", SIDE]
    call("attach", "r20.pt", "--method", "ind-perbatch", *where)

    def scatter(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith("gates.") and tensor.ndim > 1:
                nn.init.normal_(tensor, std=2.0)

    edit(tmp_path / "r20.ind-perbatch.safetensors", tmp_path / "g.safetensors", scatter)
    said = run("price", "g.safetensors", "--runtime", "blocks", "--repeats", 3)
    assert "multiples of 8 units of kind filter" in said.err
    said = run("prune", "g.priced.safetensors")
    assert "sites have other numbers of units" in said.err and "--round-to 8" in said.err
    said = run("prune", "g.priced.safetensors", "--round-to", 16, "--force")
    assert "note:" not in said.err
