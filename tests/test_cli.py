"""The whole road on the command line.

Every command, what it prints, what it writes, and what it leaves alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import (
    SIDE,
    call,
    contents,
    current,
    edit,
    listing,
    refused,
    run,
    same,
    save_npz,
    save_source,
    strict,
)
from PIL import Image
from safetensors.torch import save_file

import gatecli
from gatecli import methods
from gatecli.cli import progress
from gatecli.cli.app import COMMANDS
from gatecli.cli.training_options import Training

SITES = [f"layer{group}.{block}" for group in (1, 2, 3) for block in (0, 1, 2)]
METHODS = ("aig-perbatch", "ind-perbatch")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_source(folder / "r20.pt")
    save_npz(folder / "data.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in METHODS:
            call(
                "attach",
                "r20.pt",
                "--method",
                method,
                "--input-size",
                SIDE,
                "--out",
                f"{method[:3]}.safetensors",
            )
    shutil.rmtree(folder / ".gatecli")
    return folder


@pytest.fixture
def files(here: Path, shelf: Path) -> Path:
    """The shelf's files in the working folder.

    R20.pt, data.npz, and aig.safetensors and ind.safetensors, gated.
    """
    for file in shelf.iterdir():
        shutil.copy(file, here)
    return here


# --- the road ---


class Road:
    """What the commands of a whole road gave, in the order in which they were called, and the
    folder where they worked.
    """

    def __init__(self, folder: Path, method: str) -> None:
        self.folder, self.method = folder, method
        self.given: dict[str, dict[str, Any]] = {}
        self.digests: dict[str, str] = {}

    def walk(self) -> None:
        save_source(Path("r20.pt"))
        pull = ["--set", "target_rate=0.3", "--set", "gate_lr=3", "--set", "loss_weight=5"]
        self.do("inspect source", "inspect", "r20.pt", "--input-size", SIDE)
        self.do("attach", "attach", "r20.pt", "--method", self.method, "--input-size", SIDE, *pull)
        self.do("inspect gated", "inspect")
        self.do(
            "finetune",
            "finetune",
            "--data",
            "digits",
            "--epochs",
            2,
            "--batch-size",
            64,
            "--lr",
            0.02,
            "--schedule",
            "cosine",
        )
        for strategy in ("threshold", "stochastic", "always-on", "ensemble"):
            self.do(f"eval {strategy}", "eval", "--strategy", strategy, "--split", "test")
        self.do("profile gated", "profile", "--data", "digits", "--batch", "1,4", "--repeats", 3)
        self.do("prune", "prune", *([] if self.method.startswith("ind") else ["--static", 0.5]))
        self.do("inspect pruned", "inspect")
        self.do("profile", "profile", "--batch", "1,4", "--repeats", 3)
        self.do("eval pruned", "eval", "--split", "test")
        self.do("log", "log")

    def do(self, name: str, *args: object) -> None:
        before = {path: hashlib.sha256(data).hexdigest() for path, data in listing().items()}
        self.given[name] = call(*args)
        after = {path: hashlib.sha256(data).hexdigest() for path, data in listing().items()}
        assert {path: after.get(path) for path in before} == before, (
            "a command changed a file that was there"
        )
        new = sorted(after.keys() - before.keys())
        assert new == ([self.given[name]["out"]] if "out" in self.given[name] else []), new


@pytest.fixture(scope="module", params=METHODS)
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Road:
    made = Road(tmp_path_factory.mktemp("road"), request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.folder)
        made.walk()
    return made


def test_names_of_outputs(road: Road) -> None:
    names = [road.given[name]["out"] for name in ("attach", "finetune", "prune")]
    stem = f"r20.{road.method}"
    assert names == [
        f"{stem}.safetensors",
        f"{stem}.tuned.safetensors",
        f"{stem}.tuned.pruned.safetensors",
    ]
    assert [
        road.given[name]["checkpoint"] for name in ("attach", "finetune", "prune", "profile", "log")
    ] == ["r20.pt", *names[:2], names[2], names[2]]
    assert (road.folder / ".gatecli/current").read_text() == f"{names[2]}\n"


COMMON = {"checkpoint", "arch", "params", "macs_dense", "macs_expected", "seconds", "assumed"}
KEYS = {
    "inspect source": {"arch", "num_classes", "input_size", "params", "macs_dense", "sites"},
    "attach": {"out", "method", "gates", "units", "params", "max_logit_change"},
    "finetune": {"out", "epochs", "top1", "macs_expected", "rates", "target_rate", "achieved_rate"},
    "eval threshold": {"split", "strategy", "top1", "top5", "macs_expected", "rates"},
    "eval stochastic": {"split", "strategy", "top1", "top5", "macs_expected", "rates", "top1_std"},
    "prune": {
        "out",
        "removed",
        "kept_dynamic",
        "params_before",
        "params",
        "macs_before",
        "macs_dense",
        "macs_expected",
        "max_logit_change",
    },
    "profile": {"rows", "sites"},
}


@pytest.mark.parametrize("name", KEYS)
def test_keys(road: Road, name: str) -> None:
    assert COMMON | KEYS[name] <= set(road.given[name])


def test_keys_are_those_of_the_document(road: Road) -> None:
    """docs/json.md names every key that a command prints, and no other."""
    text = (Path(__file__).parent.parent / "docs/json.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M))
    everywhere = COMMON | {"out", "input"}
    for command in ("inspect", "attach", "finetune", "eval", "prune", "profile"):
        first = next(name for name in road.given if name.split()[0] == command)
        given = set().union(
            *(value for name, value in road.given.items() if name.split()[0] == command)
        )
        outside = re.sub(r"\{[^}]*\}|\([^)]*\)|\[[^]]*\]", "", told[command])
        named = set(re.findall(r"`(\w+)`", outside)) - {"stochastic", "null"}
        assert named - everywhere <= given, (first, named - given)
        assert given - everywhere <= named, (first, given - named)


def blocks_of(found: dict[str, Any]) -> dict[str, Any]:
    """What inspect or profile gave, without the sites of other kinds.

    Where exits could stand, and convolutions.
    """
    assert [site["name"] for site in found["sites"] if site["kind"] == "exit"] == ["exit1", "exit2"]
    return {**found, "sites": [site for site in found["sites"] if site["kind"] == "block"]}


def test_inspect(road: Road) -> None:
    source, gated, pruned = (
        blocks_of(road.given[f"inspect {name}"]) for name in ("source", "gated", "pruned")
    )
    assert (source["arch"], source["num_classes"], source["input_size"]) == (
        "cifar:resnet20",
        10,
        [SIDE, SIDE],
    )
    assert (
        [site["name"] for site in source["sites"]]
        == SITES
        == [site["name"] for site in gated["sites"]]
    )
    assert {site["method"] for site in source["sites"]} == {None} and {
        site["method"] for site in gated["sites"]
    } == {road.method}
    assert {(site["kind"], site["units"]) for site in gated["sites"]} == {("block", 1)}
    assert [site["macs"] for site in source["sites"]] == [
        294912,
        294912,
        294912,
        221184,
        294912,
        294912,
        221184,
        294912,
        294912,
    ]
    assert set(SITES) - {site["name"] for site in pruned["sites"]} == set(
        road.given["prune"]["removed"]
    )
    assert (
        source["macs_dense"]
        == 27 * 16 * 64
        + sum(site["macs"] for site in source["sites"])
        + 16 * 32 * 16
        + 32 * 64 * 4
        + 640
    )


def test_attach_changes_nothing_that_was_there(road: Road) -> None:
    found, source = road.given["attach"], road.given["inspect source"]
    assert (found["method"], found["gates"], found["units"]) == (road.method, 9, 9) and found[
        "max_logit_change"
    ] <= 1e-6
    assert found["params"] > source["params"]
    tensors, recipe = contents(road.folder / found["out"])
    state = torch.load(road.folder / "r20.pt")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    assert (
        all(name.startswith("gates.") for name in tensors.keys() - state.keys())
        and tensors.keys() != state.keys()
    )
    assert (
        recipe["source"]["sha256"]
        == hashlib.sha256((road.folder / "r20.pt").read_bytes()).hexdigest()
    )
    assert recipe["source"]["file_bytes"] == (road.folder / "r20.pt").stat().st_size


def test_finetune_reports_what_it_did(road: Road) -> None:
    found = road.given["finetune"]
    assert (
        found["epochs"] == 2 == len(found["history"])
        and found["split"] == "val"
        and found["target_rate"] == 0.3
    )
    assert set(found["rates"]) == set(SITES) and all(
        0 <= rate <= 1 for rate in found["rates"].values()
    )
    assert found["achieved_rate"] == pytest.approx(sum(found["rates"].values()) / 9)
    assert 0 <= found["top1"] <= 100 and 0 < found["macs_expected"] <= found["macs_dense"]
    saved = sum(
        (1 - rate) * site["macs"]
        for rate, site in zip(
            found["rates"].values(), blocks_of(road.given["inspect gated"])["sites"], strict=True
        )
    )
    assert found["macs_expected"] == pytest.approx(found["macs_dense"] - saved)


def test_eval_by_strategy(road: Road) -> None:
    found = {
        name.split()[1]: value
        for name, value in road.given.items()
        if name.startswith("eval") and "pruned" not in name
    }
    assert {value["strategy"] for value in found.values()} == set(found) and {
        value["split"] for value in found.values()
    } == {"test"}
    assert {value["samples"] for value in found.values()} == {359}
    assert "top1_std" in found["stochastic"] and not any(
        "top1_std" in value for name, value in found.items() if name != "stochastic"
    )
    assert (
        set(found["always-on"]["rates"].values()) == {1.0}
        and found["always-on"]["macs_expected"] == found["always-on"]["macs_dense"]
    )
    assert found["threshold"]["macs_expected"] <= found["threshold"]["macs_dense"]
    assert found["ensemble"]["macs_expected"] == pytest.approx(
        5 * found["stochastic"]["macs_expected"]
    )
    assert all(0 <= value["top1"] <= value["top5"] <= 100 for value in found.values())


def test_prune_shrinks(road: Road) -> None:
    found, tuned = road.given["prune"], road.given["finetune"]
    assert found["removed"] and set(found["removed"]) < set(SITES) and found["kept_dynamic"] == []
    assert sorted(found["removed"] + found["ungated"]) == SITES
    assert (
        found["params"] < found["params_before"] == tuned["params"]
        and found["macs_dense"] < found["macs_before"] == tuned["macs_dense"]
    )
    assert found["macs_expected"] == found["macs_dense"] and found["max_logit_change"] <= 1e-5
    sizes = [(road.folder / name).stat().st_size for name in (tuned["out"], found["out"])]
    assert sizes[1] < sizes[0]
    if road.method == "ind-perbatch":  # decided alike: what ran by threshold is what is left
        assert found["removed"] == [site for site, rate in tuned["rates"].items() if rate == 0]
        assert road.given["eval pruned"]["top1"] == pytest.approx(
            road.given["eval threshold"]["top1"]
        )


def test_a_decided_network_is_plain(road: Road) -> None:
    """No gates, the source's own names, and nothing more to train or to prune."""
    found = road.given["prune"]
    tensors, _ = contents(road.folder / found["out"])
    state = torch.load(road.folder / "r20.pt")
    assert tensors.keys() < state.keys()
    gone = {name.rsplit(".", 2)[0] for name in state.keys() - tensors.keys()}
    assert gone == set(found["removed"]), gone
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(road.folder)
        refused("finetune --data digits", "no gates")
        refused("prune", "no gates")
    network = gatecli.load(road.folder / found["out"])
    assert set(network.state_dict()) == set(tensors) and network(
        torch.randn(2, 3, SIDE, SIDE)
    ).shape == (2, 10)


