"""calibrate: against brute force over many thresholds, on every kind of gate.

What it writes, what prune makes of it, what it refuses.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace
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
    save_npz,
    save_source,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CASES
from torch import Tensor

import gatecli
from gatecli.calibration import Calibrated, Point, Reference, calibrate, open_notes
from gatecli.calibration.gates import uniform
from gatecli.calibration.gates.points import Measure, choose, pareto, set_thresholds, site_values
from gatecli.data import DataSet, batches, load_data
from gatecli.errors import DataError, GatecliError, Interrupted, SettingError, TrainingError
from gatecli.gates.observe import at_threshold, strategy
from gatecli.methods.layer_gates import DataDependentGate, DataIndependentGate
from gatecli.network import Network
from gatecli.network.costs import expected_macs, known_rates
from gatecli.progress import Task, silent
from gatecli.stages.predict import score

KINDS = ("ind", "aig", "mixed")
FEW = uniform.FEW
EXACT = 10_000  # passes: more than any of these networks can use
SIZE = (8, 8)


def gated(kind: str, seed: int, case: str = "own") -> Network:
    """A network of random weights whose gates have all kinds of P(on)."""
    torch.manual_seed(seed)
    network = gatecli.attach(
        CASES[case].build(),
        "aig-perbatch" if kind == "aig" else "ind-perbatch",
        input_size=SIZE,
        exclude=["units.1"] if kind == "mixed" else [],
    ).network
    if kind == "mixed":
        network = gatecli.attach(network, "aig-perbatch").network
    for gate in network.site_gates.values():
        with torch.no_grad():
            if isinstance(gate, DataDependentGate):
                gate.decide.weight.normal_(std=2)
                gate.decide.bias.normal_()
            elif isinstance(gate, DataIndependentGate):
                gate.logits.normal_(std=2)
    return network


def labelled(
    network: Network, path: Path, seed: int, count: int = 30, by: str = "always-on"
) -> DataSet:
    """Noise whose labels are mostly what the network says by a strategy: with all gates open, so
    that skipping costs accuracy; by "threshold" as gates decide, so that opening them does.
    """
    chance = np.random.RandomState(seed)
    images = chance.randint(0, 256, (count, *SIZE, 3)).astype(np.uint8)
    classes = network.recipe.source.num_classes

    def save(labels: np.ndarray) -> DataSet:
        labels[:classes] = np.arange(classes)
        np.savez(
            path,
            **{
                f"{split}_{what}": array
                for split in ("train", "val", "test")
                for what, array in (
                    ("images", images),
                    ("labels", labels.astype(np.uint8)[:, None]),
                )
            },
        )
        return load_data(f"npz:{path}")

    data = save(chance.randint(0, classes, count))
    gatecli.fit(network, data)
    with strategy(network, by), torch.no_grad():
        said = torch.cat(
            [
                network(x).argmax(1)
                for x, _ in batches(data.splits["val"], input=network.input, batch_size=64)
            ]
        ).numpy()
    return save(np.where(chance.rand(count) < 0.8, said, chance.randint(0, classes, count)))


def measured(network: Network, data: DataSet) -> tuple[float, float]:
    """Val top-1 and MACs of the network as it is, by none of calibrate's own means."""
    scores = score(network, batches(data.splits["val"], input=network.input, batch_size=64))
    return scores.top1, expected_macs(network, scores.rates)


