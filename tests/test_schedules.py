"""How the learning rate goes through a training: milestones, warm-up, Nesterov's momentum."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import SIDE, call, contents, refused, run, save_npz, save_source

import gatecli
from gatecli.errors import SettingError
from gatecli.methods.schedules import learning_rate, warmed
from gatecli.training import loop
from gatecli.training.loop import Loop

STEPS = 3  # an epoch
FINETUNE = ["finetune", "x.gated.safetensors", "--data", "npz:data.npz", "--batch-size", "32"]
LEAN = ["--bn-batches", "0", "--out", "y.safetensors"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_npz(folder / "data.npz", train=32 * STEPS)
    save_source(folder / "x.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        attach = ["attach", "x.pt", "--method", "ind-perbatch", "--input-size", SIDE]
        call(*attach, "--set", "gate_lr=0.2", "--out", "x.gated.safetensors")
    return folder


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("data.npz", "x.gated.safetensors"):
        shutil.copy(shelf / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def logged() -> list[float]:
    """The weights' learning rate in each step of the run."""
    lines = Path(".gatecli/runs/y/log.jsonl").read_text().splitlines()
    return [row["lr"] for row in map(json.loads, lines) if "lr" in row]


# --- formulas ---


def test_milestones_are_told_as_shares() -> None:
    """350 epochs, x.1 before the epochs 150 and 250: the paper's CIFAR schedule."""
    shares = [150 / 350, 250 / 350]
    rates = [learning_rate("step", 0.1, epoch / 350, shares) for epoch in range(350)]
    assert rates == pytest.approx([0.1] * 150 + [0.01] * 100 + [0.001] * 100)


def test_a_rate_warms_up_in_a_line() -> None:
    rates = [warmed(0.1, step, 4) for step in range(6)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert [warmed(0.1, step, 1.5) for step in range(2)] == pytest.approx([0.1 / 1.5, 0.1])
    assert warmed(0.1, 0, 0) == 0.1


# --- finetune ---


def test_milestones_and_warmup_in_a_run(here: Path) -> None:
    options = ["--epochs", 4, "--milestones", "1,3", "--warmup", 0.5, "--nesterov", *LEAN]
    call(*FINETUNE, *options)
    first = [0.1 / 1.5, 0.1, 0.1]
    assert logged() == pytest.approx(first + [0.01] * 6 + [0.001] * 3)
    said = contents("y.safetensors")[1]["steps"][-1]["settings"]
    assert (said["milestones"], said["warmup"], said["nesterov"]) == ([1, 3], 0.5, True)


def test_warmup_goes_with_other_schedules(here: Path) -> None:
    call(*FINETUNE, "--epochs", 2, "--schedule", "constant", "--warmup", 2, *LEAN)
    assert logged() == pytest.approx([0.1 * (step + 1) / 6 for step in range(6)])


def test_nesterov_is_torch_s(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step taken is lr (gradient + momentum * buffer), the buffer as ever."""
    seen: list[dict[str, Any]] = []

    def step(optimizer: torch.optim.SGD, *_: object) -> None:
        seen.extend(optimizer.param_groups)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    for options, wanted in (([], False), (["--nesterov"], True)):
        seen.clear()
        call(*FINETUNE, "--epochs", 1, *options, *LEAN, "--force")
        assert seen and all(group["nesterov"] is wanted for group in seen)


def test_such_a_run_resumes_to_the_bit(here: Path) -> None:
    options = ["--epochs", 3, "--milestones", "1,2", "--warmup", 1.5, "--nesterov", *LEAN]
    line = [*FINETUNE, *options, "--threads", 1]
    call(*line)
    straight, rates = contents("y.safetensors")[0], logged()
    original, count = Loop._step, 0

    def stopping(self: Loop, *args: Any) -> None:
        nonlocal count
        original(self, *args)
        count += 1
        if count == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", stopping)
        assert run(*line, "--force").code == 130
    for other in ("--milestones 1", "--warmup 1"):
        refused(f"finetune --resume --force {other}", f"{other.split()[0]} was", "without --resume")
    call("finetune", "--resume", "--force")
    resumed = contents("y.safetensors")[0]
    assert logged() == rates
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


# --- bad input ---

WRONG: dict[str, list[str]] = {
    "--epochs 4 --milestones 2,4": ["to rise, each between 1 and 3 (of 4 epochs)", "got 2,4"],
    "--epochs 4 --milestones 0,2": ["between 1 and 3"],
    "--epochs 4 --milestones 3,2": ["to rise", "got 3,2"],
    "--epochs 4 --milestones 2,2": ["to rise", "got 2,2"],
    "--epochs 4 --milestones 1.5": ["whole numbers with commas between", "got `1.5`"],
    "--epochs 4 --milestones 1,,2": ["whole numbers", "got `1,,2`"],
    "--epochs 4 --milestones 2 --schedule cosine": ["--milestones to go with --schedule step"],
    "--epochs 4 --warmup 5": ["--warmup to be at most the 4 epochs, but got 5"],
    "--epochs 4 --warmup -1": ["--warmup to be at least 0"],
    "--epochs 4 --nesterov --momentum 0": ["--nesterov to go with a momentum"],
}


@pytest.mark.parametrize("options", WRONG)
def test_bad_schedules_are_refused(here: Path, options: str) -> None:
    refused([*FINETUNE, *options.split(), *LEAN], *WRONG[options])


def test_the_library_takes_numbers() -> None:
    assert gatecli.TrainOptions(epochs=9, milestones=(3, 6)).milestones == (3, 6)
    given: list[Any] = [[3, 6], "3,6"]
    for each in given:
        assert gatecli.TrainOptions(epochs=9, milestones=each).milestones == (3, 6)
    for wrong in ((1.5,), (True,), ("x",), ()):
        bad: Any = wrong
        with pytest.raises(SettingError, match="--milestones"):
            gatecli.TrainOptions(epochs=9, milestones=bad)