def test_profile(road: Road) -> None:
    found = road.given["profile"]
    source, pruned = found["rows"]
    assert (source["name"], pruned["name"]) == ("r20.pt", road.given["prune"]["out"])
    assert (
        source["file_bytes"] == (road.folder / "r20.pt").stat().st_size
        and pruned["file_bytes"] == (road.folder / pruned["name"]).stat().st_size
    )
    assert (
        source["params"] == road.given["inspect source"]["params"]
        and pruned["params"] == road.given["prune"]["params"]
    )
    assert (
        source["macs_dense"]
        == source["macs_expected"]
        == road.given["inspect source"]["macs_dense"]
    )
    assert (source["speedup"], source["ideal_speedup"], source["realised"]) == (1, 1, 1)
    assert pruned["ideal_speedup"] == pytest.approx(source["macs_dense"] / pruned["macs_expected"])
    for row in found["rows"]:
        assert {
            "name",
            "params",
            "file_bytes",
            "macs_dense",
            "macs_expected",
            "latency_ms",
            "speedup",
            "ideal_speedup",
            "realised",
        } <= set(row)
        assert list(row["latency_ms"]) == ["1", "4"]
        for ms in row["latency_ms"].values():
            assert (
                set(ms) == {"median", "p95", "min"} and 0 < ms["min"] <= ms["median"] <= ms["p95"]
            )
        assert row["realised"] == pytest.approx(row["speedup"] / row["ideal_speedup"])
        assert row["speedup"] == pytest.approx(
            source["latency_ms"]["1"]["median"] / row["latency_ms"]["1"]["median"]
        )
    assert found["decisions"] == "recorded"


