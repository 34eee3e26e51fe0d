"""Several processes on the command line: what is written and refused, and what a death costs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from campaigns.workers import ranks_of
from commandline import SIDE, call, contents, refused, run, save_npz, save_source, strict

from gatecli.cli import several
from gatecli.cli.interrupts import is_told_here
from gatecli.errors import SettingError
from gatecli.training import processes as training_processes
from gatecli.training.processes import processes

ROOT = Path(__file__).parents[1]
WITHIN = 30  # seconds in which a run ends once a worker has died; more on a busy machine
BUSY = 6
SEEN = ["gated.safetensors", "--data", "npz:data.npz", "--batch-size", "16"]
TRAIN = [*SEEN, "--bn-batches", "0"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_npz(folder / "data.npz", train=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_source(folder / "r20.pt")
        attach = ["attach", "r20.pt", "--input-size", SIDE, "--method", "ind-perbatch"]
        call(*attach, "--out", "gated.safetensors")
    return folder


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("gated.safetensors", "data.npz"):
        shutil.copy(shelf / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*args: object, **variables: str) -> subprocess.Popen[str]:
    """gatecli in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "gatecli", *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(*args: object, **variables: str) -> tuple[int, str, str]:
    process = start(*args, **variables)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_step(process: subprocess.Popen[str], state: Path) -> None:
    """Wait until a run has saved more than its beginning."""
    end = time.monotonic() + 200
    first = None
    while time.monotonic() < end and process.poll() is None:
        if state.exists():
            now = state.stat().st_mtime_ns
            first = first or now
            if now != first:
                return
        time.sleep(0.02)
    raise AssertionError(f"no step in 200 s: {process.communicate()}")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_a_worker_that_dies_ends_the_run_and_resume_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["finetune", *TRAIN, "--epochs", 2, "--processes", 2]
    code, out, err = done(*train, "--out", "whole.safetensors", "--json")
    assert code == 0, err
    assert strict(out)["epochs"] == 2 and out.count("\n") == 1

    killed = start(*train, "--out", "killed.safetensors", "--save-every", 0)
    wait_for_step(killed, Path(".gatecli/runs/killed/state.safetensors"))
    pid = ranks_of(killed.pid)[1]
    os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    _, err = killed.communicate(timeout=300)
    assert time.monotonic() - died < WITHIN * BUSY
    last = err.strip().splitlines()[-1]
    assert killed.returncode == 1 and err.count("error: ") == 1, err
    assert f"rank 1, pid {pid}" in last and "SIGKILL" in last and "--resume" in last, err
    assert not Path("killed.safetensors").exists()
    shutil.copytree(here, here / "of_one")

    code, _, err = done("finetune", "--resume", "--processes", 2)
    assert code == 0, err
    mine, theirs = contents("killed.safetensors")[0], contents("whole.safetensors")[0]
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)

    monkeypatch.chdir("of_one")
    resumed = run("finetune", "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert "processes before: 2, now: 1; going on from the beginning of epoch" in resumed.err
    assert strict(resumed.out)["epochs"] == 2


def test_torchrun_s_restart_resumes(here: Path) -> None:
    train = ["finetune", *TRAIN, "--epochs", 2, "--save-every", 0]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--max-restarts", "1", "--monitor-interval", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*torchrun, "-m", "gatecli", *map(str, train)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(process, Path(".gatecli/runs/gated.tuned/state.safetensors"))
    os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "resuming gated.tuned.safetensors" in err
    assert Path("gated.tuned.safetensors").exists()


def test_eval_and_calibrate_of_two_are_those_of_one(here: Path) -> None:
    for line in (
        ["eval", *SEEN],
        ["eval", *SEEN, "--strategy", "stochastic"],
        ["calibrate", *SEEN, "--max-drop", "50", "--force", "--out", "calibrated.safetensors"],
    ):
        one = call(*line)
        code, out, err = done(*line, "--processes", 2, "--json")
        assert code == 0, err
        two = strict(out)
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_too_many_processes_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_processes.together, "count", lambda: 8)
    with pytest.raises(SettingError, match=r"at least 16 images for 8 processes.*got 8"):
        processes(8, synced=False)
    assert processes(8, synced=True).batch_size == 8
    with pytest.raises(SettingError, match="at least 8 images for 8 processes, but got 7"):
        processes(7, synced=True)


def test_a_port_in_use_is_named(here: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = done(
            "eval",
            "gated.safetensors",
            "--data",
            "npz:data.npz",
            RANK="0",
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
    assert (code, out) == (1, "")
    assert f"error: expected port {port} of 127.0.0.1 to be free" in err


def test_commands_of_one_process_refuse_torchrun(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in meeting.items():
        monkeypatch.setenv(name, value)
    refused("methods", "started 2 of another: run it by itself")
    refused(
        "eval gated.safetensors --processes 3",
        "--processes to be the 2 that torchrun has started, but got 3",
    )


def test_the_process_that_died_is_named_and_not_those_stopped_then() -> None:
    killed = SimpleNamespace(exitcode=-signal.SIGKILL, pid=7, timestamp=2)
    stopped = SimpleNamespace(exitcode=-signal.SIGTERM, pid=8, timestamp=1)
    failed = SimpleNamespace(exitcode=1, pid=9, timestamp=3)
    death = str(several._failed({0: stopped, 1: killed}, 2, "start it again"))
    assert "rank 1, pid 7" in death and "SIGKILL" in death and death.endswith("start it again")
    for failures in ({0: failed, 1: stopped}, {0: stopped, 1: stopped}):
        end = several._failed(failures, 2, "")
        assert isinstance(end, typer.Exit) and end.exit_code == 1


def test_who_tells_of_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_told_here(signal.SIGINT) and is_told_here(signal.SIGTERM)
    meeting = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in meeting.items():
        monkeypatch.setenv(name, value)
    assert is_told_here(signal.SIGTERM)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "gatecli-7")  # who started it tells of a death
    assert is_told_here(signal.SIGINT) and not is_told_here(signal.SIGTERM)
    monkeypatch.setenv("RANK", "1")
    assert not is_told_here(signal.SIGINT)


def test_processes_with_other_settings_are_named(here: Path) -> None:
    """Two processes that somebody has started by hand, with different options."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    line = ["finetune", *TRAIN, "--epochs", 1]
    both = []
    for rank, lr in enumerate(("0.1", "0.2")):
        meeting = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        both.append(start(*line, "--lr", lr, **meeting, MASTER_PORT=port))
    ends = [process.communicate(timeout=300)[1] for process in both]
    assert "the same --lr, but it is 0.1 in process 0 and 0.2 in process 1" in ends[0]
    assert [process.returncode for process in both] == [1, 1]
    assert not Path("gated.tuned.safetensors").exists()
