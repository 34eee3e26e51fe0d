"""gatecli replay: a checkpoint's steps done again on another source."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, contents, edit, refused, run, same, save_npz, save_source
from kills import Crash, watch

import gatecli
from gatecli.training.loop import Loop

SIZE = ["--input-size", SIDE]
TRAIN = ["--data", "npz:data.npz", "--epochs", 1, "--batch-size", 32, "--lr", 0.02]
REMOVED = ["layer1.1", "layer3.2"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, and `done`: the first one attached, tuned, pruned, and tuned again."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_npz(Path("data.npz"), train=64)
        save_source(Path("r20.pt"))
        save_source(Path("other.pt"), seed=1)
        save_source(Path("seven.pt"), seed=1, num_classes=7)
        save_source(Path("r32.pt"), "cifar:resnet32")
        call("attach", "r20.pt", "--method", "ind-perbatch", *SIZE, "--out", "gated.safetensors")
        call("finetune", *TRAIN, "--set", "target_rate=0.9", "--out", "tuned.safetensors")
        edit(Path("tuned.safetensors"), Path("closed.safetensors"), close)
        call("prune", "closed.safetensors", "--out", "pruned.safetensors")
        call("finetune", "--train", "weights", *TRAIN, "--out", "done.safetensors")
    return folder


def close(tensors: dict[str, torch.Tensor]) -> None:
    for site in REMOVED:
        tensors[f"gates.{site}.logits"] = torch.tensor([[3.0, -3.0]])


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("r20", "other", "seven", "r32"):
        shutil.copy(shelf / f"{name}.pt", tmp_path)
    for name in ("done", "tuned", "gated"):
        shutil.copy(shelf / f"{name}.safetensors", tmp_path)
    (tmp_path / "data.npz").symlink_to(shelf / "data.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("source", [pytest.param("other", marks=pytest.mark.slow), "seven"])
def test_structure_alone(here: Path, source: str) -> None:
    """The other source with the same blocks left out; its number of classes is its own."""
    given = call("replay", "done.safetensors", "--on", f"{source}.pt")
    assert given["out"] == f"{source}.ind-perbatch.pruned.safetensors"
    whole = gatecli.load(f"{source}.pt", input_size=(SIDE, SIDE))
    smaller = gatecli.load(given["out"])
    gated = gatecli.attach(whole, "ind-perbatch").network
    images = torch.randn(4, 3, SIDE, SIDE)
    with torch.no_grad(), gatecli.force(gated, {site: [0] for site in REMOVED}):
        assert torch.allclose(gated(images), smaller(images), atol=1e-5)
    assert not any(site in name for site in REMOVED for name in smaller.state_dict())
    assert [step["op"] for step in given["steps"]] == ["attach", "finetune", "prune", "finetune"]
    assert [step["done"] for step in given["steps"]] == [True, False, True, False]
    assert given["steps"][1]["reason"] == "it takes data: say --data"
    recipe = contents(given["out"])[1]
    assert [step["op"] for step in recipe["steps"]] == ["attach", "prune"]
    assert recipe["source"]["file"] == f"{source}.pt"


def test_trainings_run_again_where_there_is_data(here: Path, shelf: Path) -> None:
    """On its own source and data a replay is the checkpoint itself, to the bit."""
    given = call("replay", "tuned.safetensors", "--on", "r20.pt", "--data", "npz:data.npz")
    assert given["out"] == "r20.ind-perbatch.tuned.safetensors"
    ours, theirs = contents(given["out"])[0], contents("tuned.safetensors")[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_killed_again_and_again(here: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    """Typed again it goes on, also within a training, and ends in the same file."""
    line = ["replay", "done.safetensors", "--on", "other.pt", "--data", "npz:data.npz"]
    left = [10**9]

    def told() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Crash

    watch(monkeypatch, told)
    straight = call(*line, "--out", "straight.safetensors")
    events = 10**9 - left[0]
    assert not any(Path(".gatecli/replay").iterdir())
    chance = random.Random(3)
    recalled = 0
    for _ in range(12):
        left[0] = chance.randint(2, events // 2)
        try:
            done = run(*line)
        except Crash:
            continue
        recalled = done.err.count("(done before)")
        break
    assert recalled >= 1 and done.code == 0
    assert same("other.ind-perbatch.tuned.pruned.tuned.safetensors", "straight.safetensors")
    assert [step["done"] for step in straight["steps"]] == [True] * 4


def test_stopped_it_says_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    original = Loop._step

    def stopping(self: Loop, *args: Any) -> None:
        original(self, *args)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Loop, "_step", stopping)
    done = run("replay", "tuned.safetensors", "--on", "other.pt", "--data", "npz:data.npz")
    assert done.code == 130 and done.err.count("error: ") == 1
    assert "step 2, finetune; go on with: the same command" in done.last
    assert not Path("other.ind-perbatch.tuned.safetensors").exists()
    monkeypatch.setattr(Loop, "_step", original)
    again = run("replay", "tuned.safetensors", "--on", "other.pt", "--data", "npz:data.npz")
    assert again.code == 0 and "step 1, attach   (done before)" in again.err


def test_thresholds_of_exits_are_chosen_again(here: Path) -> None:
    call("attach", "r20.pt", "--method", "dgate", *SIZE)
    call("finetune", *TRAIN)
    call("calibrate", "--max-drop", 100)
    last = call("calibrate", "--thresholds", "exit1=inf")["out"]
    again = ["--data", "npz:data.npz", "--out", "again.safetensors"]
    given = call("replay", last, "--on", "r20.pt", *again)
    assert [step["done"] for step in given["steps"]] == [True] * 4
    assert same(given["out"], last)


def test_gates_that_stay_begin_anew(here: Path) -> None:
    call("attach", "r20.pt", "--method", "aig-perbatch", *SIZE, "--exclude", "layer2.*")
    given = call("replay", "r20.aig-perbatch.safetensors", "--on", "other.pt")
    gated = gatecli.load(given["out"])
    assert sorted(gated.gated_by) == [
        f"layer{stage}.{each}" for stage in (1, 3) for each in range(3)
    ]
    images = torch.randn(4, 3, SIDE, SIDE)
    whole = gatecli.load("other.pt", input_size=(SIDE, SIDE))
    with torch.no_grad():
        assert torch.allclose(gated(images), whole(images), atol=1e-5)


def test_bad_input(here: Path) -> None:
    refused("replay done.safetensors --on r32.pt", "cifar:resnet20", "r32.pt is a cifar:resnet32")
    refused("replay done.safetensors --on gated.safetensors", "been through attach already")
    refused("replay r20.pt --on other.pt", "r20.pt carries no steps")
    refused("replay none.safetensors --on other.pt", "none.safetensors does not exist")
    refused("replay done.safetensors --on none.pt", "none.pt")
    refused("replay done.safetensors --on other.pt --out other.pt", "other.pt is the input")
    refused("replay done.safetensors --on other.pt --data npz:none.npz", "none.npz")
    assert run("replay", "done.safetensors").code == 2
    edit(Path("done.safetensors"), Path("a.safetensors"), recipe=elsewhere)
    refused(
        "replay a.safetensors --on other.pt", "about `layer9.9`, which this network does not have"
    )


def elsewhere(recipe: dict[str, object]) -> None:
    """Steps about a site that there is not."""
    recipe["steps"][0]["settings"]["sites"] = ["layer9.9"]  # type: ignore[index]