def test_profile_of_gates(road: Road) -> None:
    found = blocks_of(road.given["profile gated"])
    assert found["decisions"] == "measured" and len(found["rows"]) == 2
    assert {site["name"]: site["rate"] for site in found["sites"]} == road.given["finetune"][
        "rates"
    ]
    assert {site["method"] for site in found["sites"]} == {road.method}
    assert [site["macs"] for site in found["sites"]] == [
        site["macs"] for site in blocks_of(road.given["inspect gated"])["sites"]
    ]
    assert found["macs_expected"] == pytest.approx(road.given["finetune"]["macs_expected"])


def test_log(road: Road) -> None:
    found = road.given["log"]
    assert [step["op"] for step in found["steps"]] == ["attach", "finetune", "prune"]
    attach, tuned, pruned = found["steps"]
    assert (
        attach["settings"]["method"] == road.method
        and attach["settings"]["settings"]["gate_lr"] == 3
    )
    assert (
        tuned["settings"]["epochs"] == 2
        and tuned["results"]["top1"] == road.given["finetune"]["top1"]
    )
    assert pruned["results"]["macs_dense"] == road.given["prune"]["macs_dense"]
    assert re.fullmatch("[0-9a-f]{16}", found["baseline"].pop("images"))
    assert found["baseline"] == {
        "top1": road.given["finetune"]["baseline_top1"],
        "split": "val",
        "data": "digits",
    }
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", step["at"])
        for step in found["steps"]
    )


def test_the_baseline_is_the_source_s_accuracy(road: Road) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(road.folder)
        found = call("eval", "r20.pt", "--data", "digits", "--input-size", SIDE)
    assert found["top1"] == road.given["finetune"]["baseline_top1"] and found["rates"] == {}


# --- rates, thresholds, and what stays dynamic ---


