"""A training that is stopped anywhere, in any way, goes on to the same bits."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
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
    refused,
    run,
    same,
    save_npz,
    save_source,
)
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from gatecli import checkpoint
from gatecli.data import DataSet
from gatecli.training import Run, loop
from gatecli.training.loop import Loop

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])
STEPS, EPOCHS = 3, 2  # steps an epoch
RUN = Path(".gatecli/runs/gated.tuned")
STATE = RUN / "state.safetensors"


class Crash(BaseException):
    """What no handler catches, as a kill."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gated checkpoints and data.

    `gated`: every epoch's rate is low enough, so one is the best; `steep`: none is.
    """
    folder = tmp_path_factory.mktemp("shelf")
    save_npz(folder / "data.npz", train=32 * STEPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_source(folder / "r20.pt")
        attach = ["attach", "r20.pt", "--input-size", SIDE, "--set", "gate_lr=2"]
        call(
            *attach,
            "--method",
            "aig-perbatch",
            "--set",
            "target_rate=1",
            "--out",
            "gated.safetensors",
        )
        call(
            *attach,
            "--method",
            "ind-perbatch",
            "--set",
            "target_rate=0",
            "--out",
            "steep.safetensors",
        )
    return folder


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("gated", "steep"):
        shutil.copy(shelf / f"{name}.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def command(shelf: Path, *more: object, name: str = "gated") -> list[str]:
    options = [
        "--epochs",
        EPOCHS,
        "--batch-size",
        32,
        "--lr",
        0.05,
        "--schedule",
        "cosine",
        "--bn-batches",
        2,
    ]
    return [
        str(part)
        for part in [
            "finetune",
            f"{name}.safetensors",
            "--data",
            f"npz:{shelf}/data.npz",
            *options,
            *more,
        ]
    ]


Straight = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture(scope="module")
def straight(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """What the same command gives where nothing stops it.

    Its JSON, and the folder in which it ran.
    """
    known: dict[tuple[str, ...], tuple[dict[str, Any], Path]] = {}

    def made(*line: str) -> tuple[dict[str, Any], Path]:
        if line not in known:
            folder = tmp_path_factory.mktemp("straight")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setattr(loop, "LOG_EVERY", 1)
                for name in ("gated", "steep"):
                    shutil.copy(shelf / f"{name}.safetensors", folder)
                known[line] = call(*line), folder
        return known[line]

    return made


def equal(found: dict[str, Any], straight: Straight, line: list[str]) -> None:
    """The same JSON, output, log, best and last tensors as without the interruption, and nothing
    left over.
    """
    wanted, folder = straight(*line)
    assert {**found, "seconds": 0} == {**wanted, "seconds": 0}
    out = found["out"]
    assert same(out, folder / out) and current() == out
    runs = Path(".gatecli/runs", out.removesuffix(".safetensors"))
    assert sorted(file.name for file in runs.iterdir()) == sorted(
        file.name for file in (folder / runs).iterdir()
    )
    assert (runs / "log.jsonl").read_text() == (folder / runs / "log.jsonl").read_text()
    for file in runs.glob("*.safetensors"):
        assert file.read_bytes() == (folder / runs / file.name).read_bytes()


def fail_at(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    count: int,
    error: Callable[[], Any],
    before: bool = False,
) -> None:
    """Let the `count`th call of `owner.name` end, or `before` begin, with `error`.

    Then let the next ones be.
    """
    original = getattr(owner, name)
    calls = []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if before and len(calls) == count:
            error()
        result = original(*args, **kwargs)
        if not before and len(calls) == count:
            error()
        return result

    monkeypatch.setattr(owner, name, wrapped)


def crash() -> None:
    raise Crash


POINTS: dict[str, tuple[Any, str, int, bool]] = {
    "before the first step": (Loop, "_step", 1, True),
    "after the first step": (Loop, "_step", 1, False),
    "in the middle of an epoch": (Loop, "_step", STEPS + 2, False),
    "after the last step of an epoch": (Loop, "_step", STEPS, False),
    "after the last step": (Loop, "_step", EPOCHS * STEPS, False),
    "in the baseline": (Loop, "validate", 1, True),
    "in the first validation": (Loop, "validate", 2, True),
    "after the last validation": (Loop, "validate", EPOCHS + 1, False),
    "before the first state": (Run, "save", 1, True),
    "after the first state": (Run, "save", 1, False),
    "after a state": (Run, "save", 3, False),
    "after the best was saved": (Run, "save_best", 1, False),
    "after the last tensors were saved": (Run, "save_last", 1, False),
    "before a log line": (Run, "log", STEPS + 1, True),
    "after the line of an epoch": (Run, "log", STEPS + 1, False),
    "after the line of the last epoch": (Run, "log", EPOCHS * (STEPS + 1), False),
    "before BatchNorm's new statistics": (loop, "reestimate", 1, True),
    "after BatchNorm's new statistics": (loop, "reestimate", 1, False),
    "before the output": (checkpoint, "write", 1, True),
}


@pytest.mark.parametrize(
    ("point", "save_every"),
    [
        *((point, 0) for point in POINTS),
        ("in the middle of an epoch", 60),
        ("after the last step", 60),
        ("after the line of an epoch", 60),
    ],
)
def test_stopped_anywhere(
    here: Path,
    shelf: Path,
    straight: Straight,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    save_every: int,
) -> None:
    line = command(shelf, "--save-every", save_every)
    owner, name, count, before = POINTS[point]
    fail_at(monkeypatch, owner, name, count, crash, before)
    with pytest.raises(Crash):
        run(*line)
    assert not Path("gated.tuned.safetensors").exists()
    again = ["finetune", "--resume"] if STATE.exists() else line  # not even begun
    assert STATE.exists() == (point != "before the first state")
    equal(call(*again), straight, line)


@pytest.mark.parametrize(
    "options",
    [
        ["--precision", "bf16"],
        ["--set", "target_rate=.5", "--schedule", "step", "--momentum", "0"],
        ["--seed", "7", "--label-smoothing", ".1", "--augment", "crop-flip"],
        ["--set", "variable=exponential", "--set", "loss_form=const-quad"],
        ["--max-drop", "3", "--max-gmacs", ".0019"],
    ],
    ids=lambda options: " ".join(options),
)
def test_other_options_resume_as_well(
    here: Path, shelf: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    line = command(shelf, *options, "--save-every", 0)
    fail_at(monkeypatch, Loop, "_step", 5, crash)
    with pytest.raises(Crash):
        run(*line)
    equal(call("finetune", "--resume"), straight, line)


def test_without_a_best_epoch(
    here: Path, shelf: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = command(shelf, name="steep")
    assert "last" in straight(*line)[0]["chosen"]
    fail_at(monkeypatch, Loop, "_step", 5, crash)
    with pytest.raises(Crash):
        run(*line)
    equal(call("finetune", "--resume"), straight, line)


def test_stopped_again_and_again(here: Path, shelf: Path, straight: Straight) -> None:
    """Every second step is the last one before a crash."""
    line = command(shelf, "--save-every", 0)
    again = line
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
            fail_at(patch, Loop, "_step", 2, crash)
            run(*again)
        again = ["finetune", "--resume"]
    equal(call(*again), straight, line)


def on_folders(count: int, *options: str) -> list[str]:
    """finetune on folders of so many images a class and split, which it writes."""
    chance = np.random.RandomState(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            Path("images", split, name).mkdir(parents=True)
            for number in range(count):
                pixels = chance.randint(0, 255, (12, 14, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(f"images/{split}/{name}/{number}.png")
    save_source(Path("two.pt"), num_classes=2)
    how = ("--method", "ind-perbatch", "--input-size", SIDE)
    call("attach", "two.pt", *how, "--out", "two.safetensors")
    line = ["finetune", "two.safetensors", "--data", "imagefolder:images"]
    return [*line, "--epochs", "2", "--batch-size", "4", *options]


def test_image_files_in_workers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random crops, read by other processes.

    Batches after the resumption are those that would have come.
    """
    line = on_folders(6, "--workers", "1", "--save-every", "0", "--augment", "imagenet")
    call(*line, "--out", "straight.safetensors")
    fail_at(monkeypatch, Loop, "_step", 4, crash)
    with pytest.raises(Crash):
        run(*line)
    call("finetune", "--resume")
    assert same("two.tuned.safetensors", "straight.safetensors")


