"""The rate with a price: the formula against a slow reference, the loss, and the command line."""

from __future__ import annotations

import functools
import itertools
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, contents, edit, refused, run, save_npz, save_source, strict
from networks import CASES
from torch import Tensor

import gatecli
from gatecli import methods
from gatecli.errors import Interrupted, SettingError
from gatecli.methods.layer_gates import LayerGateSettings
from gatecli.network import Network
from gatecli.network.costs import expected_macs
from gatecli.network.price import Milliseconds
from gatecli.network.priced import PricedMacs, PricedMilliseconds
from gatecli.progress import Progress
from gatecli.runtimes.machine import describe
from gatecli.stages.price import How
from gatecli.traced.latency import LatencyTable, SiteTimes
from gatecli.training import TrainOptions, pricing
from gatecli.training.goals import Price, goal_of
from gatecli.training.pricing import priced
from gatecli.training.trained import Trained


@functools.cache
def gated(name: str = "own", **settings: Any) -> Network:
    """Blocks or layers and the filters within; where these are split, blocks alone."""
    kinds = ["layer", "filter"] if name == "dense" else ["block", "filter"]
    kinds = ["block"] if "granularity" in settings else kinds
    return gatecli.attach(CASES[name].network(), "ind-perbatch", kinds=kinds, **settings).network


def drawn(network: Network, images: int, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for site, gate in network.site_gates.items():
        share = [0.0, 0.2, 0.6, 1.0][int(torch.randint(4, (), generator=draw))]
        found[site] = (torch.rand(images, gate.units, generator=draw) < share).float()
    return found


def left_of_node(network: Network, node: str, z: Mapping[str, list[float]]) -> float:
    """The share of a node's MACs that one image with these decisions computes."""
    left = 1.0
    for site, units in z.items():
        for saving in network.sites[site].savings:
            if saving.node != node:
                continue
            runs = sum(units) / len(units) if saving.per_unit else float(any(units))
            left *= 1 - saving.share * (1 - runs)
    return left


def slow_share(network: Network, decisions: Mapping[str, Tensor]) -> float:
    """Image by image and node by node, in plain numbers."""
    images = len(next(iter(decisions.values())))
    nothing = {site: [0.0] * gate.units for site, gate in network.site_gates.items()}
    run = savable = 0.0
    for node, cost in network.costs.items():
        floor = left_of_node(network, node, nothing)
        savable += cost.macs * (1 - floor)
        for image in range(images):
            z = {site: units[image].tolist() for site, units in decisions.items()}
            run += cost.macs * (left_of_node(network, node, z) - floor) / images
    return run / savable


@pytest.mark.parametrize(
    ("name", "settings"), [("own", {}), ("dense", {}), ("own", {"granularity": 4})]
)
def test_macs_are_weighed_by_image_and_by_node(name: str, settings: dict[str, Any]) -> None:
    network = gated(name, **settings)
    share = PricedMacs(network, list(network.site_gates))
    for seed in range(4):
        decisions = drawn(network, 5, seed)
        expected = slow_share(network, decisions)
        assert share.of_decisions(decisions).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["own", "dense"])
def test_all_on_is_one_all_off_is_zero_and_rates_say_what_the_expected_macs_do(name: str) -> None:
    network = gated(name)
    share = PricedMacs(network, list(network.site_gates))
    draw = random.Random(0)
    rates = {}
    for site, gate in network.site_gates.items():
        rates[site] = [draw.random() for _ in range(gate.units)]
    zeros = {site: [0.0] * len(units) for site, units in rates.items()}
    floor = expected_macs(network, zeros)
    expected = (expected_macs(network, rates) - floor) / (network.macs_dense - floor)
    assert share.of_rates(network, rates) == pytest.approx(expected)
    assert share.of_rates(network, zeros) == pytest.approx(0)
    on = {site: torch.ones(2, len(units)) for site, units in rates.items()}
    off = {site: torch.zeros(2, len(units)) for site, units in rates.items()}
    assert share.of_decisions(on).item() == pytest.approx(1)
    assert share.of_decisions(off).item() == pytest.approx(0, abs=1e-6)