def bias(**by_site: float) -> Callable[[dict[str, torch.Tensor]], None]:
    """Let data-dependent gates decide the same for every image: by how much running is favoured."""

    def change(held: dict[str, torch.Tensor]) -> None:
        for site in SITES:
            held[f"gates.{site}.decide.bias"].copy_(
                torch.tensor([0.0, by_site.get(site.replace(".", "_"), 3.0)])
            )

    return change


def test_prune_by_measured_rates(files: Path) -> None:
    """Never runs: removed; always runs: ungated.

    Runs at times: stays, or is decided by --static.
    """
    edit(Path("aig.safetensors"), Path("set.safetensors"), tensors=bias(layer1_1=-3.0))
    found = call("prune", "set.safetensors", "--data", "npz:data.npz")
    assert (
        found["removed"] == ["layer1.1"]
        and len(found["ungated"]) == 8
        and found["kept_dynamic"] == []
    )

    def at_times(held: dict[str, torch.Tensor]) -> None:
        bias(layer1_1=-3.0)(held)
        spread = torch.zeros(2, 16)
        spread[1] = 1
        held["gates.layer2.1.decide.weight"].copy_(spread)
        held["gates.layer2.1.decide.bias"].copy_(torch.tensor([offset, 0.0]))

    offset = middle_of_odds()
    edit(Path("aig.safetensors"), Path("times.safetensors"), tensors=at_times)
    rate = call("eval", "times.safetensors", "--data", "npz:data.npz")["rates"]["layer2.1"]
    assert 0.1 < rate < 0.9
    found = call(
        "prune", "times.safetensors", "--data", "npz:data.npz", "--out", "dynamic.safetensors"
    )
    assert (found["removed"], found["kept_dynamic"]) == (["layer1.1"], ["layer2.1"])
    assert found["macs_expected"] == pytest.approx(found["macs_dense"] - (1 - rate) * 294912)
    assert {site["name"]: site["method"] for site in call("inspect")["sites"]}[
        "layer2.1"
    ] == "aig-perbatch"
    assert any(name.startswith("gates.layer2.1.") for name in contents("dynamic.safetensors")[0])
    more = call(
        "prune",
        "times.safetensors",
        "--data",
        "npz:data.npz",
        "--static",
        rate - 0.05,
        "--out",
        "on.safetensors",
    )
    less = call(
        "prune",
        "times.safetensors",
        "--data",
        "npz:data.npz",
        "--static",
        rate + 0.05,
        "--out",
        "off.safetensors",
    )
    assert (more["removed"], less["removed"]) == (["layer1.1"], ["layer1.1", "layer2.1"]) and less[
        "kept_dynamic"
    ] == more["kept_dynamic"] == []
    wide = call(
        "prune",
        "times.safetensors",
        "--data",
        "npz:data.npz",
        "--collapse",
        0.5,
        "--out",
        "wide.safetensors",
    )
    assert rate > 0.5 and wide["kept_dynamic"] == [] and "layer2.1" in wide["ungated"]


def middle_of_odds() -> float:
    """What the sum of layer2.1's hidden units is for a middling image.

    A gate that takes that off runs for six in ten.
    """
    network = gatecli.load("set.safetensors")
    data = gatecli.load_data("npz:data.npz")
    gatecli.fit(network, data)
    sums: list[torch.Tensor] = []
    gate = network.get_submodule("gates.layer2.1")

    def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        hidden = gate.norm(gate.reduce(args[0].mean((2, 3)))).relu()  # type: ignore[operator]
        sums.append(hidden.sum(1))

    gate.register_forward_pre_hook(look)
    from gatecli.data import batches

    with torch.no_grad():
        for x, _ in batches(data.splits["val"], input=network.input, batch_size=40):
            network(x)
    return float(torch.cat(sums).quantile(0.4))


def test_thresholds_of_data_independent_gates(files: Path) -> None:
    """P(on) > T, for the T given; 0 keeps everything and 1 nothing."""

    def odds(held: dict[str, torch.Tensor]) -> None:
        for number, site in enumerate(SITES):  # P(on) = .1, .2, ... .9
            share = (number + 1) / 10
            held[f"gates.{site}.logits"].copy_(
                torch.tensor([[0.0, float(np.log(share / (1 - share)))]])
            )

    edit(Path("ind.safetensors"), Path("set.safetensors"), tensors=odds)
    for threshold, left in ((0.55, 4), (0.25, 7), (0, 9), (1, 0)):
        found = call("prune", "set.safetensors", "--threshold", threshold, "--force")
        assert found["removed"] == SITES[: 9 - left] and found["ungated"] == SITES[9 - left :], (
            threshold
        )
    assert (
        call("prune", "set.safetensors", "--force")["removed"] == SITES[:5]
    )  # at .5 itself: not above it


