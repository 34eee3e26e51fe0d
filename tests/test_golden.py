"""Golden files: what an earlier version wrote is read with the same logits, decisions and numbers.

The files, and what they answered when they were made, lie in `golden/`; `golden/make.py` made them.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import call, contents, run, same
from golden import facts
from torch import Tensor

import gatecli

LIMIT = facts.LIMIT  # of the largest logit
LARGEST, ALL = 200_000, 4_000_000  # bytes: of one file, of all
EXPECTED: dict[str, dict[str, Any]] = json.loads((facts.HERE / "expected.json").read_text("utf-8"))
METHODS = (
    "aig-pergate", "aig-perbatch", "ind-pergate", "ind-perbatch", "dgate", "early-exit",
    "gaternet", "gateconnect", "cgnet",
)  # fmt: skip
every = pytest.mark.parametrize("name", sorted(EXPECTED))


def path_of(name: str) -> Path:
    return facts.HERE / f"{name}.safetensors"


@functools.cache
def arrays(name: str) -> dict[str, Tensor]:
    """The logits and decisions recorded for a file."""
    with np.load(facts.HERE / "logits.npz") as held:
        keys = ("logits", "forced", "decisions")
        return {key: torch.from_numpy(held[f"{name}.{key}"]) for key in keys}


@functools.cache
def loaded(name: str) -> gatecli.Network:
    """The network in a file, for tests that only look."""
    return facts.load(path_of(name))


def images(name: str) -> Tensor:
    return facts.images_for(loaded(name), facts.pool()[EXPECTED[name]["images"]])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the set ---


def test_every_method_is_there_attached_tuned_and_pruned() -> None:
    stages = ("attached", "tuned", "pruned")
    assert {f"{method}.{stage}" for method in METHODS for stage in stages} <= set(EXPECTED)
    stacks = {name for name in EXPECTED if name.startswith("stack-")}
    assert len({name.partition(".")[0] for name in stacks}) >= 3
    assert any("dgate" in name and name.endswith(".calibrated") for name in EXPECTED)


def test_files_are_small_and_each_has_its_answers() -> None:
    sizes = {path.stem: path.stat().st_size for path in facts.HERE.glob("*.safetensors")}
    assert set(sizes) == set(EXPECTED)
    assert max(sizes.values()) < LARGEST
    assert sum(sizes.values()) < ALL


@every
def test_a_file_is_as_it_was_made(name: str) -> None:
    """What was recorded is about these very bytes."""
    assert facts.sha256(path_of(name)) == EXPECTED[name]["sha256"]
    assert facts.steps_of(path_of(name)) == EXPECTED[name]["steps"]


@every
def test_what_load_has_counted_needs_no_counting_again(name: str) -> None:
    network = loaded(name).copy()
    costs, sites = dict(network.costs), dict(network.sites)
    network.recount()
    assert (network.costs, network.sites) == (costs, sites)


@pytest.mark.parametrize("method", METHODS)
def test_pruned_files_have_lost_something(method: str) -> None:
    assert EXPECTED[f"{method}.pruned"]["params"] < EXPECTED[f"{method}.tuned"]["params"]


def test_gates_of_all_habits_are_there() -> None:
    """Some units never run, some always, some at times; images leave at each exit."""
    sites = [units for said in EXPECTED.values() for units in said["rates"].values()]
    rates = [rate for units in sites for rate in units]
    assert min(rates) == 0
    assert max(rates) == 1
    assert sum(0 < rate < 1 for rate in rates) > 100
    assert {taken for said in EXPECTED.values() for taken in said["exits"]} == {0, 1, 2}


# --- each file ---


@every
def test_logits_are_the_same(name: str) -> None:
    found = facts.answers(loaded(name), images(name))
    assert facts.change(found.logits, arrays(name)["logits"]) <= LIMIT
    assert facts.change(found.forced, arrays(name)["forced"]) <= LIMIT


@every
def test_decisions_and_thresholds_are_the_same(name: str) -> None:
    """To the bit: the images recorded are those that no gate decides narrowly."""
    found, said = facts.answers(loaded(name), images(name)), EXPECTED[name]
    torch.testing.assert_close(found.decisions, arrays(name)["decisions"], rtol=0, atol=1e-6)
    assert found.exits.tolist() == said["exits"]
    assert facts.units_of(loaded(name)) == said["units"]
    assert facts.thresholds_of(loaded(name)) == said["thresholds"]


@every
def test_tensors_keep_names_and_values(name: str) -> None:
    held, found = contents(path_of(name))[0], loaded(name).state_dict()
    assert set(found) == set(held)
    assert all(torch.equal(found[key], value) for key, value in held.items())


@every
def test_inspect_says_the_same(name: str, folder: Path) -> None:
    """Parameters, MACs, what is expected by the recorded rates, and the gated sites."""
    found, said = facts.told(path_of(name)), EXPECTED[name]
    assert found.pop("macs_expected") == pytest.approx(said["macs_expected"], rel=1e-9)
    assert found == {key: said[key] for key in found}


@every
def test_written_again_it_is_the_same(name: str, folder: Path) -> None:
    again = folder / "again.safetensors"
    gatecli.write(loaded(name), again)
    assert same(again, path_of(name))
    found = facts.answers(facts.load(again), images(name))
    assert torch.equal(found.logits, facts.answers(loaded(name), images(name)).logits)


# --- through the command line ---


@pytest.mark.parametrize("name", ["stack-gaternet-dgate.pruned", "aig-perbatch.tuned"])
def test_commands_read_them(name: str, folder: Path) -> None:
    path, arch = path_of(name), EXPECTED[name]
    done = run("log", path)
    assert done.code == 0, done.err
    named = ("profile", path, "--arch", facts.arch_of(path), "--repeats", 3)
    rows = call(*named)["rows"]
    assert rows[-1]["macs_expected"] == pytest.approx(arch["macs_expected"], rel=1e-9)
    assert rows[-1]["params"] == arch["params"]
    assert rows[-1]["macs_dense"] == arch["macs_dense"]


@pytest.mark.parametrize(
    ("name", "form"), [("stack-ind-dgate.calibrated", "onnx"), ("ind-pergate.pruned", "weights")]
)
def test_they_are_exported(name: str, form: str, folder: Path) -> None:
    """Export compares the file's logits with the network's itself."""
    result = gatecli.export(loaded(name), folder / "net", form, images=images(name))
    assert result.images > 0
    assert result.max_difference <= 1e-4