def test_a_filter_in_a_closed_block_is_worth_nothing() -> None:
    network = gated()
    share = PricedMacs(network, list(network.site_gates))
    inner = "units.0.c2.filters"
    assert network.sites["units.0"].kind != network.sites[inner].kind
    gradients = []
    for block in (0.0, 1.0):
        z = {site: torch.ones(1, gate.units) for site, gate in network.site_gates.items()}
        z["units.0"] = torch.full((1, 1), block)
        z[inner].requires_grad_(True)
        share.of_decisions(z).backward()  # type: ignore[no-untyped-call]
        gradients.append(z[inner].grad)
    closed, opened = gradients
    assert closed is not None and opened is not None
    assert bool((closed == 0).all()) and bool((opened > 0).all())


def test_alone_it_is_the_weighed_mean() -> None:
    """Blocks do not overlap: sum c_i z_i / sum c_i."""
    network = gatecli.attach(CASES["own"].network(), "ind-perbatch").network
    decisions = drawn(network, 6, 3)
    costs = {site: network.sites[site].macs for site in decisions}
    expected = sum(costs[site] * z.mean().item() for site, z in decisions.items())
    share = PricedMacs(network, list(decisions))
    assert share.of_decisions(decisions).item() == pytest.approx(expected / sum(costs.values()))


# --- milliseconds ---


def table_of(network: Network, **ms: float) -> LatencyTable:
    """A table in which each site saves a millisecond for a thousand MACs, or what is said."""
    sites = {}
    for site in network.site_gates:
        macs = sum(network.costs[each.node].macs for each in network.sites[site].savings)
        saved = ms.get(site.replace(".", "_"), macs / 1000)
        sites[site] = SiteTimes(static=[[0.0, -saved], [1.0, 0.0]], dynamic=[])
    return LatencyTable(
        machine=describe(),
        runtime="native",
        precision="fp32",
        threads=torch.get_num_threads(),
        all_on_ms=network.macs_dense / 1000,
        shared_ms=0.0,
        sites=sites,
    )


@pytest.mark.parametrize("name", ["own", "dense"])
def test_milliseconds_that_are_macs_are_priced_and_summed_up_as_these(name: str) -> None:
    network = gated(name)
    table, sites = table_of(network), list(network.site_gates)
    for seed in range(4):
        decisions = drawn(network, 1, seed)
        rates = {site: z[0].tolist() for site, z in decisions.items()}
        ms = Milliseconds(table).of(network, rates)
        assert ms == pytest.approx(expected_macs(network, rates) / 1000)
        seen = PricedMilliseconds(network, sites, table).of_decisions(decisions).item()
        assert seen == pytest.approx(slow_share(network, decisions), abs=1e-5)


def test_a_dear_site_weighs_more_and_closing_what_costs_is_charged() -> None:
    network = gatecli.attach(CASES["own"].network(), "ind-perbatch").network
    table = table_of(network, units_0=6.0, units_1=2.0, units_2_body=-0.5)
    share = PricedMilliseconds(network, list(network.site_gates), table)
    z = {site: torch.ones(1, 1) for site in network.site_gates}
    z["units.0"] = torch.zeros(1, 1)
    assert share.of_decisions(z).item() == pytest.approx(1 - 6 / 8)
    z["units.2.body"] = torch.zeros(1, 1)
    assert share.of_decisions(z).item() == pytest.approx(1 - (6 - 0.5) / 8)
    with pytest.raises(SettingError, match="gates that save milliseconds"):
        nothing = table_of(network, units_0=-1.0, units_1=0.0, units_2_body=0.0)
        PricedMilliseconds(network, list(network.site_gates), nothing)


QUICK_WHOLE = [[0.0, -6.0], [0.25, 9.0], [0.5, 8.0], [0.75, 7.0], [1.0, 0.0]]
NEVER_GONE = [[0.25, -4.0], [0.5, -5.0], [0.75, 1.0], [1.0, 0.0]]
ALWAYS_WHOLE = [[1.0, 0.0]]


def bent(network: Network) -> LatencyTable:
    """Filters by curves that do not go with their number, in turns; blocks as by MACs."""
    table = table_of(network)
    for number, site in enumerate(network.site_gates):
        if site.endswith("filters"):
            curve = (QUICK_WHOLE, NEVER_GONE, ALWAYS_WHOLE)[number % 3]
            table.sites[site] = SiteTimes(static=curve, dynamic=[])
    return table