def test_pruning_twice_and_attaching_again(files: Path) -> None:
    edit(Path("aig.safetensors"), Path("a.safetensors"), tensors=bias(layer1_1=-3.0))
    first = call("prune", "a.safetensors", "--data", "npz:data.npz")
    again = call("attach", "--method", "ind-perbatch")
    assert again["gates"] == 8 and again["out"] == "a.pruned.ind-perbatch.safetensors"
    edit(
        Path(again["out"]),
        Path("b.safetensors"),
        tensors=lambda held: held["gates.layer3.2.logits"].copy_(torch.tensor([[9.0, 0.0]])),
    )
    second = call("prune", "b.safetensors")
    assert second["removed"] == ["layer3.2"] and second["params"] < first["params"]
    assert [step["op"] for step in call("log")["steps"]] == ["attach", "prune", "attach", "prune"]
    assert [row["name"] for row in call("profile", "--repeats", 3)["rows"]] == [
        "r20.pt",
        "b.pruned.safetensors",
    ]


def test_include_and_exclude(files: Path) -> None:
    found = call(
        "attach",
        "r20.pt",
        "--method",
        "ind-perbatch",
        "--include",
        "layer[23].*",
        "--exclude",
        "*.0",
        "--input-size",
        SIDE,
    )
    assert found["gates"] == 4
    assert [site["name"] for site in call("inspect")["sites"] if site["method"]] == [
        "layer2.1",
        "layer2.2",
        "layer3.1",
        "layer3.2",
    ]


# --- finetune ---

TUNE = ["--epochs", 1, "--batch-size", 48, "--lr", 0.05]


def test_the_same_seed_gives_the_same_bits(files: Path) -> None:
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        call(
            "attach",
            "r20.pt",
            "--method",
            "aig-perbatch",
            "--input-size",
            SIDE,
            "--seed",
            seed,
            "--out",
            f"{out}.safetensors",
        )
    assert same("a.safetensors", "b.safetensors") and not same("a.safetensors", "c.safetensors")
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        call(
            "finetune",
            "a.safetensors",
            "--data",
            "npz:data.npz",
            *TUNE,
            "--seed",
            seed,
            "--out",
            f"{out}.tuned.safetensors",
        )
    held = [contents(f"{out}.tuned.safetensors")[0]["fc.weight"] for out in "abc"]
    assert same("a.tuned.safetensors", "b.tuned.safetensors") and not torch.equal(held[0], held[2])
    sampled = [
        call("eval", "a.tuned.safetensors", "--strategy", "stochastic", "--seed", seed)["rates"]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_settings_at_finetune(files: Path) -> None:
    found = call(
        "finetune",
        "aig.safetensors",
        "--data",
        "npz:data.npz",
        *TUNE,
        "--set",
        "target_rate=0.25",
        "--set",
        "loss_form=const-quad",
    )
    assert found["target_rate"] == 0.25
    step = call("log")["steps"][-1]
    assert (
        step["settings"]["settings"]["target_rate"] == 0.25
        and step["settings"]["settings"]["loss_form"] == "const-quad"
    )
    assert call("log", "aig.safetensors")["steps"][0]["settings"]["settings"]["target_rate"] == 0.6


def test_data_is_remembered_with_its_val_split(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an absolute path, so that another folder finds it.

    Val images cut from train are the same ever after.
    """
    with np.load("data.npz") as data:
        np.savez(
            "train.npz",
            **{name: array for name, array in data.items() if name.startswith(("train", "test"))},
        )
    call("finetune", "ind.safetensors", "--data", "npz:train.npz", *TUNE)
    recipe = contents("ind.tuned.safetensors")[1]
    assert recipe["data"] == {
        "spec": f"npz:{files / 'train.npz'}",
        "val": {"from": "train", "fraction": 0.1, "seed": 0},
    }
    assert recipe["input"]["mean"] is not None and len(recipe["input"]["mean"]) == 1
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    found = call("eval", "../ind.tuned.safetensors")
    assert found["samples"] == 10 and found["top1"] == recipe["steps"][-1]["results"]["top1"]
    assert call("eval", "../ind.tuned.safetensors", "--split", "test")["samples"] == 40


def test_normalisation_is_recorded_once(files: Path) -> None:
    call(
        "attach",
        "r20.pt",
        "--method",
        "ind-perbatch",
        "--input-size",
        "8x12",
        "--mean",
        "0.5",
        "--std",
        "0.1,0.2,0.3",
        "--out",
        "n.safetensors",
    )
    call("finetune", "--data", "npz:data.npz", *TUNE)
    told = contents("n.tuned.safetensors")[1]["input"]
    assert (told["size"], told["mean"], told["std"]) == ([8, 12], [0.5], [0.1, 0.2, 0.3])


def test_a_second_training_goes_on(files: Path) -> None:
    first = call("finetune", "ind.safetensors", "--data", "npz:data.npz", *TUNE)
    second = call("finetune", *TUNE)
    assert (
        second["out"] == "ind.tuned.tuned.safetensors"
        and second["baseline_top1"] == first["baseline_top1"]
    )
    assert [step["op"] for step in call("log")["steps"]] == ["attach", "finetune", "finetune"]


@pytest.mark.parametrize(
    "options",
    [
        "--precision bf16",
        "--augment crop-flip --label-smoothing .1",
        "--bn-batches 0",
        "--momentum 0 --epochs 2",
        "--schedule constant --epochs 2",
        "--batch-size 1000",
    ],
)
def test_options_of_finetune(files: Path, options: str) -> None:
    found = call("finetune", "aig.safetensors", "--data", "npz:data.npz", *TUNE, *options.split())
    assert 0 <= found["top1"] <= 100
    assert (found["batchnorm"]["after"] is None) == ("bn-batches" in options)
    call(
        "finetune", "aig.safetensors", "--data", "npz:data.npz", *TUNE, "--out", "plain.safetensors"
    )
    plain, other = contents("plain.safetensors")[0], contents(found["out"])[0]
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


# --- other architectures and data ---


def test_defaults_of_finetune_are_the_library_s() -> None:
    """The options repeat them, as `--help` shows them and must not import torch."""
    given = {option.name: option.default for option in dataclasses.fields(Training)}
    library = {option.name: option.default for option in dataclasses.fields(gatecli.TrainOptions)}
    assert {**given, "seed": 0} == library


def a_module(name: str, text: str) -> None:
    sys.modules.pop(name, None)
    Path(f"{name}.py").write_text(text)


def test_a_user_s_network(here: Path) -> None:
    a_module(
        "usernet",
        """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.body = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), second)
    def forward(self, x):
        return torch.relu(x + self.body(x))

