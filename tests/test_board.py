"""finetune --tensorboard: what the log says, as TensorBoard reads it."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from commandline import SIDE, call, listing, refused, run, save_npz, save_source

from gatecli.tracking import base
from gatecli.tracking import scalars as names
from gatecli.training import loop

OPTIONS = ["--epochs", 2, "--batch-size", 32, "--lr", 0.05, "--bn-batches", 0]
STEPS = 3  # of an epoch


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_source(Path("r20.pt"))
        save_npz(Path("data.npz"), train=32 * STEPS)
        call(
            "attach",
            "r20.pt",
            "--method",
            "aig-perbatch",
            "--input-size",
            SIDE,
            "--out",
            "gated.safetensors",
        )
    return folder


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("gated.safetensors", "data.npz"):
        shutil.copy(shelf / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    return tmp_path


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value), in the order of the steps."""
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def logged(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The same of the run's own log."""
    found = defaultdict(list)
    for line in path.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        for name, tag in names.SCALARS.items():
            if name in row:
                found[tag].append((row["step"], pytest.approx(row[name], rel=1e-6)))
        for site, rate in row.get("rates", {}).items():
            found[f"rate/{site}"].append((row["step"], pytest.approx(rate, rel=1e-6)))
    return dict(found)


def test_scalars_are_those_of_the_log(here: Path) -> None:
    pytest.importorskip("tensorboard")
    call(
        "finetune",
        "gated.safetensors",
        "--data",
        "npz:data.npz",
        *OPTIONS,
        "--tensorboard",
        "logs/one",
    )
    found = scalars(Path("logs/one"))
    assert found == logged(Path(".gatecli/runs/gated.tuned/log.jsonl"))
    assert [step for step, _ in found["train/loss"]] == list(range(1, 2 * STEPS + 1)) and [
        step for step, _ in found["val/top1"]
    ] == [STEPS, 2 * STEPS]
    assert (
        set(names.SCALARS.values()) < set(found)
        and sum(tag.startswith("rate/") for tag in found) == 9
    )


def test_a_resumed_run_goes_on_with_the_steps(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that were logged after the last saved state come again, and show once."""
    pytest.importorskip("tensorboard")
    original, calls = loop.Loop._add, []

    def stop(self: loop.Loop, *given: Any) -> None:
        calls.append(None)
        if len(calls) == STEPS + 2:
            raise MemoryError  # nothing is saved: the state is that of the first epoch's end
        original(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_add", stop)
        assert (
            run(
                "finetune",
                "gated.safetensors",
                "--data",
                "npz:data.npz",
                *OPTIONS,
                "--tensorboard",
                "logs",
            ).code
            == 1
        )
    assert [step for step, _ in scalars(Path("logs"))["train/loss"]] == [*range(1, STEPS + 2)]
    call("finetune", "--resume")
    assert scalars(Path("logs")) == logged(Path(".gatecli/runs/gated.tuned/log.jsonl"))


def test_without_tensorboard(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr(base, "import_module", missing)
    refused(
        ["finetune", "gated.safetensors", "--data", "npz:data.npz", "--tensorboard", "logs"],
        "tensorboard",
        "pip install 'gatecli[report]'",
    )
    assert not Path("logs").exists() and not Path(".gatecli/runs").exists()


def test_a_folder_that_cannot_be(here: Path) -> None:
    pytest.importorskip("tensorboard")
    refused(
        [
            "finetune",
            "gated.safetensors",
            "--data",
            "npz:data.npz",
            *OPTIONS,
            "--tensorboard",
            "data.npz",
        ],
        "data.npz",
    )
    assert "data.npz" in listing()


def test_training_needs_no_tensorboard(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    call(
        "finetune",
        "gated.safetensors",
        "--data",
        "npz:data.npz",
        "--epochs",
        1,
        "--batch-size",
        32,
        "--bn-batches",
        0,
    )
