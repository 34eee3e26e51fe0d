"""Many gates that share one loss: how fast they learn in a short run, from nine to thousands."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from commandline import SIDE, call, contents, run, save_npz, save_source
from networks import CASES

import gatecli
from gatecli import methods
from gatecli.methods.layer_gates import DataIndependentGate, LayerGateSettings
from gatecli.methods.losses import per_batch
from gatecli.methods.schedules import learning_rate
from gatecli.methods.settings import Length
from gatecli.network import Network
from gatecli.network.priced import PricedMacs
from gatecli.training import TrainOptions
from gatecli.training.crowds import effective_number, sharers
from gatecli.training.trained import Trained, idle_modules, optimizer_groups

BOTH = ["block", "filter"]


def length(steps: int, alike: float = 1.0) -> Length:
    return Length(epochs=5, steps=steps, lr=0.05, weight_decay=1e-4, alike=alike)


def gated(name: str = "own", method: str = "ind-perbatch") -> Network:
    return gatecli.attach(CASES[name].network(), method, kinds=BOTH).network


def trained(network: Network, method: str, steps: int) -> Trained:
    chosen = methods.get(method)
    each = Trained(method=chosen, settings=methods.parse_settings(chosen, {}))
    return each.suited_to(length(steps), network)


# --- the rule ---


def learned(units: int, alike: float) -> tuple[float, float, float]:
    """A short run of gates alone, each unit worth something of its own to a task.

    Returns:
        The rate sampled, the rate by threshold, and by how much more the open ones are worth.
    """
    torch.manual_seed(0)
    gate = DataIndependentGate("x", units).train()
    worth = torch.rand(units)
    suited = LayerGateSettings().suited(length(90, alike))
    optimizer = torch.optim.SGD(gate.parameters(), lr=suited["gate_lr"], momentum=0.9)
    for step in range(90):
        rate = learning_rate("cosine", suited["gate_lr"], step / 90)
        optimizer.param_groups[0]["lr"] = rate
        z = gate(torch.empty(4, 1))
        task = (worth * (1 - z)).mean()
        loss = task + suited["loss_weight"] * per_batch({"x": z}, {"x": 0.6})
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    odds = gate.log_odds(torch.empty(1, 1))[0]
    is_on = odds > 0
    dearer = worth[is_on].mean() - worth[~is_on].mean()
    return odds.sigmoid().mean().item(), is_on.float().mean().item(), dearer.item()


@pytest.mark.parametrize("units", [9, 100, 1000, 10_000])
def test_a_short_run_comes_to_its_target_however_many_units_share_it(units: int) -> None:
    sampled, decided, dearer = learned(units, alike=units)
    assert 0.55 < sampled < 0.7 and 0.55 < decided < 0.7
    assert dearer > 0.2  # what goes is what the task can spare


def test_without_the_rule_thousands_do_not_move() -> None:
    sampled, decided, _ = learned(1000, alike=1)
    assert sampled > 0.9 and decided == 1


def test_the_rate_goes_with_the_number_from_ten_on_and_long_runs_stay_as_they_are() -> None:
    settings = LayerGateSettings()
    assert settings.suited(length(100, 9)) == settings.suited(length(100))
    for alike, rate in ((10, 5.0), (100, 50.0), (10_000, 5000.0)):
        assert settings.suited(length(100, alike))["gate_lr"] == rate
    assert settings.suited(length(5, 1000))["gate_lr"] == 1000  # at most 10, a hundredfold
    assert settings.suited(length(5000, 9)) == settings.suited(length(50_000, 100)) == {}
    assert settings.suited(length(10_000, 100)) == {"gate_lr": 0.5}  # so many need a longer one
    told = methods.parse_settings(methods.get("ind-perbatch"), {"gate_lr": 0.3})
    assert "gate_lr" not in told.suited(length(100, 1000))
    assert LayerGateSettings(short_run=0).suited(length(100, 1000)) == {}


def test_decay_comes_to_the_same_in_a_step() -> None:
    settings = methods.get("aig-perbatch").about.settings()
    found = settings.suited(length(100, 200))
    assert found["gate_lr"] * found["gate_weight_decay"] == pytest.approx(0.05 * 1e-4, rel=0.05)


# --- how many share it ---


def test_the_effective_number() -> None:
    assert effective_number(torch.full((7,), 0.3)) == pytest.approx(7)
    assert effective_number(torch.tensor([1.0, 0.0, 0.0])) == 1
    assert effective_number(torch.tensor([3.0, 1.0])) == pytest.approx(16 / 10)
    assert effective_number(torch.zeros(4)) == 4


def test_a_unit_s_effect_is_what_closing_it_changes() -> None:
    """The rate is a line in each decision: one by one, against all open."""
    network = gated()
    share = PricedMacs(network, list(network.site_gates))
    units = {site: gate.units for site, gate in network.site_gates.items()}
    effects = share.effects(units)
    for site, count in units.items():
        for unit in range(count):
            z = {other: torch.ones(1, many) for other, many in units.items()}
            z[site][0, unit] = 0
            change = 1 - share.of_decisions(z).item()
            assert effects[site][unit].item() == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize("price", ["count", "macs"])
def test_rates_in_proportion_move_the_rate_as_units_all_alike_would(price: str) -> None:
    """Sum over units of (n_k / n) s^2 = 1 / n, for any n; s, by hand, what closing one changes."""
    network = gated()
    units = {site: gate.units for site, gate in network.site_gates.items()}
    share = PricedMacs(network, list(units)) if price == "macs" else None
    many = sum(units.values())
    effects = {site: torch.full((count,), 1 / many) for site, count in units.items()}
    if share is not None:
        effects = share.effects(units)
    found = sharers(network, list(units), share)
    assert found.keys() == {("block", True), ("filter", True)}
    moved = 0.0
    for site, effect in effects.items():
        number = found[network.sites[site].kind, True]
        moved += sum(number * each**2 for each in effect.tolist())
    assert moved == pytest.approx(1)


def test_what_units_share_goes_by_gates() -> None:
    network = gatecli.attach(CASES["own"].network(), "aig-perbatch", kinds=["filter"]).network
    found = sharers(network, list(network.site_gates), None)
    sizes = [gate.units for gate in network.site_gates.values()]
    assert found["filter", True] == pytest.approx(sum(sizes))
    by_gate = sum(sizes) ** 2 / sum(size**2 for size in sizes)
    assert found["filter", False] == pytest.approx(by_gate)


# --- in the optimizer ---


@pytest.mark.parametrize("method", ["ind-perbatch", "aig-perbatch"])
def test_every_parameter_is_in_one_group_and_at_its_own_rate(method: str) -> None:
    """The gate of a block holds those within it, by name."""
    network = gated(method=method)
    each = trained(network, method, 90)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = optimizer_groups(network, [each], TrainOptions())
        torch.optim.SGD(groups, lr=0.1)
    counts = Counter(id(one) for group in groups for one in group["params"])
    assert counts == Counter({id(one): 1 for one in network.parameters()})
    rates = {id(one): group["base_lr"] for group in groups for one in group["params"]}
    numbers = sharers(network, list(network.site_gates), None)
    for site, gate in network.site_gates.items():
        for name, one in gate.own_parameters():
            many = numbers[network.sites[site].kind, name in gate.by_unit]
            suited = each.method.about.settings().suited(length(90, many))
            assert rates[id(one)] == suited["gate_lr"]


def test_gates_in_an_idle_gate_are_trained() -> None:
    """Another method's decides as it does; the filters within its block are drawn."""
    network = gatecli.attach(CASES["own"].network(), "aig-perbatch", kinds=["block"]).network
    network = gatecli.attach(network, "ind-perbatch", kinds=["filter"]).network
    network.train()
    for module in idle_modules(network, [trained(network, "ind-perbatch", 90)]):
        module.training = False
    for site, gate in network.site_gates.items():
        is_trained = network.gated_by[site] == "ind-perbatch"
        assert {module.training for _, module in gate.own_modules()} == {is_trained}


def test_it_is_said_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_source(tmp_path / "r20.pt")
    save_npz(tmp_path / "data.npz", train=32)
    line = [
        "--method",
        "ind-perbatch",
        "--kind",
        "filter",
        "--include",
        "layer1.0*",
        "--input-size",
        SIDE,
    ]
    units = call("attach", "r20.pt", *line, "--out", "f.safetensors")["units"]
    line = ["finetune", "f.safetensors", "--data", "npz:data.npz", "--epochs", 1]
    line += ["--batch-size", 32, "--bn-batches", 0, "--out", "t.safetensors"]
    done = run(*line)
    rate = float(f"{units:.2g}")  # one step: at most 10, times units / 10
    said = "a short run, 1 steps: ind-perbatch is trained with gate_lr=10 loss_weight=4"
    assert f"{said} gate_lr.filter={rate:g}" in done.err
    suited = contents("t.safetensors")[1]["steps"][-1]["results"]["suited"]
    assert suited["ind-perbatch"]["gate_lr.filter"] == rate