class Net(nn.Module):
    def __init__(self, width=8, num_classes=10):
        super().__init__()
        print("a user's own words")
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(3)])
        self.head = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))
""",
    )
    sys.path.insert(0, "")
    try:
        from usernet import Net  # type: ignore[import-not-found]

        torch.save(Net(width=12).state_dict(), "mine.pt")
    finally:
        sys.path.remove("")
    arch = ["--arch", "usernet:Net", "--arch-arg", "width=12"]
    found = call("attach", "mine.pt", *arch, "--method", "ind-perbatch", "--input-size", SIDE)
    assert found["arch"] == "usernet:Net" and found["gates"] == 3
    refused("inspect", "usernet:Net", "--arch usernet:Net")
    assert [
        site["name"]
        for site in call("inspect", "--arch", "usernet:Net")["sites"]
        if site["kind"] == "block"
    ] == ["blocks.0.body", "blocks.1.body", "blocks.2.body"]
    call(
        "finetune", "--arch", "usernet:Net", "--data", "digits", "--epochs", 1, "--batch-size", 256
    )
    assert call("prune", "--arch", "usernet:Net")["params"] > 0
    assert len(call("profile", "--arch", "usernet:Net", "--repeats", 3)["rows"]) == 2
    assert call("eval", "--arch", "usernet:Net")["samples"] == 269


def test_image_folders(here: Path) -> None:
    chance = np.random.RandomState(0)
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        for name in ("ant", "bee", "cat"):
            Path("images", split, name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(chance.randint(0, 255, (9 + number, 11, 3)).astype(np.uint8)).save(
                    f"images/{split}/{name}/{number}.png"
                )
    save_source(Path("three.pt"), num_classes=3)
    call("attach", "three.pt", "--method", "aig-perbatch", "--input-size", SIDE)
    found = call(
        "finetune", "--data", "imagefolder:images", "--epochs", 2, "--batch-size", 6, "--workers", 1
    )
    assert contents(found["out"])[1]["data"] == {
        "spec": f"imagefolder:{here / 'images'}",
        "val": None,
    }
    assert (
        call("eval")["samples"],
        call("eval", "--split", "test")["samples"],
        call("eval", "--split", "train")["samples"],
    ) == (9, 6, 18)


def test_data_from_a_function(files: Path) -> None:
    a_module(
        "userdata",
        "import numpy\ndef images():\n    print('reading')\n    data = numpy.load('data.npz')\n   "
        " return {'train': (data['train_images'], data['train_labels'])}\n",
    )
    found = call("finetune", "ind.safetensors", "--data", "userdata:images", *TUNE)
    assert contents(found["out"])[1]["data"]["spec"] == "userdata:images"
    refused("eval", "userdata:images", "--data userdata:images")
    assert call("eval", "--data", "userdata:images")["samples"] == 10


@pytest.mark.parametrize(
    "name", ["r20.pth", "r20.safetensors", "r20.pth.tar", "r20.bin", "weights"]
)
def test_forms_and_names_of_sources(here: Path, name: str) -> None:
    from safetensors.torch import save_file

    state = torch.load(save_source(Path("x.pt")))
    if name.endswith(".safetensors"):
        save_file(state, name)
    else:
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
            name,
        )
    stem = "weights" if name == "weights" else "r20"
    assert (
        call("attach", name, "--method", "ind-perbatch", "--input-size", SIDE)["out"]
        == f"{stem}.ind-perbatch.safetensors"
    )


def test_other_spellings_keep_their_names(here: Path) -> None:
    state = torch.load(save_source(Path("x.pt")))
    renamed = {
        name.replace("downsample", "shortcut").replace("fc.", "linear."): tensor
        for name, tensor in state.items()
    }
    torch.save(renamed, "theirs.pt")
    out = call("attach", "theirs.pt", "--method", "ind-perbatch", "--input-size", SIDE)["out"]
    assert (
        renamed.keys() < contents(out)[0].keys()
        and renamed.keys() < gatecli.load(out).state_dict().keys()
    )


def test_cifar_stem_and_notes(here: Path) -> None:
    save_source(Path("r18.pt"), "torchvision:resnet18", stem="cifar", num_classes=10)
    done = run("inspect", "r18.pt")
    assert (
        done.code == 0 and "no max-pool in the 3x3 stem" in done.err and "maxpool=true" in done.err
    )
    assert call("inspect", "r18.pt")["input_size"] == [32, 32]
    dense = [
        call("inspect", "r18.pt", "--arch-arg", f"maxpool={word}")["macs_dense"]
        for word in ("false", "true")
    ]
    assert dense[1] < dense[0]


# --- the current checkpoint, and outputs ---


def test_the_current_checkpoint(files: Path) -> None:
    assert (
        run("use", "ind.safetensors").err == "ind.safetensors is now current\n"
        and current() == "ind.safetensors"
    )
    assert call("use", "aig.safetensors")["checkpoint"] == "aig.safetensors"
    for command in (
        "inspect",
        "log",
        "profile --repeats 3 --no-sites",
        "eval --data npz:data.npz",
        "prune --data npz:data.npz",
    ):
        done = run(*command.split())
        assert done.code == 0 and done.err.splitlines()[0] == "reading aig.safetensors (current)", (
            done.err
        )
    assert current() == "aig.pruned.safetensors"
    assert "(current)" not in run("inspect", "aig.safetensors").err
    assert current() == "aig.pruned.safetensors"


def test_out_and_force(files: Path) -> None:
    Path("sub").mkdir()
    for out in ("sub/x.safetensors", "noending"):
        assert (
            call(
                "attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE, "--out", out
            )["out"]
            == out
            == current()
        )
        assert call("inspect")["checkpoint"] == out
    Path("old.safetensors").write_bytes(b"old")
    refused("prune ind.safetensors --out old.safetensors", "--force")
    call("prune", "ind.safetensors", "--out", "old.safetensors", "--force")
    assert contents("old.safetensors")[1]["steps"][-1]["op"] == "prune"
    assert Path("old.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask()


def mask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_outputs_go_to_the_working_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("work").mkdir()
    monkeypatch.chdir("work")
    assert (
        call("attach", "../r20.pt", "--method", "ind-perbatch", "--input-size", SIDE)["out"]
        == "r20.ind-perbatch.safetensors"
    )
    assert sorted(os.listdir()) == [".gatecli", "r20.ind-perbatch.safetensors"]


# --- what is printed ---


def test_methods(here: Path) -> None:
    found = call("methods")["methods"]
    assert [each["name"] for each in found] == methods.names() and set(METHODS) <= set(
        methods.names()
    )
    for each in found:
        assert each["summary"] and each["paper"] and each["needs"]
        assert (
            {"target_rate", "gate_lr"}
            if methods.get(each["name"]).objective.traits.trains == "network"
            and methods.get(each["name"]).objective.traits.aims
            and each["name"] != "gateconnect"
            else {"gate_lr"}
        ) <= {setting["name"] for setting in each["settings"]}
        assert all(setting["help"] for setting in each["settings"])
    done = run("methods", "aig-perbatch")
    assert (
        done.code == 0
        and "target_rate" in done.out
        and "0.6" in done.out
        and "ind-perbatch" not in done.out
    )
    assert [each["name"] for each in call("methods", "aig-perbatch")["methods"]] == ["aig-perbatch"]


def test_version_and_help(here: Path) -> None:
    assert run("--version").out.strip() == gatecli.__version__
    assert "Commands" in run("-h").out
    for command in COMMANDS:
        done = run(command, "--help")
        assert done.code == 0 and "--json" in done.out and len(done.out) > 300, command
    assert not listing() and not Path(".gatecli").exists()


def test_python_m(here: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gatecli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == gatecli.__version__
    bad = subprocess.run([sys.executable, "-m", "gatecli", "log"], capture_output=True, text=True)
    assert (
        bad.returncode == 1
        and bad.stderr.startswith("error: there is no current checkpoint")
        and bad.stderr.count("\n") == 1
    )


def test_help_needs_no_torch(here: Path) -> None:
    code = (
        "import sys\nfrom gatecli.cli.app import app\ntry:\n    app(['attach', '--help'])\nexcept"
        " SystemExit:\n    pass\nsys.exit(any(name in sys.modules for name in ('torch', 'numpy',"
        " 'safetensors', 'fvcore')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


LINES = {
    "inspect": "ind.safetensors: cifar:resnet20",
    "profile --repeats 3": "GMACs expected",
    "eval --data npz:data.npz": "top-1",
    "log": "attach",
    "methods": "target_rate",
}


@pytest.mark.parametrize("command", LINES)
def test_results_go_to_stdout_and_notes_to_stderr(files: Path, command: str) -> None:
    run("use", "ind.safetensors")
    plain, quiet, told = (
        run(*command.split()),
        run(*command.split(), "--quiet"),
        run(*command.split(), "--json"),
    )
    assert LINES[command] in plain.out and "error" not in plain.err
    assert quiet.err == "" and LINES[command] in quiet.out
    assert "seconds" in strict(told.out) and len(told.out.splitlines()) == 1
    assert not any(line.endswith(" ") for line in plain.out.splitlines())


def test_quiet_writers_say_nothing(files: Path) -> None:
    for command in (
        f"attach r20.pt --method ind-perbatch --input-size {SIDE}",
        "finetune --data npz:data.npz --epochs 1 --batch-size 48",
        "prune",
        "use ind.safetensors",
    ):
        done = run(*command.split(), "--quiet")
        assert (done.code, done.out, done.err) == (0, "", ""), command
    done = run("eval", "--data", "npz:data.npz", "--quiet", "--json")
    assert done.err == "" and strict(done.out)["samples"] == 40


def test_progress_without_a_terminal(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines with the place, the rate and the time left; no bar, no control characters."""
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    done = run(
        "finetune", "ind.safetensors", "--data", "npz:data.npz", "--epochs", 2, "--batch-size", 32
    )
    assert done.out == "" and "\x1b" not in done.err and "\r" not in done.err
    lines = [line for line in done.err.splitlines() if re.match(r"epoch 1/2: \d of 3, ", line)]
    assert len(lines) == 3
    assert re.fullmatch(
        r"epoch 1/2: 2 of 3, \d+ s left, [\d.]+/s  loss [\d.]+  top-1 [\d.]+  rate [\d.]+ \(asked"
        r" 0\.60\)  GMACs [\d.e-]+",
        lines[1],
    ), lines[1]
    assert sum(line.startswith("epoch 1/2: loss") for line in done.err.splitlines()) == 1
    for word in (
        "validating: 2 of 2",
        "re-estimating BatchNorm: 3 of 3",
        "chosen ",
        "wrote ind.tuned.safetensors (now current)",
        "next: gatecli prune",
    ):
        assert word in done.err, word
    monkeypatch.setattr(progress, "LINE_EVERY", 1e9)
    assert (
        "of 3"
        not in run(
            "finetune",
            "ind.safetensors",
            "--data",
            "npz:data.npz",
            "--epochs",
            1,
            "--batch-size",
            32,
            "--force",
        ).err
    )