def test_a_curve_that_is_not_straight_is_paid_as_it_is() -> None:
    """In a loss as in a budget: the two are one sum, over the most that it can come to."""
    network = gated()
    table, sites = bent(network), list(network.site_gates)
    price, share = Milliseconds(table), PricedMilliseconds(network, sites, table)
    most = table.all_on_ms - price.least(network)
    for seed in range(8):
        decisions = drawn(network, 1, seed)
        rates = {site: z[0].tolist() for site, z in decisions.items()}
        ms = price.of(network, rates)
        expected = 1 - (table.all_on_ms - ms) / most
        assert share.of_decisions(decisions).item() == pytest.approx(expected, abs=1e-4)
        assert share.of_rates(network, rates) == pytest.approx(expected, abs=1e-4)
        assert ms >= price.least(network) - 1e-9


@pytest.mark.parametrize("curve", [QUICK_WHOLE, NEVER_GONE])
def test_units_feel_the_curve_where_they_are(curve: list[list[float]]) -> None:
    network = gated()
    site = next(name for name in network.site_gates if name.endswith("filters"))
    table = table_of(network)
    table.sites[site] = SiteTimes(static=curve, dynamic=[])
    share = PricedMilliseconds(network, list(network.site_gates), table)
    units = network.site_gates[site].units
    most = table.all_on_ms - Milliseconds(table).least(network)
    for left, right in itertools.pairwise(curve):
        z = {name: torch.ones(1, gate.units) for name, gate in network.site_gates.items()}
        z[site] = torch.full((1, units), (left[0] + right[0]) / 2, requires_grad=True)
        share.of_decisions(z).backward()  # type: ignore[no-untyped-call]
        slope = (right[1] - left[1]) / (right[0] - left[0])
        assert z[site].grad is not None
        assert torch.allclose(z[site].grad, torch.tensor(slope / units / most), rtol=1e-4)
    effects = share.effects({name: gate.units for name, gate in network.site_gates.items()})
    saves = -min(ms for _, ms in curve)
    assert torch.allclose(effects[site], torch.tensor(saves / units / most), rtol=1e-4)


# --- in the loss ---


def trained(network: Network, **settings: Any) -> Trained:
    method = methods.get("ind-perbatch")
    each = Trained(method=method, settings=methods.parse_settings(method, settings))
    return priced(each, network, TrainOptions())


def test_the_loss_holds_the_priced_rate() -> None:
    network = gated()
    decisions = drawn(network, 4, 1)
    targets = dict.fromkeys(decisions, 0.3)
    rate = slow_share(network, decisions)
    seen = trained(network, price="macs", loss_weight=2.0).loss(decisions, targets)
    assert seen.item() == pytest.approx(2 * (rate - 0.3) ** 2, rel=1e-4)
    counted = torch.cat(list(decisions.values()), 1).mean().item()
    seen = trained(network, price="count").loss(decisions, targets)
    assert seen.item() == pytest.approx((counted - 0.3) ** 2, rel=1e-4)
    below = trained(network, price="macs", loss_form="const-quad")
    assert below.loss(decisions, dict.fromkeys(decisions, 1.0)).item() == 0


def test_a_budget_counts_what_is_nested_once() -> None:
    network = gated()
    goal = goal_of(network, [trained(network, price="macs")], TrainOptions(max_gmacs=0.001))
    zeros = {site: [0.0] * gate.units for site, gate in network.site_gates.items()}
    assert isinstance(goal, Price) and goal.fixed == expected_macs(network, zeros) > 0


@pytest.mark.parametrize("method", ["ind-pergate", "aig-pergate"])
def test_a_loss_gate_by_gate_has_no_price(method: str) -> None:
    with pytest.raises(SettingError, match=r"price=count.*-perbatch"):
        methods.parse_settings(methods.get(method), {"price": "macs"})


def test_targets_of_their_own_have_no_price() -> None:
    settings = LayerGateSettings(price="ms", targets=(0.2, 0.5))
    with pytest.raises(SettingError, match=r"price=count.*`targets`.*price=ms"):
        settings.check(1)


# --- on the command line ---

