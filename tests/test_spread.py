"""What single images cost: against a slow sum over their decisions, for gates, gated channels and
exits.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commandline import call, run, save_npz, save_source
from networks import CASES, unit_macs

import gatecli
from gatecli.network import Network
from gatecli.network.costs import CostMeter, expected_macs, spread_of
from gatecli.stages.predict import predict


def perturbed(*methods: str) -> Network:
    case = CASES["cifar-projection"]
    torch.manual_seed(0)  # new gates draw their weights
    network = case.network()
    for method in methods:
        network = gatecli.attach(network, method).network
    draw = torch.Generator().manual_seed(0)
    for gate in network.site_gates.values():
        for parameter in gate.parameters():
            parameter.data += torch.randn(parameter.shape, generator=draw) * 0.3
        if hasattr(gate, "neutral"):
            gate.neutral.fill_(False)
    return network.eval()


@pytest.mark.parametrize(
    "methods",
    [
        ("aig-perbatch",),
        ("cgnet",),
        ("aig-perbatch", "dgate"),
        ("cgnet", "dgate"),
        ("aig-perbatch", "gaternet"),
    ],
)
def test_costs_of_single_images_against_running_them_alone(methods: tuple[str, ...]) -> None:
    """Each image by itself, its decisions recorded: what runs is summed up site by site.

    The mean is what reports call expected.
    """
    network = perturbed(*methods)
    images, labels = CASES["cifar-projection"].images(12), torch.zeros(12, dtype=torch.long)
    if network.site_exits:
        values, _ = network.at_exits(images)
        for site, exit_ in network.site_exits.items():
            exit_.threshold.copy_(
                exit_.score(values[site], exit_.classify(values[site])).sort(0).values[5:7].mean(0)
            )  # near no image's score
    elif len(methods) > 1:  # one within the other: half of the images skip what is outside
        for site in network.site_gates:
            with gatecli.record_gates(network) as record, torch.no_grad():
                network(images)
            if network.gated_by[site] == "aig-perbatch":
                network.site_gates[site].threshold.fill_(
                    record.odds[site][-1].sigmoid().flatten().sort().values[5:7].mean()
                )  # near no image's
    meter = CostMeter(network)
    seen = predict(network, [(images[:5], labels[:5]), (images[5:], labels[5:])], meter=meter)
    expected = []
    for image in images:
        with gatecli.record_gates(network) as record, torch.no_grad():
            network(image[None])
        total = float(network.macs_dense)
        for site, z in record.latest().items():
            place, on = network.sites[site], z[0].tolist()
            outside = [
                outer
                for outer in record.latest()
                if network.sites[outer].kind == "block" and site.startswith(f"{outer}.")
            ]
            if any(not record.latest()[outer].any() for outer in outside):
                continue  # saved with what it lies in
            if place.kind == "exit":
                total -= place.macs * on[0]
            else:
                own = unit_macs(network, site)
                total -= own * on.count(0.0) + (place.macs - place.units * own) * (not any(on))
        expected.append(total)
    assert len({*expected}) > 1
    assert meter.costs().tolist() == pytest.approx(expected, rel=1e-9)
    independent = (
        "gaternet" in methods
    )  # what expected_macs takes gates within each other to be, having their rates alone
    assert meter.costs().mean().item() == pytest.approx(
        expected_macs(network, seen.rates, seen.busy), rel=0.02 if independent else 1e-6
    )


def test_the_spread() -> None:
    found = spread_of(torch.tensor([4.0, 1.0, 2.0, 3.0, 5.0], dtype=torch.float64))
    assert found == pytest.approx(
        {
            "mean": 3,
            "std": 2**0.5,
            "min": 1,
            "p05": 1.2,
            "p25": 2,
            "median": 3,
            "p75": 4,
            "p95": 4.8,
            "max": 5,
        }
    )


def test_eval_says_how_images_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_npz(Path("data.npz"))
    save_source(Path("r20.pt"))
    call("attach", "r20.pt", "--method", "aig-perbatch")
    found = call("eval", "--data", "npz:data.npz", "--strategy", "stochastic")
    spread = found["macs_per_image"]
    assert (
        spread["mean"] == pytest.approx(found["macs_expected"])
        and spread["min"] <= spread["p25"] <= spread["median"] <= spread["max"]
        and spread["std"] > 0
    )
    assert "macs_per_image" not in call("eval", "r20.pt", "--data", "npz:data.npz")


def test_people_are_told_the_extremes_and_their_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_npz(Path("data.npz"))
    save_source(Path("r20.pt"))
    call("attach", "r20.pt", "--method", "aig-perbatch", "--out", "attached.safetensors")
    network = gatecli.load("attached.safetensors")
    draw = torch.Generator().manual_seed(0)
    for gate in network.site_gates.values():
        for parameter in gate.parameters():
            parameter.data += torch.randn(parameter.shape, generator=draw)
    gatecli.write(network, "gated.safetensors")
    for command in ("eval", "gates"):
        named = (command, "gated.safetensors", "--data", "npz:data.npz")
        spread = call(*named)["macs_per_image"]
        assert 0 < spread["min"] < spread["median"] < spread["max"]
        said = run(*named).out
        times = spread["max"] / spread["min"]
        assert (
            f"{spread['min'] / 1e9:.4g} to {spread['max'] / 1e9:.4g} GMACs, {times:.2f} times"
            in said
        )
        assert f"median {spread['median'] / 1e9:.4g}" in said
