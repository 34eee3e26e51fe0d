"""A command that measures under one setting writes that setting.

Thresholds, rates and MACs belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, save_npz
from networks import CASES, traced
from torch import nn

import gatecli
from gatecli.architectures.build import build
from gatecli.errors import GatecliError, SettingError
from gatecli.gates.exit import Exit
from gatecli.network import Network
from gatecli.stages import prune as pruning

T = 0.7


def opinionated(network: Network, seed: int = 0) -> Network:
    """Let the last layers of gates and exits say something else for every image."""
    torch.manual_seed(seed)
    gater = network._modules.get("gater")
    layers = [gater.fc2] if gater is not None else []  # type: ignore[union-attr, list-item]
    layers += [getattr(gate, "decide", None) for gate in network.site_gates.values()]
    for layer in filter(None, layers):
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    for gate in network.site_gates.values():
        if hasattr(gate, "neutral"):
            gate.neutral.fill_(False)  # type: ignore[union-attr, operator]
    return network


def made(folder: Path, *methods: str, **settings: Any) -> Path:
    torch.manual_seed(0)
    network = build("cifar:resnet20", {}).eval()
    args: dict[str, Any] = {"input_size": (SIDE, SIDE), "arch": "cifar:resnet20"}
    for method in methods:
        network = gatecli.attach(network, method, **args, **settings).network
        args, settings = {}, {}
    gatecli.write(opinionated(network), folder / "g.safetensors")  # type: ignore[arg-type]
    return folder / "g.safetensors"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("methods", "settings", "options"),
    [
        (["aig-perbatch"], {}, ["--threshold", T]),
        (["aig-pergate"], {"granularity": 4}, ["--threshold", 0.2]),
        (["gaternet"], {}, ["--threshold", T]),
        (["cgnet"], {"gate": "coarse"}, ["--threshold", T]),
        (["aig-perbatch", "early-exit"], {}, ["--threshold", T, "--collapse", 0]),
        (
            ["aig-perbatch", "early-exit"],
            {},
            ["--static", 0.5, "--collapse", 0],
        ),  # who leaves depends on what was decided for good
        (["aig-perbatch"], {}, ["--collapse", 0.1]),
    ],
)
def test_prune_records_what_the_file_does(
    here: Path, methods: list[str], settings: dict[str, Any], options: list[object]
) -> None:
    path, data = made(here, *methods, **settings), f"npz:{save_npz(here / 'few.npz')}"
    if "early-exit" in methods:
        network = gatecli.load(path)
        for number, exit_ in enumerate(network.site_exits.values()):
            exit_.threshold.fill_(0.1 * number)
        gatecli.write(network, here / "e.safetensors")
        path = here / "e.safetensors"
    pruned = call("prune", path, *options, "--data", data, "--out", "p.safetensors")
    assert pruned["kept_dynamic"]
    scores = call("eval", "p.safetensors", "--data", data, "--split", "val")
    assert pruned["macs_expected"] == pytest.approx(scores["macs_expected"], rel=1e-9)
    assert (pruned["top1"], pruned["split"]) == (scores["top1"], "val")
    recorded = call("log", "p.safetensors")["steps"][-1]["results"]["unit_rates"]
    assert {site: sum(units) / len(units) for site, units in recorded.items()} == pytest.approx(
        scores["rates"]
    )


def test_the_threshold_stays_in_the_gates(here: Path) -> None:
    network = opinionated(
        gatecli.attach(CASES["own"].build(), "aig-perbatch", input_size=CASES["own"].size).network
    )
    network = opinionated(gatecli.attach(network, "dgate").network)
    rates = {site: [0.5] * gate.units for site, gate in network.site_gates.items()}
    for site, exit_ in network.site_exits.items():
        exit_.threshold.fill_(0.4)
        rates[site] = [0.25]
    pruned = gatecli.prune(network, threshold=T, rates=rates).network
    assert set(pruned.site_exits) == set(network.site_exits)
    for site, gate in pruned.site_gates.items():
        expected = (
            network.site_gates[site].threshold
            if isinstance(gate, Exit)
            else torch.full((gate.units,), T)
        )
        assert torch.equal(gate.threshold, expected)
    first = next(iter(network.site_gates.values()))
    assert torch.equal(first.threshold, torch.tensor([0.5]))  # the input is left alone


def test_without_a_threshold_the_gates_keep_their_own(here: Path) -> None:
    network = opinionated(
        gatecli.attach(CASES["own"].build(), "aig-perbatch", input_size=CASES["own"].size).network
    )
    for number, gate in enumerate(network.site_gates.values()):
        gate.threshold.fill_(0.3 + 0.1 * number)
    rates = {site: [0.5] for site in network.site_gates}
    pruned = gatecli.prune(network, rates=rates).network
    assert {site: gate.threshold.item() for site, gate in pruned.site_gates.items()} == {
        site: gate.threshold.item() for site, gate in network.site_gates.items()
    }


def close_all(network: Network) -> None:
    for gate in network.site_gates.values():
        gate.threshold.fill_(1.0)


@pytest.mark.parametrize("method", ["aig-perbatch", "gaternet"])
def test_prune_notices_gates_that_decide_otherwise(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = opinionated(
        gatecli.attach(CASES["readers"].build(), method, input_size=CASES["readers"].size).network
    )
    rates = {site: [0.5] * gate.units for site, gate in network.site_gates.items()}
    before: Callable[..., None] = pruning._set_threshold

    def wrong(smaller: Network, threshold: float, but: Any) -> None:
        before(smaller, threshold, but)
        close_all(smaller)

    monkeypatch.setattr(pruning, "_set_threshold", wrong)
    with pytest.raises(GatecliError, match="decides otherwise"):
        gatecli.prune(network, threshold=0.0, rates=rates)


def test_calibrated_exits_record_the_rates_of_the_gates_before_and_behind(here: Path) -> None:
    path, data = made(here, "aig-perbatch", "early-exit"), f"npz:{save_npz(here / 'few.npz')}"
    result = call("calibrate", path, "--data", data, "--max-gmacs", 0.5, "--out", "c.safetensors")
    scores = call("eval", "c.safetensors", "--data", data)
    recorded = call("log", "c.safetensors")["steps"][-1]["results"]
    assert recorded["rates"] == pytest.approx(scores["rates"])
    assert result["macs_expected"] == pytest.approx(scores["macs_expected"])


def test_a_baseline_is_not_taken_from_other_data(here: Path) -> None:
    """max-drop counts from what all gates open give on the data at hand."""
    path, first = made(here, "ind-perbatch"), f"npz:{save_npz(here / 'few.npz')}"
    tuned = call(
        "finetune",
        path,
        "--data",
        first,
        "--epochs",
        1,
        "--batch-size",
        32,
        "--bn-batches",
        0,
        "--out",
        "t.safetensors",
    )
    other = f"npz:{save_npz(here / 'other.npz', val=20)}"
    network = gatecli.load("t.safetensors")
    assert network.recipe.baseline is not None and network.recipe.baseline["data"] == first
    again = call(
        "finetune",
        "t.safetensors",
        "--data",
        other,
        "--epochs",
        1,
        "--batch-size",
        32,
        "--bn-batches",
        0,
        "--out",
        "u.safetensors",
    )
    open_ = call("eval", "t.safetensors", "--data", other, "--strategy", "always-on")
    assert again["baseline_top1"] == pytest.approx(open_["top1"])
    assert tuned["out"]


def test_arguments_for_plain_models_are_not_ignored() -> None:
    network = traced(CASES["own"].build(), CASES["own"].size)
    with pytest.raises(SettingError, match="expected `input_size` with a plain model"):
        gatecli.attach(network, "ind-perbatch", input_size=(64, 64))