def test_a_bar_on_a_terminal(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn on a pseudo-terminal; the lines that stay are told above it."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from gatecli.cli.app"
        " import app; app()"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "eval",
            "ind.safetensors",
            "--data",
            "npz:data.npz",
            "--batch-size",
            "4",
        ],
        stderr=child,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(child)
    drawn = b""
    while True:
        try:
            block = os.read(parent, 4096)
        except OSError:  # Linux tells the end of a terminal so
            break
        if not block:
            break
        drawn += block
    os.close(parent)
    out = process.communicate()[0]
    assert process.returncode == 0 and b"top-1" in out
    assert b"\x1b[" in drawn and b"threshold on val" in drawn and b"/10" in drawn


def test_json_is_one_line_with_notes_on_stderr(files: Path) -> None:
    done = run("attach", "r20.pt", "--method", "ind-perbatch", "--input-size", SIDE, "--json")
    assert (
        done.out.count("\n") == 1
        and strict(done.out)["gates"] == 9
        and "wrote r20.ind-perbatch.safetensors" in done.err
    )


def test_the_library_has_its_names(here: Path) -> None:
    assert all(callable(getattr(gatecli, name)) for name in gatecli.__all__) and set(
        gatecli.__all__
    ) < set(dir(gatecli))
    with pytest.raises(AttributeError, match="nope"):
        _ = gatecli.nope  # type: ignore[attr-defined]