LINE = ["--data", "npz:data.npz", "--epochs", 1, "--batch-size", 32, "--bn-batches", 0]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_source(folder / "r20.pt")
    save_npz(folder / "data.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call("attach", "r20.pt", "--method", "ind-perbatch", "--kind", "block,filter", *INPUT)
    return folder


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("r20.pt", "data.npz", "gated.safetensors"):
        shutil.copy(shelf / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pricing, "price", _timed)
    return tmp_path


INPUT = ["--include", "layer1.0*", "--input-size", SIDE, "--out", "gated.safetensors"]


def _timed(network: Network, how: How, *, progress: Progress) -> tuple[Network, LatencyTable]:
    """In the place of a measurement, which takes its time."""
    how.check()
    return network, table_of(network)


def test_macs_from_attach_to_prune(here: Path) -> None:
    line = ["finetune", "gated.safetensors", *LINE, "--set", "price=macs"]
    done = run(*line, "--out", "t.safetensors", "--json")
    assert "of the MACs that gates save" in done.err
    tuned = strict(done.out)
    assert tuned["price"] == "macs" and tuned["target_rate"] == pytest.approx(0.6)
    network = gatecli.load("t.safetensors")
    step = network.recipe.last("finetune")
    assert step is not None and step.results["price"] == "macs"
    share = PricedMacs(network, list(network.site_gates))
    rates = step.results["unit_rates"]
    assert tuned["achieved_rate"] == pytest.approx(share.of_rates(network, rates))
    pruned = call("prune", "t.safetensors", "--out", "p.safetensors")
    assert pruned["macs_dense"] <= network.macs_dense


def test_milliseconds_are_measured_where_no_table_is_and_kept(here: Path) -> None:
    line = [*LINE, "--set", "price=ms"]
    done = run("finetune", "gated.safetensors", *line, "--out", "t.safetensors")
    assert done.code == 0, done.err
    assert "has no latency table of this network: measuring one in native" in done.err
    assert "of the ms that gates save" in done.err
    _, recipe = contents("t.safetensors")
    (step,) = [each for each in recipe["steps"] if each["op"] == "price"]
    assert step["settings"] == {"runtime": "native", "precision": "fp32", "repeats": 30}
    again = run("finetune", "t.safetensors", *line, "--out", "v.safetensors")
    assert "price=ms by the checkpoint's table, of native" in again.err, again.err
    assert "measuring" not in again.err


def test_a_resumed_run_goes_by_the_same_table(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gatecli.training.loop import Loop

    whole = ["finetune", "gated.safetensors", *LINE, "--set", "price=ms"]
    step = Loop._step

    def stops(self: Any, *args: Any) -> None:
        step(self, *args)
        if self.position.step == 2:
            raise Interrupted("now")

    monkeypatch.setattr(Loop, "_step", stops)
    done = run(*whole, "--out", "a.safetensors")
    assert "--resume" in done.err, done.err
    monkeypatch.setattr(Loop, "_step", step)
    table = json.loads(Path(".gatecli/runs/a/latency.json").read_text())
    done = run("finetune", "--resume")
    assert done.code == 0 and "measuring" not in done.err, done.err
    _, recipe = contents("a.safetensors")
    assert [each["results"] for each in recipe["steps"] if each["op"] == "price"] == [table]


def test_bad_prices(here: Path) -> None:
    line = ["finetune", "gated.safetensors", *LINE]
    refused([*line, "--set", "price=watts"], "count, macs, ms")
    refused([*line, "--runtime", "native"], "--set price=ms")
    refused([*line, "--set", "price=ms", "--runtime", "abacus"], "abacus")
    refused("attach r20.pt --method aig-pergate --set price=macs", "price=count", "-perbatch")


def test_a_table_of_another_machine_is_refused(here: Path) -> None:
    def move(recipe: dict[str, Any]) -> None:
        table = table_of(gatecli.load("gated.safetensors")).facts() | {"machine": "Another CPU"}
        recipe["steps"].append({**recipe["steps"][-1], "op": "price", "results": table})

    edit(here / "gated.safetensors", here / "moved.safetensors", recipe=move)
    line = ["finetune", "moved.safetensors", *LINE, "--set", "price=ms"]
    refused(line, "Another CPU", "--any-machine")
    assert call(*line, "--any-machine", "--out", "m.safetensors")["price"] == "ms"