def sweep(network: Network, data: DataSet) -> list[tuple[float, float]]:
    taus = sorted(
        {
            0.0,
            0.5,
            *torch.linspace(0, 0.999, 50).tolist(),
            *torch.sigmoid(torch.linspace(-9, 9, 70)).tolist(),
        }
    )
    found = []
    for tau in taus:
        with at_threshold(network, tau):
            found.append(measured(network, data))
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_brute_force_finds_nothing_cheaper(tmp_path: Path, kind: str, seed: int) -> None:
    network = gated(kind, seed)
    data = labelled(network, tmp_path / "data.npz", seed)
    everything = sweep(network, data)
    tops = sorted({top1 for top1, _ in everything})
    for target in {tops[-1], tops[len(tops) // 2], tops[0]}:
        found = calibrate(network, data, target_acc=target, refine=EXACT)
        best = min(macs for top1, macs in everything if top1 >= target)
        assert found.macs_expected <= best * (1 + 1e-6), (kind, seed, target)
        top1, macs = measured(found.network, data)
        assert (
            top1 >= target
            and top1 == pytest.approx(found.top1)
            and macs == pytest.approx(found.macs_expected)
        )
        is_pareto(found)
    with strategy(network, "always-on"):
        assert found.baseline_top1 == pytest.approx(measured(network, data)[0])


def test_of_many_filters_few_thresholds_are_measured(tmp_path: Path) -> None:
    """A pass each for thousands of filters would never end."""
    torch.manual_seed(0)
    source = CASES["own"].build()
    network = gatecli.attach(source, "ind-perbatch", input_size=SIZE, kinds=["filter"]).network
    for gate in network.site_gates.values():
        torch.nn.init.normal_(gate.get_parameter("logits"), std=2)
    assert sum(gate.units for gate in network.site_gates.values()) > FEW
    data = labelled(network, tmp_path / "data.npz", 0)
    target = measured(network, data)[0]
    seen = Counter[str]()
    whole = Measure.observe

    def counted(measure: Measure, thresholds: dict[str, list[float]]) -> Any:
        seen["passes"] += 1
        return whole(measure, thresholds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Measure, "observe", counted)
        found = calibrate(network, data, target_acc=target, refine=5)
    assert FEW <= seen["passes"] <= FEW + 5 + 2  # all open, and the present thresholds
    assert found.top1 >= target
    is_pareto(found)


def is_pareto(found: Calibrated) -> None:
    points = found.frontier
    assert [p.macs for p in points] == sorted({p.macs for p in points}) and [
        p.top1 for p in points
    ] == sorted({p.top1 for p in points})
    assert [p for p in points if p.thresholds == found.thresholds] == [
        Point(found.thresholds, found.top1, found.macs_expected, found.rates)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_point_of_the_frontier_is_true(tmp_path: Path, kind: str) -> None:
    network = gated(kind, 5)
    data = labelled(network, tmp_path / "data.npz", 5)
    for point in calibrate(network, data, target_acc=20, per_gate=True).frontier:
        set_thresholds(network, point.thresholds)
        assert measured(network, data) == pytest.approx((point.top1, point.macs))
        assert all(0 <= tau < 1 for units in point.thresholds.values() for tau in units)


@pytest.mark.parametrize("kind", ["aig", "mixed"])
def test_few_passes_come_near(tmp_path: Path, kind: str) -> None:
    """With the passes that are made unless more are asked for.

    The target holds, at little more than the least MACs.
    """
    excess = []
    for seed in range(2):
        network = gated(kind, seed + 10)
        data = labelled(network, tmp_path / "data.npz", seed)
        found, best = (
            calibrate(network, data, target_acc=50, refine=passes) for passes in (12, EXACT)
        )
        assert measured(found.network, data)[0] >= 50
        excess.append(found.macs_expected / best.macs_expected - 1)
    assert min(excess) >= -1e-9 and max(excess) < 0.05, excess


def test_data_independent_gates_cost_a_pass_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = gated("ind", 1)
    data = labelled(network, tmp_path / "data.npz", 1)
    passes = counted(monkeypatch)
    calibrate(network, data, target_acc=20)
    assert len(passes) == len(network.gated_by) + 1


def counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    passes: list[None] = []
    whole = Measure.observe

    def observe(
        self: Measure, thresholds: dict[str, list[float]]
    ) -> tuple[Point, dict[str, Tensor]]:
        passes.append(None)
        return whole(self, thresholds)

    monkeypatch.setattr(Measure, "observe", observe)
    return passes


@pytest.mark.parametrize("kind", ["ind", "aig"])
def test_the_present_thresholds_are_a_candidate(tmp_path: Path, kind: str) -> None:
    """One threshold for all cannot reach what these do: the sites want theirs in another order."""
    network = gated(kind, 2)
    data = labelled(network, tmp_path / "data.npz", 2)
    better = calibrate(network, data, target_acc=60, per_gate=True)
    again = calibrate(better.network, data, target_acc=60, candidates=1, refine=0)
    assert again.macs_expected <= better.macs_expected


@pytest.mark.parametrize("kind", KINDS)
def test_gate_by_gate_is_no_worse(tmp_path: Path, kind: str) -> None:
    gains = []
    for seed in (2, 5):
        network = gated(kind, seed)
        data = labelled(network, tmp_path / "data.npz", seed)
        for target in [
            point.top1 for point in calibrate(network, data, target_acc=0).frontier[1:4]
        ]:
            found = calibrate(network, data, target_acc=target, per_gate=True)
            assert (
                found.macs_expected <= found.single.macs
                and measured(found.network, data)[0] >= target
            )
            is_pareto(found)
            gains.append(found.single.macs - found.macs_expected)
    assert max(gains) > 0


def test_gate_by_gate_lies_between_all_subsets_and_one_threshold(tmp_path: Path) -> None:
    network = gated("ind", 3)
    data = labelled(network, tmp_path / "data.npz", 3)
    found = calibrate(network, data, target_acc=50, per_gate=True)
    reached = []
    for bits in range(2 ** len(network.gated_by)):
        set_thresholds(
            network,
            {
                site: [0.0 if bits >> index & 1 else 1.0]
                for index, site in enumerate(network.gated_by)
            },
        )
        top1, macs = measured(network, data)
        if top1 >= 50:
            reached.append(macs)
    assert min(reached) * (1 - 1e-6) <= found.macs_expected <= found.single.macs


def test_the_input_stays(tmp_path: Path) -> None:
    network = gated("mixed", 4)
    data = labelled(network, tmp_path / "data.npz", 4)
    network.train()
    before, recipe = (
        {name: tensor.clone() for name, tensor in network.state_dict().items()},
        network.recipe,
    )
    found = calibrate(network, data, target_acc=30, per_gate=True)
    after = network.state_dict()
    assert (
        all(torch.equal(before[name], after[name]) for name in before)
        and network.recipe == recipe
        and network.training
    )
    assert all(
        gate.observer is None and gate.strategy == "threshold"
        for gate in (*network.site_gates.values(), *found.network.site_gates.values())
    )
    changed = [
        name
        for name, tensor in found.network.state_dict().items()
        if not torch.equal(tensor, before[name])
    ]
    assert changed and all(name.endswith(".threshold") for name in changed)


def test_the_step_tells_the_rates(tmp_path: Path) -> None:
    network = gated("aig", 6)
    data = labelled(network, tmp_path / "data.npz", 6)
    found = calibrate(network, data, target_acc=40)
    step = found.network.recipe.steps[-1]
    assert (step.op, step.settings["target_acc"], step.results["split"]) == ("calibrate", 40, "val")
    assert (
        known_rates(found.network) == found.rates
        and expected_macs(found.network, known_rates(found.network)) == found.macs_expected
    )
    recorded = dict(found.network.recipe.baseline or {})
    assert recorded.pop("images")  # a hash of how they were prepared
    assert recorded == {"top1": found.baseline_top1, "split": "val", "data": data.spec}


def test_interrupted_between_batches(tmp_path: Path) -> None:
    network = gated("aig", 7)
    data = labelled(network, tmp_path / "data.npz", 7)

    class Stop(type(silent)):  # type: ignore[misc]
        def advance(self, **shown: str) -> None:
            raise Interrupted("interrupted")

    before = {site: gate.threshold.clone() for site, gate in network.site_gates.items()}
    with pytest.raises(Interrupted):
        calibrate(network, data, target_acc=40, progress=Stop())
    assert all(
        torch.equal(gate.threshold, before[site]) for site, gate in network.site_gates.items()
    )


def test_progress_never_exceeds_what_was_announced(tmp_path: Path) -> None:
    network = gated("mixed", 8)
    data = labelled(network, tmp_path / "data.npz", 8)
    tasks: list[list[int]] = []

    class Counting(type(silent)):  # type: ignore[misc]
        def task(self, label: str, total: int) -> Task:
            assert "passes over val" in label
            tasks.append([0, total])
            return super().task(label, total)

        def advance(self, **shown: str) -> None:
            tasks[-1][0] += 1

    calibrate(network, data, target_acc=40, per_gate=True, batch_size=16, progress=Counting())
    assert (
        len(tasks) >= 4
        and all(0 < done <= total for done, total in tasks[:2])
        and all(done <= total for done, total in tasks)
    )


# --- the parts ---


@given(st.lists(st.floats(-40, 40, width=32), max_size=12))
@settings(max_examples=60, deadline=None)
def test_cuts_part_what_can_be_parted(values: list[float]) -> None:
    odds = torch.tensor(values)
    taus = uniform.cuts(odds)
    ways = [(odds > limit).tolist() for limit in torch.logit(taus)]
    assert all(0 < tau < 1 for tau in taus.tolist()) and taus.tolist() == sorted(taus.tolist())
    assert all(way in ways for way in wanted(odds))
    assert len({tuple(way) for way in ways}) == len(ways)  # no two alike


def wanted(odds: Tensor) -> list[list[bool]]:
    """Ways to decide that a threshold in float32 can bring about with some room to spare."""
    sorted_odds = sorted(set(odds.tolist()))
    pairs = itertools.pairwise(sorted_odds)
    return [(odds > low).tolist() for low, high in pairs if high - low > 1e-3 and high < 8]


def test_cuts_without_values() -> None:
    assert (
        len(uniform.cuts(torch.empty(0)))
        == 0
        == len(uniform.cuts(torch.tensor([torch.nan, torch.inf])))
    )
    assert (
        uniform.thin(torch.empty(0), 5) == []
        and uniform.thin(torch.arange(5.0), 1) == [0]
        and uniform.thin(torch.arange(5.0), 3) == [0, 2, 4]
    )


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_choose_and_pareto(figures: list[tuple[int, int]], target: int) -> None:
    points = [
        Point({"a": [float(index)]}, top1, macs, {}) for index, (top1, macs) in enumerate(figures)
    ]
    kept, best = pareto(points), choose(points, target)
    assert {(p.top1, p.macs) for p in kept} == {
        (t, m)
        for t, m in figures
        if not any(a >= t and b <= m and (a, b) != (t, m) for a, b in figures)
    }
    assert (best is None) == all(top1 < target for top1, _ in figures)
    assert best is None or best in kept


def test_values_of_sites() -> None:
    assert site_values({"a": [0.5], "b": [0.25, 0.25], "c": [0.25, math.inf], "d": [math.nan]}) == {
        "a": 0.5,
        "b": 0.25,
        "c": [0.25, None],
        "d": None,
    }


# --- the command ---


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gated ResNet-20s whose gates differ in P(on), and data."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_source(Path("r20.pt"))
        save_npz(Path("data.npz"))
        for method in ("ind", "aig"):
            call(
                "attach",
                "r20.pt",
                "--method",
                f"{method}-perbatch",
                "--input-size",
                SIDE,
                "--out",
                "plain.safetensors",
                "--force",
            )
            edit(Path("plain.safetensors"), Path(f"{method}.safetensors"), tensors=spread)
        Path("plain.safetensors").unlink()
    return folder


def spread(held: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    for name, tensor in held.items():
        if name.endswith((".logits", ".decide.weight")):
            tensor.normal_(std=2)


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for file in shelf.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


KEYS = {
    "checkpoint",
    "out",
    "arch",
    "split",
    "thresholds",
    "top1",
    "baseline_top1",
    "target_top1",
    "counted_from",
    "params",
    "macs_dense",
    "macs_expected",
    "rates",
    "per_gate",
    "frontier",
    "seconds",
    "assumed",
    "input",
}


def test_keys_are_those_of_the_document() -> None:
    text = (Path(__file__).parent.parent / "docs/json.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| `calibrate` |"))
    told = set(re.findall(r"`(\w+)`", re.sub(r"\{[^}]*\}|\([^)]*\)|\[[^]]*\]", "", row))) - {
        "calibrate"
    }
    everywhere = {"checkpoint", "arch", "params", "macs_dense", "seconds", "assumed", "input"}
    assert told | everywhere == KEYS


@pytest.mark.parametrize("method", ["ind", "aig"])
def test_command(here: Path, method: str) -> None:
    before = listing()
    found = call(
        "calibrate",
        f"{method}.safetensors",
        "--target-acc",
        10,
        "--data",
        "npz:data.npz",
        "--refine",
        2,
    )
    assert (
        set(found) == KEYS
        and found["out"] == f"{method}.calibrated.safetensors" == current()
        and found["split"] == "val"
    )
    after = listing()
    assert {name: after[name] for name in before} == before and after.keys() - before.keys() == {
        found["out"]
    }
    assert (
        found["top1"] >= found["target_top1"] == 10
        and 0 < found["macs_expected"] <= found["macs_dense"]
    )
    assert [set(point) for point in found["frontier"]] == [{"thresholds", "top1", "macs"}] * len(
        found["frontier"]
    )
    chosen = {
        "thresholds": found["thresholds"],
        "top1": found["top1"],
        "macs": found["macs_expected"],
    }
    assert chosen in found["frontier"]
    tensors, recipe = contents(found["out"])
    assert {site: tensors[f"gates.{site}.threshold"].tolist() for site in found["thresholds"]} == {
        site: [value] for site, value in found["thresholds"].items()
    }
    assert (
        recipe["steps"][-1]["op"] == "calibrate"
        and recipe["steps"][-1]["results"]["thresholds"] == found["thresholds"]
    )
    again = call("eval")
    assert (
        again["checkpoint"] == found["out"]
        and again["top1"] == pytest.approx(found["top1"])
        and again["macs_expected"] == pytest.approx(found["macs_expected"])
    )
    assert again["rates"] == pytest.approx(found["rates"])
    assert call("inspect")["macs_expected"] == pytest.approx(found["macs_expected"])


def test_prune_takes_the_calibrated_thresholds(here: Path) -> None:
    found = call("calibrate", "ind.safetensors", "--target-acc", 10, "--data", "npz:data.npz")
    pruned = call("prune")
    assert (
        pruned["removed"] == [site for site, rate in found["rates"].items() if rate == 0]
        and pruned["removed"]
    )
    assert pruned["macs_dense"] == found["macs_expected"] and pruned["kept_dynamic"] == []
    assert call("eval")["top1"] == pytest.approx(found["top1"])
    assert (
        pruned["removed"]
        != call("prune", "ind.safetensors", "--out", "half.safetensors")["removed"]
    )


def test_prune_says_that_a_typed_threshold_sets_the_calibrated_ones_aside(here: Path) -> None:
    call("calibrate", "ind.safetensors", "--target-acc", 10, "--data", "npz:data.npz")
    said = run("prune", "--threshold", 0.5, "--out", "typed.safetensors").err
    assert "takes the place of what calibrate chose" in said
    assert "takes the place" not in run("prune").err
    plain = run("prune", "ind.safetensors", "--threshold", 0.3, "--out", "p.safetensors").err
    assert "takes the place" not in plain  # nobody calibrated it


def test_table_for_people(here: Path) -> None:
    done = run(
        "calibrate",
        "aig.safetensors",
        "--target-acc",
        10,
        "--data",
        "npz:data.npz",
        "--per-gate",
        "--refine",
        2,
    )
    assert done.code == 0, done.err
    assert (
        "frontier on val" in done.out
        and sum(
            line.lstrip().startswith("*") and "chosen" not in line for line in done.out.splitlines()
        )
        == 1
    )
    assert (
        "heuristic" in done.err
        and "next: gatecli prune --data npz:" in done.err
        and "wrote aig.calibrated.safetensors" in done.err
    )


def test_out_of_reach(here: Path) -> None:
    line = refused(
        "calibrate ind.safetensors --target-acc 99 --data npz:data.npz",
        "99",
        "highest top-1",
        "GMACs",
        "val",
    )
    reachable = float(line.partition("highest top-1 is ")[2].partition(",")[0])
    assert (
        call("calibrate", "ind.safetensors", "--target-acc", reachable, "--data", "npz:data.npz")[
            "top1"
        ]
        >= reachable
    )


@pytest.mark.parametrize("drop", [0, 5, 100])
def test_points_below_all_gates_open(here: Path, drop: float) -> None:
    found = call("calibrate", "ind.safetensors", "--max-drop", drop, "--data", "npz:data.npz")
    assert found["target_top1"] == pytest.approx(max(0.0, found["baseline_top1"] - drop))
    asked = call(
        "calibrate",
        "ind.safetensors",
        "--target-acc",
        found["target_top1"],
        "--data",
        "npz:data.npz",
        "--force",
    )
    assert {name: asked[name] for name in ("thresholds", "top1", "macs_expected")} == {
        name: found[name] for name in ("thresholds", "top1", "macs_expected")
    }


def trained_closed(path: Path) -> tuple[Network, DataSet]:
    """A network that knows its classes with its gates as they are, not with all of them open."""
    network = gated("ind", 3)
    return network, labelled(network, path / "data.npz", 3, by="threshold")


def test_a_drop_is_not_counted_from_gates_open_that_know_less(tmp_path: Path) -> None:
    network, data = trained_closed(tmp_path)
    present = measured(network, data)[0]
    found = calibrate(network, data, max_drop=0)
    assert found.baseline_top1 < present - 20
    assert found.counted_from == Reference(top1=present, of="the gates as they were")
    assert found.top1 >= present == found.target_top1
    assert found.network.recipe.steps[-1].results["counted_from"]["top1"] == present
    assert "with gates closed" in open_notes(found.baseline_top1, found.present_top1)[0]
    assert not open_notes(89.5, 90.0)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_drop_is_counted_from_the_source_on_the_same_data(
    tmp_path: Path, elsewhere: bool
) -> None:
    network, data = trained_closed(tmp_path)
    present = measured(network, data)[0]
    spec = "npz:other.npz" if elsewhere else data.spec
    source = {"top1": 100.0, "split": "val", "data": spec, "images": network.input.key()}
    network.recipe = replace(network.recipe, baseline=source)
    if elsewhere:
        assert calibrate(network, data, max_drop=1).target_top1 == present - 1
        return
    assert calibrate(network, data, max_drop=101 - present).target_top1 == present - 1
    with pytest.raises(SettingError, match=r"99\.00 \(--max-drop 1 below 100\.00, of the source\)"):
        calibrate(network, data, max_drop=1)


def test_it_is_said_what_a_drop_is_counted_from(here: Path) -> None:
    network, data = trained_closed(here)
    source = replace(network.recipe.source, arch="networks:own")
    network.recipe = replace(network.recipe, source=source)
    gatecli.write(network, "closed.safetensors")
    told = ["--max-drop", 0, "--data", data.spec, "--arch", "networks:own"]
    done = run("calibrate", "closed.safetensors", *told)
    assert "of the gates as they were; " in done.err and "note: all gates open reach" in done.err


@pytest.mark.parametrize("target", ["120", "-1", "nan", "inf"])
def test_targets_that_are_none(here: Path, target: str) -> None:
    refused(
        ["calibrate", "ind.safetensors", "--target-acc", target, "--data", "npz:data.npz"],
        "--target-acc",
        "between 0 and 100",
        target,
    )


def test_bad_input(here: Path) -> None:
    refused("calibrate ind.safetensors --target-acc 10", "--data")
    refused("calibrate --target-acc 10", "no current checkpoint")
    refused(
        f"calibrate r20.pt --target-acc 10 --data npz:data.npz --input-size {SIDE}",
        "r20.pt",
        "no gates",
        "attach",
    )
    refused(
        "calibrate ind.safetensors --target-acc 10 --data npz:data.npz --out ind.safetensors",
        "never overwrites",
    )
    refused(
        "calibrate ind.safetensors --target-acc 10 --data npz:data.npz --out data.npz",
        "data.npz",
        "--force",
    )
    refused(
        "calibrate ind.safetensors --target-acc 10 --data npz:data.npz --refine -1", "refine", "-1"
    )
    refused("calibrate ind.safetensors --target-acc 10 --data npz:data.npz --batch-size 0", "0")
    refused("calibrate ind.safetensors", "--target-acc", "--max-drop", "neither")
    refused(
        "calibrate ind.safetensors --target-acc 10 --max-drop 1",
        "--target-acc",
        "--max-drop",
        "both",
    )
    refused("calibrate ind.safetensors --max-drop 101", "--max-drop", "101")
    refused(
        "calibrate ind.safetensors --max-gmacs 1 --reuse", "--max-gmacs or --max-ms", "for exits"
    )
    refused("calibrate ind.safetensors --max-gmacs 1 --max-drop 1", "--max-ms, but got several")
    refused("calibrate ind.safetensors --max-gmacs nan", "--max-gmacs to be a number")
    refused("calibrate ind.safetensors --max-gmacs 1 --cost latency", "expected --max-ms")
    refused("calibrate ind.safetensors --max-drop 1 --cost speed", "macs, latency, but got `speed`")
    refused("calibrate ind.safetensors --max-drop 1 --runtime native", "expected --max-ms")
    assert run("calibrate", "ind.safetensors", "--target-acc", "much").code == 2


def test_library_refuses(tmp_path: Path) -> None:
    network = gated("ind", 0)
    data = labelled(network, tmp_path / "data.npz", 0)
    plain = CASES["own"].network()
    for error, words, do in (
        (SettingError, "between 0 and 100", lambda: calibrate(network, data, target_acc=math.nan)),
        (SettingError, "candidates", lambda: calibrate(network, data, target_acc=1, candidates=0)),
        (TrainingError, "no gates", lambda: calibrate(plain, data, target_acc=1)),
    ):
        with pytest.raises(error, match=words):
            do()
    network.recipe = gated("ind", 0).recipe  # its normalisation is not known
    with pytest.raises(DataError, match="normalisation"):
        calibrate(network, data, target_acc=1)
    assert issubclass(DataError, GatecliError)