# --- kills from outside ---


STANDS_STILL = """
import signal, sys
from gatecli.cli.app import app
from gatecli.training import Run

def save(run, *args, original=Run.save, left=[3]):
    original(run, *args)
    left[0] -= 1
    if not left[0]:
        print("saved", flush=True)
        signal.pause()

Run.save = save
app()
"""


def test_a_killed_process(here: Path, shelf: Path, straight: Straight) -> None:
    """A process of its own, killed from outside once it has saved a few states.

    Its --resume runs in another one.
    """
    line = command(shelf, "--save-every", 0, "--threads", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", STANDS_STILL, *line],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    told = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    assert told == b"saved\n", process.communicate()[1].decode()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 20)  # as in that process
        found = call("finetune", "--resume")
    wanted, folder = straight(*line)
    assert {**found, "seconds": 0} == {**wanted, "seconds": 0} and same(
        found["out"], folder / found["out"]
    )
    assert [json.loads(row)["step"] for row in (RUN / "log.jsonl").read_text().splitlines()] == [
        STEPS * (epoch + 1) for epoch in range(EPOCHS)
    ]


MOMENTS: list[tuple[Any, str]] = [
    (Loop, "_step"),
    (Loop, "validate"),
    (Run, "log"),
    (tempfile, "mkstemp"),
    (os, "fsync"),
    (Path, "chmod"),
    (Path, "replace"),
    (Path, "unlink"),
]


def die_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Let the process kill itself, as nothing can be caught, before its `moment`th step,
    validation, log line or operation on a file.
    """
    left = [moment]

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return wrapped

    for owner, name in MOMENTS:
        patch.setattr(owner, name, dying(getattr(owner, name)))


def killed_at(moment: int, line: list[str]) -> bool:
    """Run a command in a process of its own; whether that was killed before it came to its end.

    It is a fork of a server that has torch already: forking this process would take over what
    autograd's threads have left here.
    """
    child = SERVER.Process(target=dies_at, args=(moment, line))
    child.start()
    child.join()
    return child.exitcode == -signal.SIGKILL


def dies_at(moment: int, line: list[str]) -> None:
    """What the process does: it knows nothing of this one's fixtures."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "LOG_EVERY", 1)
    torch.set_num_threads(1)
    die_at(patch, moment)
    run(*line)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(here: Path, shelf: Path, straight: Straight) -> None:
    """While they step, validate, or write; from 10 moments on, each attempt gets a step further."""
    line = command(shelf, "--save-every", 0)
    chance, kills = random.Random(1), 0
    while killed_at(chance.randint(20, 40), ["finetune", "--resume"] if STATE.exists() else line):
        kills += 1
        assert kills < 40, "no progress between the kills"
    assert kills >= 3 and Path("gated.tuned.safetensors").exists()
    folder = straight(*line)[1]
    assert same("gated.tuned.safetensors", folder / "gated.tuned.safetensors")
    assert (RUN / "log.jsonl").read_text() == (folder / RUN / "log.jsonl").read_text()
    assert (RUN / "best.safetensors").read_bytes() == (
        folder / RUN / "best.safetensors"
    ).read_bytes()


# --- Ctrl-C and SIGTERM ---


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


SIGNALLED: dict[str, tuple[Any, str, int]] = {
    "a step": (Loop, "_step", 4),
    "the baseline": (Loop, "validate", 1),
    "a validation": (Loop, "validate", 3),
    "saving": (Run, "save", 2),
    "the best": (Run, "save_best", 1),
    "BatchNorm's new statistics": (loop, "reestimate", 1),
}


@pytest.mark.parametrize(
    ("at", "number"), [*((at, signal.SIGINT) for at in SIGNALLED), ("a step", signal.SIGTERM)]
)
def test_signals(
    here: Path,
    shelf: Path,
    straight: Straight,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    number: int,
) -> None:
    line = command(shelf)
    owner, name, count = SIGNALLED[at]
    fail_at(monkeypatch, owner, name, count, send(number), before=True)
    done = run(*line)
    assert (
        done.code == 130
        and done.last.startswith("error: interrupted")
        and "gatecli finetune --resume" in done.last
    ), done.err
    assert "stopping after this step" in done.err
    assert STATE.exists() and not Path("gated.tuned.safetensors").exists()
    equal(call("finetune", "--resume"), straight, line)


def test_a_signal_keeps_the_step_it_came_in(
    here: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a signal, no step is lost, however rarely states are saved."""
    fail_at(monkeypatch, Loop, "_step", 5, send(signal.SIGINT), before=True)
    assert f"step 5 of {EPOCHS * STEPS}" in run(*command(shelf, "--save-every", 1000)).last
    with safe_open(STATE, "pt") as file:
        assert json.loads(file.metadata()["position"])["step"] == 5


def test_two_signals_stop_at_once(
    here: Path, shelf: Path, straight: Straight, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = command(shelf)

    def twice() -> None:
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    fail_at(monkeypatch, Loop, "_step", 5, twice, before=True)
    done = run(*line)
    assert (
        done.code == 130
        and "stopped at once" in done.last
        and "gatecli finetune --resume" in done.last
    )
    equal(call("finetune", "--resume"), straight, line)


def test_a_signal_before_the_training(
    here: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, checkpoint, "read", 1, send(signal.SIGTERM))
    done = run(*command(shelf))
    assert done.code == 130 and done.last == "error: interrupted; nothing was written"
    assert not RUN.exists()


@pytest.mark.parametrize(
    "line", ["eval gated.safetensors", "prune gated.safetensors", "profile gated.safetensors"]
)
def test_signals_at_other_commands(
    here: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    from gatecli.data.arrays import ArraySplit

    fail_at(monkeypatch, ArraySplit, "read", 1, send(signal.SIGINT))
    line += f" --data npz:{shelf}/data.npz"
    assert refused(line, "interrupted", code=130)


def test_handlers_are_given_back(here: Path, shelf: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run("inspect", "gated.safetensors")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --- what --resume restores, refuses and needs ---


@pytest.fixture(scope="module")
def a_stopped_run(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder, line = (
        tmp_path_factory.mktemp("stopped"),
        command(shelf, "--threads", 1, "--set", "loss_weight=2", "--save-every", 0),
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.chdir(folder)
        patch.setattr(loop, "LOG_EVERY", 1)
        shutil.copy(shelf / "gated.safetensors", folder)
        fail_at(patch, Loop, "_step", 5, crash)
        run(*line)
    return folder, line


@pytest.fixture
def stopped(here: Path, a_stopped_run: tuple[Path, list[str]]) -> list[str]:
    """The working folder has a run that was stopped at its fifth step.

    The command that began it.
    """
    shutil.copytree(a_stopped_run[0] / ".gatecli", ".gatecli")
    return a_stopped_run[1]


def test_equal_options_are_accepted(stopped: list[str], straight: Straight) -> None:
    equal(call(*stopped, "--resume"), straight, stopped)


def test_options_that_came_later_are_what_they_were(stopped: list[str], straight: Straight) -> None:
    """A state of before has no word of them: it goes on as it did, and in no other way."""
    later = ("bn_batch_size", "bn_gates", "keep")
    about(lambda said: [said["options"].pop(name) for name in later])
    refused("finetune --resume --bn-gates decided", "--bn-gates was sampled, not decided")
    refused("finetune --resume --bn-batch-size 9", "--bn-batch-size was None, not 9")
    equal(call("finetune", "--resume"), straight, stopped)


CONFLICTS = {
    "--epochs 9": "--epochs",
    "--lr .1": "--lr",
    "--batch-size 64": "--batch-size",
    "--seed 1": "--seed",
    "--threads 2": "--threads",
    "--set loss_weight=3": "--set",
    "--schedule step": "--schedule",
    "--data digits": "--data",
    "--out other.safetensors": "--out",
    "--augment none": "--augment",
    "--precision bf16": "--precision",
    "--input-size 16": "--input-size",
    "--mean .5": "--mean",
    "--weight-decay 1e-3": "--weight-decay",
    "--momentum .8": "--momentum",
    "--label-smoothing .1": "--label-smoothing",
    "--bn-batches 3": "--bn-batches",
    "--device cpu": "--device",
    "--save-every 9": "--save-every",
    "--workers 1": "--workers",
    "steep.safetensors": "checkpoint",
    "--arch cifar:resnet20": "--arch",
}


def test_other_options_are_refused(stopped: list[str]) -> None:
    before = STATE.read_bytes()
    for options, name in CONFLICTS.items():
        refused(f"finetune --resume {options}", f"{name} was", "without --resume")
    assert STATE.read_bytes() == before


def test_threads_are_restored(stopped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    seen = []
    fail_at(monkeypatch, Loop, "_step", 1, lambda: seen.append(torch.get_num_threads()))
    call("finetune", "--resume")
    assert seen == [1]


def test_nothing_to_resume(here: Path, shelf: Path) -> None:
    refused("finetune --resume", "no unfinished run")
    call(*command(shelf, "--epochs", 1))
    refused("finetune --resume", "no unfinished run")
    assert not STATE.exists()


def test_the_run_that_stopped_last_goes_on(stopped: list[str], shelf: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        fail_at(patch, Loop, "_step", 2, crash)
        run(*command(shelf, "--save-every", 0, name="steep"))
    assert call("finetune", "--resume")["out"] == "steep.tuned.safetensors"
    assert call("finetune", "--resume")["out"] == "gated.tuned.safetensors"
    refused("finetune --resume", "no unfinished run")


def test_a_new_run_replaces_an_unfinished_one(stopped: list[str], straight: Straight) -> None:
    equal(call(*stopped), straight, stopped)
    refused("finetune --resume", "no unfinished run")


def test_the_input_is_another_file(stopped: list[str]) -> None:
    edit(
        Path("gated.safetensors"),
        Path("gated.safetensors"),
        tensors=lambda held: held["fc.bias"].add_(1),
    )
    refused("finetune --resume", "gated.safetensors", "SHA-256")
    Path("gated.safetensors").unlink()
    refused("finetune --resume", "gated.safetensors", "does not exist")


def test_an_output_that_has_come_since(stopped: list[str]) -> None:
    shutil.copy("steep.safetensors", "gated.tuned.safetensors")
    refused("finetune --resume", "gated.tuned.safetensors", "--force")
    assert call("finetune", "--resume", "--force")["out"] == "gated.tuned.safetensors"


def test_killed_between_the_output_and_the_end(here: Path, shelf: Path, straight: Straight) -> None:
    line = command(shelf)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        fail_at(patch, Run, "finish", 1, crash, before=True)
        run(*line)
    refused("finetune --resume", "gated.tuned.safetensors", "--force")
    equal(call("finetune", "--resume", "--force"), straight, line)


def state(change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> None:
    with safe_open(STATE, "pt") as file:
        tensors, metadata = (
            {name: file.get_tensor(name) for name in file.keys()},
            dict(file.metadata()),
        )
    change(tensors, metadata)
    save_file(tensors, STATE, metadata)


def about(change: Callable[[dict[str, Any]], Any]) -> None:
    def inside(_: Any, metadata: dict[str, str]) -> None:
        said = json.loads(metadata["about"])
        change(said)
        metadata["about"] = json.dumps(said)

    state(inside)


DAMAGES: dict[str, Callable[[], Any]] = {
    "cut": lambda: STATE.write_bytes(STATE.read_bytes()[:-1000]),
    "empty": lambda: STATE.write_bytes(b""),
    "no state": lambda: save_file({"x": torch.zeros(1)}, STATE),
    "another format": lambda: state(lambda _, metadata: metadata.update(format="0")),
    "no position": lambda: state(lambda _, metadata: metadata.pop("position")),
    "odd position": lambda: state(lambda _, metadata: metadata.update(position='{"stepp": 3}')),
    "broken JSON": lambda: state(lambda _, metadata: metadata.update(about="{")),
    "no options": lambda: about(lambda said: said.pop("options")),
    "unknown option": lambda: about(lambda said: said["options"].update(nope=1)),
    "a tensor less": lambda: state(lambda tensors, _: tensors.pop("model.fc.bias")),
    "a tensor of another shape": lambda: state(
        lambda tensors, _: tensors.update({"model.fc.bias": torch.zeros(3)})
    ),
    "momentum of another shape": lambda: state(
        lambda tensors, _: tensors.update({"momentum.fc.bias": torch.zeros(3)})
    ),
    "no best": lambda: (RUN / "best.safetensors").unlink(),
    "best cut": lambda: (RUN / "best.safetensors").write_bytes(b"x" * 100),
    "odd log": lambda: (RUN / "log.jsonl").write_text('{"what": 3}\n'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_states_that_are_of_no_use(stopped: list[str], damage: str) -> None:
    DAMAGES[damage]()
    refused("finetune --resume", ".gatecli/runs/gated.tuned/", "without --resume")


@pytest.mark.parametrize("name", ["exp_avg.fc.bias", "momentum.conv9.weight"])
def test_a_state_of_another_optimizer(stopped: list[str], name: str) -> None:
    state(lambda tensors, _: tensors.update({name: torch.zeros(10)}))
    refused("finetune --resume", "SGD", f"got `{name}`", "another optimizer", "without --resume")


def test_a_log_line_that_was_cut_off(stopped: list[str], straight: Straight) -> None:
    with (RUN / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "epo')
    equal(call("finetune", "--resume"), straight, stopped)


# --- a state file is somebody's word, and no code is run on it ---


def a_module(name: str, text: str) -> None:
    Path(f"{name}.py").write_text(
        f"import pathlib\npathlib.Path('imported_{name}').mkdir(exist_ok=True)\n{text}"
    )
    sys.modules.pop(name, None)


def forget(name: str) -> None:
    sys.modules.pop(name, None)
    Path(f"imported_{name}").rmdir()


def test_callables_are_named_again(here: Path, shelf: Path) -> None:
    a_module(
        "mynet",
        "from gatecli.architectures.cifar import CifarResNet\ndef net():\n    return"
        " CifarResNet(20)\n",
    )
    a_module(
        "mydata",
        f"import numpy\ndef images():\n    data = numpy.load('{shelf}/data.npz')\n    return"
        " {name: (data[name + '_images'], data[name + '_labels']) for name in ('train',"
        " 'val')}\n",
    )
    save_source(Path("mine.pt"))
    call(
        "attach",
        "mine.pt",
        "--arch",
        "mynet:net",
        "--method",
        "ind-perbatch",
        "--input-size",
        SIDE,
        "--out",
        "gated.safetensors",
        "--force",
    )
    line = [
        "finetune",
        "--arch",
        "mynet:net",
        "--data",
        "mydata:images",
        "--epochs",
        "1",
        "--batch-size",
        "32",
    ]
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, Loop, "_step", 2, send(signal.SIGINT))
        done = run(*line)
    way = "gatecli finetune --resume --arch mynet:net --data mydata:images"
    assert done.last.endswith(way), done.err
    forget("mynet")
    forget("mydata")
    refused("finetune --resume", "gated.safetensors", "--arch mynet:net")
    assert not Path("imported_mynet").exists()
    refused("finetune --resume --arch mynet:net", "mydata:images", "--data")
    assert not Path("imported_mydata").exists()
    refused("finetune --resume --arch os:system --data mydata:images", "--arch was mynet:net")
    assert call(*way.split()[1:])["epochs"] == 1


def test_a_pickle_is_not_trusted_on_a_state_s_word(stopped: list[str]) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, ("pwned",)

    from gatecli.checkpoint.formats import file_sha256

    torch.save({"state_dict": Evil()}, "evil.pt")
    digest = file_sha256("evil.pt")

    def change(said: dict[str, Any]) -> None:
        said.update(checkpoint="evil.pt", sha256=digest)
        said["reading"].update(trust_pickle=True)

    about(change)
    refused("finetune --resume", "evil.pt", "--trust-pickle")
    assert not Path("pwned").exists()


OUTSIDE = {
    "elsewhere": "../precious.safetensors",
    "no checkpoint's name": "train.py",
    "hidden": ".git/hooks/x.safetensors",
    "the run's own": ".gatecli/runs/gated.tuned/best.safetensors",
    "up and down": "x/../../precious.safetensors",
    "by a link": "link/precious.safetensors",
    "nowhere": "",
    "a folder": ".",
    "in no file system": "a\0b.safetensors",
}


@pytest.mark.parametrize("out", OUTSIDE.values(), ids=OUTSIDE)
def test_a_state_names_an_output_outside(stopped: list[str], out: str) -> None:
    """Neither its word nor --force is enough."""
    Path("link").symlink_to("..")
    for folder in (".git/hooks", "x"):
        Path(folder).mkdir(parents=True)
    precious = [Path("../precious.safetensors"), Path("train.py"), RUN / "best.safetensors"]
    for path in precious[:2]:
        path.write_bytes(b"precious")
    held = [path.read_bytes() for path in precious]
    about(lambda said: said.update(out=out))
    for options in ([], ["--force"]):
        refused(["finetune", "--resume", *options])
    refused("finetune --resume --force --out other.safetensors")
    assert [path.read_bytes() for path in precious] == held
    precious[0].unlink()


def test_an_output_outside_is_named_again(stopped: list[str], tmp_path: Path) -> None:
    """Then it is the user's word, and what exists is refused as ever."""
    out = tmp_path.parent / f"{tmp_path.name}-outside.safetensors"
    about(lambda said: said.update(out=str(out)))
    refused("finetune --resume", str(out), "a state's word", f"--out {out}")
    out.write_bytes(b"precious")
    refused(f"finetune --resume --out {out}", "exists already")
    assert out.read_bytes() == b"precious"
    out.unlink()
    assert call("finetune", "--resume", "--out", out)["out"] == str(out)
    out.unlink()


def test_force_is_the_command_line_s_alone(here: Path, shelf: Path) -> None:
    """A run that was begun with --force replaces nothing when it is resumed without."""
    shutil.copy("steep.safetensors", "gated.tuned.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, Loop, "_step", 2, send(signal.SIGINT))
        done = run(*command(shelf, "--force"))
    assert done.last.endswith("gatecli finetune --resume --force"), done.last
    before = Path("gated.tuned.safetensors").read_bytes()
    refused("finetune --resume", "gated.tuned.safetensors", "exists already", "--force")
    about(lambda said: said["options"].update(force=True))
    refused("finetune --resume", "without --resume")
    assert Path("gated.tuned.safetensors").read_bytes() == before


def test_force_replaces_checkpoints_alone(stopped: list[str]) -> None:
    """What the state calls its output is somebody's work.

    --force without --out is no leave to replace it.
    """
    Path("gated.tuned.safetensors").write_bytes(b"my thesis")
    refused("finetune --resume --force", "gated.tuned.safetensors", "--out")
    assert (
        call("finetune", "--resume", "--force", "--out", "gated.tuned.safetensors")["epochs"]
        == EPOCHS
    )


@pytest.mark.parametrize("out", ["sub/mine.safetensors", "../mine.safetensors", "mine.bin"])
def test_an_output_named_at_the_beginning(here: Path, shelf: Path, out: str) -> None:
    """The way to go on that is printed is the way."""
    Path("sub").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, Loop, "_step", 2, send(signal.SIGINT))
        done = run(*command(shelf, "--out", out))
    way = done.last.partition("gatecli ")[2].split()
    assert way == [
        "finetune",
        "--resume",
        *([] if out.startswith("sub") else ["--out", out]),
    ], done.last
    assert call(*way)["out"] == out and Path(out).exists()
    Path(out).unlink()


@pytest.mark.parametrize(
    "folder", ["../board", "/tmp/../tmp/board-of-a-state", ".git/board", "link/board"]
)
def test_a_state_names_a_board_outside(stopped: list[str], folder: str) -> None:
    Path("link").symlink_to("..")
    about(lambda said: said.update(tensorboard=folder))
    refused("finetune --resume", "a state's word", "--tensorboard")
    assert not Path(folder).exists()
    call("finetune", "--resume", "--tensorboard", "here")
    assert list(Path("here").iterdir())


@pytest.mark.parametrize("name", ["checkpoint", "teacher"])
def test_pickles_are_named_again(stopped: list[str], name: str) -> None:
    """--trust-pickle trusts what the user names, not what a state names."""

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, ("pwned",)

    from gatecli.checkpoint.formats import file_sha256

    torch.save({"state_dict": Evil()}, "evil.pt")
    digest = file_sha256("evil.pt")
    about(
        lambda said: said.update(
            {name: "evil.pt", {"checkpoint": "sha256"}.get(name, "teacher_sha256"): digest}
        )
    )
    refused("finetune --resume --trust-pickle", "evil.pt", "a state's word")
    assert not Path("pwned").exists()


def test_a_callable_s_arguments_are_named_again(stopped: list[str]) -> None:
    a_module("mynet", "def net(where='.'):\n    pathlib.Path(where).mkdir()\n")
    about(lambda said: said["reading"].update(arch="mynet:net", arch_arg=["where=pwned"]))
    refused("finetune --resume --arch mynet:net", "where=pwned", "--arch-arg")
    refused("finetune --resume --arch mynet:net --arch-arg where=other", "--arch-arg was")
    assert not Path("pwned").exists() and not Path("imported_mynet").exists()


def test_a_state_downloads_nothing(stopped: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    about(lambda said: said.update(data="cifar10:nowhere"))
    refused("finetune --resume", "cifar10")
    about(lambda said: said.update(data=None, checkpoint="torchvision:resnet18"))
    refused("finetune --resume", "torchvision:resnet18", "does not exist")


ODD: dict[str, Any] = {
    "checkpoint": [None, 3, ["x"]],
    "out": [None, 3],
    "data": [3, {}],
    "settings": [None, [], {"target_rate": 1}],
    "options": [None, {"epochs": "many"}, {"epochs": 2.5}, {"lr": True}, {"workers": 10**6}],
    "threads": [0, -1, 10**6, "1", True],
    "device": [None, "cuda:x", 3],
    "reading": [None, {}, {"arch": None}],
    "teacher": [3, "x.safetensors"],
    "tensorboard": [3],
    "track": [None, 3, "wandb", [3], ["unheard"]],
    "samples": [None, {"train": 3}],
    "sha256": [None, 3],
    "else": [1],
}


@pytest.mark.parametrize("name", ODD)
def test_a_state_s_values_of_other_types(stopped: list[str], name: str) -> None:
    before = STATE.read_bytes()
    for value in ODD[name]:
        STATE.write_bytes(before)
        about(lambda said, value=value: said.update({name: value}))
        refused("finetune --resume")


@pytest.mark.parametrize(
    "name", ["arch", "arch_arg", "input_size", "mean", "std", "leaf", "trust_pickle"]
)
def test_a_state_s_way_of_reading(stopped: list[str], name: str) -> None:
    before = STATE.read_bytes()
    for value in (
        3,
        {},
        [3],
        "" if name in ("arch_arg", "leaf", "trust_pickle") else ["x"],
        10**400,
    ):
        STATE.write_bytes(before)
        about(lambda said, value=value: said["reading"].update({name: value}))
        refused("finetune --resume", "damaged", "without --resume")


ODD_POSITIONS: dict[str, list[Any]] = {
    "step": ["x", -1, 10**9, None],
    "closed": [-1, 10**9, "x"],
    "sums": [
        None,
        {"loss": 1.0},
        {"loss": "x"},
        {"batches": 0.0, "loss": 1.0, "top1": 1.0},
        {"batches": 1.0, "loss": 1.0},
    ],
    "history": [None, 3, [], [{}], [{"val_top1": 1.0}], [float("nan")]],
    "best": [7, -1, "x"],
    "targets": [None, {}, {"x": 1.0}, {"layer1.0": "x"}],
    "goal": [None, 3, {"x": "y"}],
    "baseline": ["x", {"x": 1}, float("inf")],
}


@pytest.mark.parametrize("name", ODD_POSITIONS)
def test_a_state_s_position(stopped: list[str], name: str) -> None:
    before, log = STATE.read_bytes(), (RUN / "log.jsonl").read_bytes()
    for value in ODD_POSITIONS[name]:
        STATE.write_bytes(before)
        (RUN / "log.jsonl").write_bytes(log)
        state(
            lambda _, metadata, value=value: metadata.update(
                position=json.dumps({**json.loads(metadata["position"]), name: value})
            )
        )
        refused("finetune --resume", "state.safetensors is damaged", "without --resume")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_state_that_is_no_file(here: Path) -> None:
    RUN.mkdir(parents=True)
    os.mkfifo(STATE)
    refused("finetune --resume", "no unfinished run")


# --- the data is another ---


def other_npz(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    arrays = dict(np.load(file))
    change(arrays)
    np.savez(file, **arrays)


def cut(arrays: dict[str, Any], split: str) -> None:
    for part in ("images", "labels"):
        arrays[f"{split}_{part}"] = arrays[f"{split}_{part}"][:-1]


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a train image less": lambda arrays: cut(arrays, "train"),
    "a val image less": lambda arrays: cut(arrays, "val"),
    "a pixel": lambda arrays: arrays["train_images"].__setitem__((5, 0, 0), 77),
    "a label": lambda arrays: arrays["val_labels"].__setitem__((5, 0), 3),
    "another order": lambda arrays: arrays.update(
        train_images=arrays["train_images"][::-1], train_labels=arrays["train_labels"][::-1]
    ),
}


def interrupted(line: list[str]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, Loop, "_step", 2, send(signal.SIGINT))
        done = run(*line)
    assert done.code == 130, done.err
    return done.last.partition("gatecli ")[2].split()


@pytest.mark.parametrize("change", CHANGES)
def test_another_npz(here: Path, shelf: Path, change: str) -> None:
    shutil.copy(shelf / "data.npz", "mine.npz")
    line = command(shelf)
    again = interrupted([word.replace(f"{shelf}/data.npz", "mine.npz") for word in line])
    other_npz(Path("mine.npz"), CHANGES[change])
    refused(
        again,
        "mine.npz",
        "has changed since the run began",
        "val" if "val" in change or "label" in change else "train",
        "without --resume",
    )
    shutil.copy(shelf / "data.npz", "mine.npz")
    call(*again)


def test_the_test_split_may_change(here: Path, shelf: Path) -> None:
    shutil.copy(shelf / "data.npz", "mine.npz")
    again = interrupted([word.replace(f"{shelf}/data.npz", "mine.npz") for word in command(shelf)])
    other_npz(Path("mine.npz"), lambda arrays: cut(arrays, "test"))
    call(*again)


def test_another_image_folder(here: Path) -> None:
    again = interrupted(on_folders(4))
    for old, new in (("train/ant/0.png", "train/ant/new.png"), ("val/bee/0.png", "val/ant/9.png")):
        Path("images", old).rename(Path("images", new))
        refused(again, "has changed since the run began", old.partition("/")[0])
        Path("images", new).rename(Path("images", old))
    Image.new("RGB", (9, 9)).save("images/train/bee/9.png")
    refused(again, "then 8 images, now 9 images")
    Path("images/train/bee/9.png").unlink()
    call(*again)


def test_a_function_s_data(here: Path, shelf: Path) -> None:
    """Its images may be made anew each time; its labels and their count are looked at."""
    text = (
        "import numpy\nfrom {where} import LEFT\ndef images():\n    data ="
        " numpy.load('{shelf}/data.npz')\n    return {{name: (numpy.random.randint(0, 255,"
        " data[name + '_images'][LEFT:].shape).astype('uint8'), data[name + '_labels'][LEFT:]) for"
        " name in ('train', 'val')}}\n"
    )
    a_module("madeleft", "LEFT = 0\n")
    a_module("madedata", text.format(where="madeleft", shelf=shelf))
    again = interrupted(
        [
            "finetune",
            "gated.safetensors",
            "--data",
            "madedata:images",
            "--epochs",
            "2",
            "--batch-size",
            "32",
        ]
    )
    sys.modules["madedata"].LEFT = 10
    refused(again, "madedata:images", "has changed since the run began")
    sys.modules["madedata"].LEFT = 0
    call(*again)


# --- the library ---


def test_a_library_run_resumes(here: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gatecli

    def training(folder: str) -> dict[str, torch.Tensor]:
        network = gatecli.load("gated.safetensors")
        data: DataSet = gatecli.load_data(f"npz:{shelf}/data.npz")
        gatecli.fit(network, data)
        options = gatecli.TrainOptions(epochs=2, batch_size=32, lr=0.05, save_every=0)
        gatecli.finetune(network, data, options, run=Run(Path(folder), {}))
        return dict(network.state_dict())

    Path("one").mkdir()
    Path("two").mkdir()
    wanted = training("one")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        fail_at(patch, Loop, "_step", 4, crash)
        training("two")
    found = training("two")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_best_and_last_are_kept(here: Path, shelf: Path) -> None:
    found = call(*command(shelf))
    assert sorted(file.name for file in RUN.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "log.jsonl",
    ]
    rows = [json.loads(line) for line in (RUN / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, EPOCHS * STEPS + 1))
    assert [row for row in rows if "val_top1" in row] == found["history"]
    best = max(found["history"], key=lambda row: row["val_top1"])
    assert f"epoch {best['epoch']}," in found["chosen"]
    with safe_open(RUN / "best.safetensors", "pt") as file:
        assert set(file.keys()) == set(contents(found["out"])[0])
