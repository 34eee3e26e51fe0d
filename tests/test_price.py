"""Milliseconds as the price: the table, thresholds by it, and what prune keeps dynamic.

No clock is read: a runtime made for these tests says itself what a call takes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from clockless import installed
from commandline import SIDE, call, contents, edit, refused, run, save_npz, save_source
from networks import CASES
from torch import Tensor, nn

import gatecli
from gatecli.architectures.build import build
from gatecli.errors import CheckpointError, SettingError
from gatecli.gates.observe import observe
from gatecli.network import Network
from gatecli.network.costs import CostMeter, gate_macs
from gatecli.network.price import Milliseconds, running
from gatecli.runtimes.base import Order, Prepared, Runtime
from gatecli.stages import price as pricing
from gatecli.stages import price_jointly
from gatecli.stages.price import How, known_table
from gatecli.stages.prune import How as Plan
from gatecli.stages.prune import prune_by
from gatecli.stages.prune_measured import BY_RATE, CHOSEN, DYNAMIC, prune_measured
from gatecli.stages.same_work import first_of_form
from gatecli.stages.variants import Variants
from gatecli.traced.latency import LatencyTable, SiteTimes, curve_at

CASE = CASES["own"]
MS_PER_MAC = 1e-6
START = 0.25  # ms of every call


class Paper(Runtime):
    """Takes a microsecond a thousand MACs, and so much for each gate that decides."""

    name = "paper"
    about = "a runtime whose calls say what they take"
    precisions = ("fp32", "bf16")
    obeys = True
    gate_ms = 0.0
    cut_ms = 0.0  # of a network that computes less than `whole` MACs
    whole = 0
    skips = True

    def missing(self) -> str:
        return ""

    def prepare(self, order: Order) -> Prepared:
        model = order.model
        assert isinstance(model, Network)
        return Prepared(
            feed=lambda images: images,
            call=lambda images: self.takes(model, images),
            logits=lambda found: found,
            obeying=model,
        )

    def takes(self, network: Network, images: Tensor) -> float:
        meter = CostMeter(network)
        with observe(network, meter), torch.no_grad():
            network(images)
        meter.total = 1
        costs = meter.costs() if self.skips else torch.empty(0)
        macs = costs.mean().item() if len(costs) else network.macs_dense
        gates = [gate for gate in network.site_gates.values() if gate.data_dependent]
        cut = self.cut_ms if macs < self.whole else 0.0
        return START + MS_PER_MAC * macs + self.gate_ms * len(gates) + cut


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    runtime = Paper()
    installed(runtime, monkeypatch)
    return runtime


HOW = How(runtime="paper", repeats=3)


def gated(method: str, **settings: Any) -> Network:
    torch.manual_seed(0)
    network = gatecli.attach(CASE.network(), method, **settings).network
    with torch.no_grad():
        for gate in network.site_gates.values():
            for parameter in gate.parameters():
                nn.init.normal_(parameter, std=0.3)
    return network.eval()


def table_of(network: Network) -> LatencyTable:
    return pricing.price(network, HOW)[1]


# --- the table ---


def test_each_site_takes_what_its_branch_does(paper: Paper) -> None:
    paper.gate_ms = 0.01
    network = gated("aig-perbatch")
    table = table_of(network)
    plain = network.macs_dense - sum(gate_macs(network.traced, site) for site in network.site_gates)
    assert table.all_on_ms == pytest.approx(START + MS_PER_MAC * plain)
    assert list(table.sites) == list(network.site_gates) and abs(table.shared_ms) < 1e-9
    for name, times in table.sites.items():
        branch = MS_PER_MAC * network.sites[name].macs
        gate = 0.01 + MS_PER_MAC * gate_macs(network.traced, name)
        assert [share for share, _ in times.static] == [0, 1]
        assert [ms for _, ms in times.static] == pytest.approx([-branch, 0])
        assert [ms for _, ms in times.dynamic] == pytest.approx([gate - branch, gate])
    assert table.estimated_ms == pytest.approx(table.measured_ms)
    assert table.measured_ms < table.all_on_ms


def test_an_estimate_is_the_clock_s_mean(paper: Paper) -> None:
    """Against every pattern of decisions of three sites, weighed by how likely it is."""
    network = gated("aig-perbatch")
    rates = {site: [rate] for site, rate in zip(network.site_gates, (0.2, 0.5, 0.9), strict=True)}
    image, mean = torch.zeros(1, network.input.channels, *network.input.size), 0.0
    for pattern in torch.cartesian_prod(*[torch.tensor([0, 1])] * 3).tolist():
        chance = 1.0
        for (rate,), runs in zip(rates.values(), pattern, strict=True):
            chance *= rate if runs else 1 - rate
        forced = {site: [runs] for site, runs in zip(rates, pattern, strict=True)}
        with gatecli.force(network, forced):
            mean += chance * paper.takes(network, image)
    assert Milliseconds(table_of(network)).of(network, rates) == pytest.approx(mean)


def test_a_runtime_that_skips_nothing_gains_by_removal_alone(paper: Paper) -> None:
    paper.skips = False
    table = table_of(gated("aig-perbatch"))
    for times in table.sites.values():
        assert times.static[0][1] < 0 < times.dynamic[0][1] == pytest.approx(times.dynamic[1][1])


@pytest.mark.parametrize("method", ["ind-perbatch", "aig-perbatch"])
def test_what_many_sites_lose_once_is_not_charged_for_each(paper: Paper, method: str) -> None:
    """The table's sum is the clock's word where as much of each runs, whatever each says alone."""
    network = gated(method, kinds=["filter"])
    gates = sum(gate_macs(network.traced, site) for site in network.site_gates)
    paper.cut_ms, paper.whole = 0.02, network.macs_dense - gates
    table, variants = table_of(network), Variants(network)
    image = torch.zeros(1, network.input.channels, *network.input.size)
    assert len(table.sites) > 2
    for part in range(1, 4):
        running = {site: network.sites[site].units * part // 4 for site in table.sites}
        rates = price_jointly.rates_of(network, list(table.sites), running)
        made = variants.dynamic(running) if variants.dependent else variants.static(running)
        assert made is not None
        assert Milliseconds(table).of(network, rates) == pytest.approx(paper.takes(made, image))


def test_filters_are_timed_in_part(paper: Paper) -> None:
    network = gated("aig-perbatch", kinds=["filter"], include=["units.2*"])
    for times in table_of(network).sites.values():
        shares = [share for share, _ in times.static]
        assert shares[-4:] == [0.25, 0.5, 0.75, 1]  # not all of them may be removable
        assert [share for share, _ in times.dynamic] == [0, 0.25, 0.5, 0.75, 1]
        gains = [ms for _, ms in times.static]
        assert gains == sorted(gains) and gains[-1] == 0


def test_gates_that_see_no_image_are_timed_as_prune_leaves_them(paper: Paper) -> None:
    network = gated("ind-perbatch")
    table = table_of(network)
    assert all(not times.dynamic for times in table.sites.values())
    assert table.estimated_ms == pytest.approx(table.measured_ms)
    pruned = prune_by(network, Plan())
    assert pruned.removed and pruned.ungated
    rates = {site: [float(site in pruned.ungated)] for site in network.site_gates}
    taken = START + MS_PER_MAC * pruned.network.macs_dense
    assert Milliseconds(table).of(network, rates) == pytest.approx(taken)


@pytest.mark.parametrize(
    ("case", "method"),
    [("own", "gaternet"), ("own", "cgnet"), ("dense", "aig-perbatch"), ("dense", "ind-perbatch")],
)
def test_every_kind_can_be_timed(paper: Paper, method: str, case: str) -> None:
    network = gatecli.attach(CASES[case].network(), method).network
    table = table_of(network)
    assert table.sites and table.all_on_ms > START
    for name in table.sites:
        assert running(network, name, {name: [0.0] * network.site_gates[name].units}) == 0


@pytest.mark.parametrize(
    ("case", "method", "kinds"),
    [
        ("cifar-projection", "aig-perbatch", ["block"]),
        ("tokens", "ind-perbatch", ["block", "head", "hidden"]),
    ],
)
def test_of_sites_that_do_the_same_work_one_is_timed(
    paper: Paper, monkeypatch: pytest.MonkeyPatch, case: str, method: str, kinds: list[str]
) -> None:
    """The runtime counts, so that what is timed site by site is the same to the last digit."""
    network = gatecli.attach(CASES[case].network(), method, kinds=kinds).network
    forms = first_of_form(network, list(network.site_gates))
    short = table_of(network)
    monkeypatch.setattr(pricing, "first_of_form", lambda network, sites: {s: s for s in sites})
    full = table_of(network)
    assert list(short.sites) == list(full.sites)
    for site, times in full.sites.items():
        assert_curves_equal(short.sites[site], times)
    assert len(set(forms.values())) < len(forms)


def assert_curves_equal(one: SiteTimes, other: SiteTimes) -> None:
    for left, right in ((one.static, other.static), (one.dynamic, other.dynamic)):
        assert len(left) == len(right)
        assert all(a == pytest.approx(b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("arch", "args", "forms"),
    [("torchvision:resnet50", {}, 8), ("torchvision:vit_b_16", {"image_size": 32}, 2)],
)
def test_a_resnet_50_has_blocks_of_eight_forms_and_a_vit_of_two(
    arch: str, args: dict[str, Any], forms: int
) -> None:
    model = build(arch, {**args, "num_classes": 2})
    network = gatecli.attach(
        model, "ind-perbatch", input_size=(32, 32), arch=arch, arch_args=args
    ).network
    found = first_of_form(network, list(network.site_gates))
    assert len(set(found.values())) == forms < len(found)


@pytest.mark.parametrize(
    ("share", "ms"), [(-1, 2.0), (0.25, 2.0), (0.5, 3.0), (0.75, 4.0), (0.875, 2.0), (1, 0.0)]
)
def test_between_points_a_curve_is_straight(share: float, ms: float) -> None:
    assert curve_at([[0.25, 2.0], [0.75, 4.0], [1.0, 0.0]], share) == pytest.approx(ms)


# --- where it holds ---


def test_a_table_of_elsewhere_is_refused(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    network, table = pricing.price(gated("aig-perbatch"), HOW)
    assert known_table(network) == table == known_table(network, runtime="paper")
    for asked in ({"runtime": "native"}, {"precision": "bf16"}):
        with pytest.raises(SettingError, match="--any-machine"):
            known_table(network, **asked)  # type: ignore[arg-type]
        assert known_table(network, **asked, any_machine=True) == table  # type: ignore[arg-type]
    monkeypatch.setattr(pricing, "describe", lambda: "Another CPU")
    with pytest.raises(SettingError, match=r"a latency table of paper, fp32, .*Another CPU"):
        known_table(network)
    assert known_table(network, any_machine=True) == table
    rates = {site: [0.7] for site in network.site_gates}
    assert known_table(prune_by(network, Plan(), rates=rates).network) is None


def test_a_damaged_table_is_said_to_be(paper: Paper) -> None:
    network, _ = pricing.price(gated("aig-perbatch"), HOW)
    step = network.recipe.steps[-1]
    for broken in ({"sites": {"units.0": {"static": [[0]], "dynamic": []}}}, {"all_on_ms": "x"}):
        steps = (dataclasses.replace(step, results={**step.results, **broken}),)
        network.recipe = dataclasses.replace(network.recipe, steps=steps)
        with pytest.raises(CheckpointError, match=r"damaged; gatecli price measures another"):
            known_table(network)


# --- what prune keeps dynamic ---


RATES = (0.9, 0.3, 0.7)


@pytest.mark.parametrize(
    ("gate_ms", "skips", "taken"),
    [(0.0, True, {CHOSEN}), (50.0, True, {BY_RATE}), (0.0, False, {BY_RATE})],
)
def test_what_is_taken_is_never_slower_than_an_extreme(
    paper: Paper, gate_ms: float, skips: bool, taken: set[str]
) -> None:
    paper.gate_ms, paper.skips = gate_ms, skips
    network = gated("aig-perbatch")
    rates = {site: [rate] for site, rate in zip(network.site_gates, RATES, strict=True)}
    found = prune_measured(network, Plan(), dataclasses.replace(HOW, repeats=40), rates=rates)
    assert found.taken in taken and found.ms[found.taken] == min(found.ms.values())
    assert {DYNAMIC, BY_RATE} <= found.ms.keys() and found.decided.keys() == rates.keys()
    kept = set(found.pruned.kept_dynamic)
    assert kept == {site for site, why in found.decided.items() if why.startswith("dynamic")}
    # what would rather be removed is, what pays for its gate stays
    assert kept == ({site for site in rates if rates[site][0] > 0.5} if CHOSEN in taken else set())
    assert found.pruned.network.recipe.steps[-1].settings["decide"] == "measured"


def test_where_the_clock_says_otherwise_the_fastest_extreme_is_taken(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = gated("aig-perbatch")
    rates = {site: [rate] for site, rate in zip(network.site_gates, RATES, strict=True)}
    lies = {DYNAMIC: 1.0, BY_RATE: 2.0, CHOSEN: 3.0}
    monkeypatch.setattr(
        "gatecli.stages.prune_measured._timed", lambda made, *_: {name: lies[name] for name in made}
    )
    found = prune_measured(network, Plan(), HOW, rates=rates)
    assert found.taken == DYNAMIC and len(found.pruned.kept_dynamic) == len(rates)
    assert sum("but all kept dynamic was the fastest" in why for why in found.decided.values()) > 0


def test_nothing_is_measured_where_rates_decide(paper: Paper) -> None:
    network = gated("aig-perbatch")
    rates = {site: [float(index % 2)] for index, site in enumerate(network.site_gates)}
    found = prune_measured(network, Plan(), HOW, rates=rates)
    assert not found.decided and not found.ms and not found.pruned.kept_dynamic
    with pytest.raises(SettingError, match="prune needs its rate: name a data set"):
        prune_measured(network, Plan(), HOW)


# --- on the command line ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paper: Paper) -> Path:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz")
    call(
        "attach",
        "r20.pt",
        "--method",
        "aig-perbatch",
        "--include",
        "layer1.*",
        "--input-size",
        SIDE,
    )
    torch.manual_seed(0)

    def scatter(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith("gates.") and tensor.ndim > 1:
                nn.init.normal_(tensor, std=0.5)

    edit(tmp_path / "r20.aig-perbatch.safetensors", tmp_path / "g.safetensors", scatter)
    return tmp_path


def test_commands(here: Path, paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    found = call("price", "g.safetensors", "--runtime", "paper", "--repeats", 3)
    assert found["out"] == "g.priced.safetensors" and found["runtime"] == "paper"
    assert found["error"] == pytest.approx(0, abs=1e-6) and len(found["sites"]) == 3
    curves = [times["dynamic"] for times in found["sites"].values()]
    least, most = (found["all_on_ms"] + sum(curve[end][1] for curve in curves) for end in (0, -1))
    data = ["--data", "npz:data.npz"]
    middle = (least + most) / 2
    chosen = call("calibrate", "g.priced.safetensors", *data, "--max-ms", middle, "--refine", 3)
    assert chosen["ms_expected"] <= middle and chosen["latency"]["runtime"] == "paper"
    better = [row for row in chosen["frontier"] if row["ms"] <= middle]
    assert chosen["top1"] == max(row["top1"] for row in better) and chosen["target_top1"] is None
    refused(
        ["calibrate", "g.priced.safetensors", *data, "--max-ms", least / 2, "--force"],
        "is out of reach",
        f"{least:.4g} ms are left",
    )
    refused(
        [
            "calibrate",
            "g.priced.safetensors",
            "--max-ms",
            5,
            "--runtime",
            "native",
            "--force",
            *data,
        ],
        "--any-machine",
    )
    monkeypatch.setattr(pricing, "describe", lambda: "Another CPU")
    late = ["finetune", "g.priced.safetensors", *data, "--max-ms", middle, "--epochs", 1]
    refused(late, "Another CPU", "--any-machine")
    done = call(*late, "--any-machine", "--lr", 0.01, "--bn-batches", 0, "--batch-size", 32)
    assert done["history"][0]["ms_expected"] <= most * 1.001
    late.append("--force")
    refused([*late, "--any-machine", "--max-gmacs", 1], "--max-gmacs and --max-ms, but got both")
    refused([*late[:1], "g.safetensors", *late[2:]], "gatecli price")
    shown = run("price", "g.safetensors", "--runtime", "paper", "--repeats", 3, "--force")
    assert "milliseconds by site" in shown.out and "measured (+0.0 %)" in shown.err


def test_prune_says_what_was_decided(here: Path) -> None:
    data = ["--data", "npz:data.npz"]
    how = ["--collapse", 0, "--decide", "measured", "--runtime", "paper"]
    found = call("prune", "g.safetensors", *data, *how)
    assert found["ms"][found["taken"]] == min(found["ms"].values())
    assert found["top1_before"] is not None and found["top1"] is not None
    assert set(found["kept_dynamic"]) <= set(found["decided"])
    assert contents(found["out"])[1]["steps"][-1]["settings"]["runtime"] == "paper"
    shown = run("prune", "g.safetensors", *data, *how, "--force")
    assert "measured: " in shown.err and "val top-1" in shown.err
    assert call("prune", "g.safetensors", *data, "--force")["decided"] == {}


def test_bad_input(here: Path) -> None:
    refused("prune g.safetensors --decide speed", "rate, measured, but got `speed`")
    refused("prune g.safetensors --decide measured", "name a data set with --data")
    refused("prune g.safetensors --runtime native", "--decide measured")
    refused("prune g.safetensors --decide measured --runtime tensorrt", "native, compiled")
    refused("price g.safetensors --repeats 2", "at least 3, but got 2")
    refused("price g.safetensors --runtime onnxruntime --precision bf16", "onnxruntime has (fp32)")
    refused(f"price r20.pt --input-size {SIDE}", "no gates")