def test_threads(files: Path) -> None:
    assert call("profile", "ind.safetensors", "--repeats", 3, "--threads", 2)["threads"] == 2


def test_json_numbers_are_plain(files: Path) -> None:
    """What scripts read back is what was measured: integers stay integers."""
    found = call("inspect", "ind.safetensors")
    assert isinstance(found["params"], int) and isinstance(found["macs_dense"], int)
    assert json.loads(json.dumps(found)) == found


def test_an_untraceable_network_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one line names the line of the user's code and an option.

    With that option the command works.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd_networks.py").write_text(
        "from networks import own\n"
        "from torch import nn\n"
        "class Flip(nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.mean() > 0 else -x\n"
        "def odd(): return nn.Sequential(Flip(), own())\n"
    )
    from networks import own

    save_file(
        {f"1.{name}": tensor for name, tensor in own().state_dict().items()},
        tmp_path / "odd.safetensors",
    )
    command = (
        "attach",
        "odd.safetensors",
        "--arch",
        "odd_networks:odd",
        "--input-size",
        16,
        "--method",
        "ind-perbatch",
    )
    failed = run(*command)
    assert (
        failed.code == 1
        and "odd_networks.py:5 `return x if x.mean() > 0 else -x`" in failed.last
        and "--leaf '0'" in failed.last
    )
    done = call(*command, "--leaf", "0")
    assert (done["gates"], done["max_logit_change"]) == (3, 0)
    assert (
        call("inspect", "--arch", "odd_networks:odd")["sites"][0]["method"] == "ind-perbatch"
    )  # the file knows its leaves
