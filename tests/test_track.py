"""finetune --track: what services are told of a run, and that nothing they do harms it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from commandline import SIDE, call, refused, run, save_npz, save_source
from safetensors import safe_open
from safetensors.torch import save_file

from gatecli import tracking
from gatecli.tracking import base
from gatecli.tracking.scalars import scalars
from gatecli.training import loop
from gatecli.training.run import Run
from gatecli.training.trackers import opened, shown

OPTIONS = ["--epochs", "2", "--batch-size", "32", "--lr", "0.05", "--bn-batches", "0"]
FOLDER = Path(".gatecli/runs/gated.tuned")
STEPS = 2  # of an epoch
Log = list[tuple[int, dict[str, float]]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_source(Path("r20.pt"))
        save_npz(Path("data.npz"), train=32 * STEPS, val=20)
        how = ["--method", "ind-perbatch", "--input-size", SIDE, "--out", "gated.safetensors"]
        call("attach", "r20.pt", *how)
    return folder


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("gated.safetensors", "data.npz"):
        (tmp_path / name).write_bytes((shelf / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    return tmp_path


class Fake(tracking.Tracker):
    """Keeps what it is told, and fails where a test says."""

    told: list[tracking.Told] = []
    rows: Log = []
    closed: list[bool] = []
    fails: set[str] = set()

    def __init__(self, where: str) -> None:
        self.where = where

    def begin(self, told: tracking.Told) -> str:
        self._maybe("begin")
        self.told.append(told)
        return told.known or f"run-{len(self.told)}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._maybe("log")
        print("noise")
        self.rows.append((step, dict(values)))

    def close(self, *, finished: bool) -> None:
        self._maybe("close")
        self.closed.append(finished)

    def _maybe(self, what: str) -> None:
        if f"{what} {self.where}" in self.fails:
            raise OSError(f"no {what}\nin two lines")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(base, "_SERVICES", dict(base._SERVICES))
    for name in ("told", "rows", "closed"):
        monkeypatch.setattr(Fake, name, [])
    monkeypatch.setattr(Fake, "fails", set())
    folder = {"": None}
    tracking.register(
        tracking.Service(name="fake", operand="X", track=Fake, folder=lambda x: folder.get(x, x))
    )
    return Fake


def finetune(*more: str) -> dict[str, Any]:
    return call("finetune", "gated.safetensors", "--data", "npz:data.npz", *OPTIONS, *more)


def logged() -> Log:
    lines = (FOLDER / "log.jsonl").read_text().splitlines()
    return [(row["step"], scalars(row)) for row in map(json.loads, lines)]


def test_a_tracker_is_told_the_log(here: Path, fake: type[Fake]) -> None:
    finetune(
        "--track", "fake:a", "--track", "fake:b", "--track", "fake:a", "--set", "target_rate=.7"
    )
    assert fake.rows[::2] == fake.rows[1::2] == logged() and len(logged()) == 2 * STEPS + 2
    assert fake.closed == [True, True]
    told = fake.told[0]
    assert told.name == "gated.tuned" and told.known is None
    assert told.config["lr"] == 0.05 and told.config["set.target_rate"] == ".7"
    assert told.config["checkpoint"] == "gated.safetensors"


def test_trackers_that_fail_are_said_once(here: Path, fake: type[Fake]) -> None:
    fake.fails |= {"log a", "close b"}
    trackers = ["--track", "fake:a", "--track", "fake:b", "--track", "tensorboard:board"]
    done = run("finetune", "gated.safetensors", "--data", "npz:data.npz", *OPTIONS, *trackers)
    assert done.code == 0 and Path("gated.tuned.safetensors").exists()
    for what in ("a has failed (no log", "b has failed (no close"):
        assert done.err.count(f"note: --track fake:{what} in two lines)") == 1
    assert fake.rows == logged() and len(logged()) == 2 * STEPS + 2
    assert list(Path("board").iterdir())


def test_a_tracker_that_cannot_begin(here: Path, fake: type[Fake]) -> None:
    fake.fails.add("begin x")
    line = ["finetune", "gated.safetensors", "--data", "npz:data.npz", *OPTIONS]
    refused([*line, "--track", "fake:x"], "--track fake:x cannot begin (no begin in two lines)")


def test_specs_that_are_none(here: Path) -> None:
    line = ["finetune", "gated.safetensors", "--data", "npz:data.npz", *OPTIONS, "--track"]
    for spec in ("tensorbord:x", "tensorboard", "tensorboard:", "", ":x"):
        refused([*line, spec], "tensorboard:DIR", "wandb[:PROJECT]", "mlflow[:URI]", repr(spec))
    with pytest.raises(ValueError, match="wandb of --track already"):
        tracking.register(tracking.find("wandb")[0])


@pytest.mark.parametrize("service", ["tensorboard:x", "wandb", "mlflow", "trackio:x"])
def test_a_missing_package(here: Path, monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(base, "import_module", missing)
    line = ["finetune", "gated.safetensors", "--data", "npz:data.npz", *OPTIONS]
    refused([*line, "--track", service], "not installed", "pip install 'gatecli[")


def stopped(monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """A run that dies in its second epoch, past the state that was saved last."""
    original, calls = loop.Loop._add, []

    def stop(self: loop.Loop, *given: Any) -> None:
        calls.append(None)
        if len(calls) == STEPS + 2:
            raise MemoryError
        original(self, *given)

    line = ["finetune", "gated.safetensors", "--data", "npz:data.npz", *OPTIONS]
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_add", stop)
        assert run(*line, *more).code == 1


def test_a_resumed_run_is_the_same_there(
    here: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(monkeypatch, "--track", "fake:board")
    assert fake.closed == [False]
    for spec in ("fake", "fake:../x", "mlflow:http://x", "wandb", "trackio:x"):
        name_in_state(spec)  # a state is a file, and may be anybody's
        refused("finetune --resume", spec, "a state's word", f"--track {spec}")
    name_in_state("fake:board")
    call("finetune", "--resume")  # it writes here, so the state's word suffices
    assert [told.known for told in fake.told] == [None, "run-1"]
    steps = dict(fake.rows)  # what came again came with the same numbers
    assert steps == dict(logged()) and fake.closed == [False, True]


def name_in_state(spec: str) -> None:
    state = FOLDER / "state.safetensors"
    with safe_open(state, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = dict(file.metadata())
    about = {**json.loads(metadata["about"]), "track": [spec]}
    save_file(tensors, state, {**metadata, "about": json.dumps(about)})


def test_a_run_that_begins_is_none_that_is_known(tmp_path: Path, fake: type[Fake]) -> None:
    (tmp_path / "trackers.json").write_text('{"fake:a": "run-7"}')
    for resumed, known in ((True, "run-7"), (False, None)):
        told = tracking.Told(name="x", config={})
        with shown(Run(tmp_path, {}), opened(["fake:a"]), told, print, resumed=resumed):
            pass
        assert fake.told[-1].known == known


def test_damaged_notes_of_what_is_known(tmp_path: Path, fake: type[Fake]) -> None:
    for text in ("", "[]", "[" * 10**5, '{"fake:a": 3}', "\0"):
        run = Run(tmp_path, {})
        (tmp_path / "trackers.json").write_text(text)
        told = tracking.Told(name="x", config={})
        with shown(run, opened(["fake:a"]), told, print, resumed=True):
            assert len(run.listeners) == 1
        assert run.listeners == [] and fake.told[-1].known is None


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def test_what_wandb_is_called_with(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def init(**given: Any) -> Any:
        calls.append(given)
        return SimpleNamespace(
            id="w1",
            log=lambda values, step: calls.append((step, values)),
            finish=lambda exit_code: calls.append(exit_code),
        )

    made = module("wandb", init=init, Settings=lambda **given: given)
    monkeypatch.setitem(sys.modules, "wandb", made)
    for known in (None, "w1"):
        tracker = opened(["wandb:nets"])[0].tracker
        assert tracker.begin(tracking.Told(name="n", config={"lr": 1}, known=known)) == "w1"
        tracker.log(3, {"train/loss": 0.5})
        tracker.close(finished=known is not None)
    first, again = calls[0], calls[3]
    assert first["project"] == "nets" and first["config"] == {"lr": 1} and first["resume"] is None
    assert again["id"] == "w1" and again["resume"] == "allow"
    assert calls[1] == (3, {"train/loss": 0.5}) and (calls[2], calls[5]) == (1, 0)


TOLD = {"name": "n", "config": {"lr": 0.05, "data": "npz:x", "long": "x" * 9000}}
ROWS = [(1, {"train/loss": 0.5}), (2, {"train/loss": 0.25, "rate/layer1.0": 1.0})]


def show(spec: str, known: str | None = None) -> str:
    tracker = opened([spec])[0].tracker
    name = tracker.begin(tracking.Told(**TOLD, known=known))
    for step, values in ROWS if known is None else [(3, {"train/loss": 0.1})]:
        tracker.log(step, values)
    tracker.close(finished=True)
    return name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["folder", "sqlite:///runs.db"])
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    name = show(f"mlflow:{where}")
    assert show(f"mlflow:{where}", known=name) == name
    uri = (tmp_path / where).as_uri() if where == "folder" else where
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.get_run(name)
    assert found.info.status == "FINISHED" and found.data.params["lr"] == "0.05"
    losses = [(each.step, each.value) for each in client.get_metric_history(name, "train/loss")]
    assert losses == [(1, 0.5), (2, 0.25), (3, 0.1)]
    assert found.data.metrics["rate/layer1.0"] == 1.0


@pytest.mark.filterwarnings("ignore")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    name = show("wandb:nets")
    assert show("wandb:nets", known=name) == name
    kept = list(Path("wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert b"train/loss" in b"".join(path.read_bytes() for path in kept)


@pytest.mark.filterwarnings("ignore")
def test_trackio(tmp_path: Path) -> None:
    """In a process of its own, which knows no other folder."""
    pytest.importorskip("trackio")
    import os
    import subprocess

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_track as t\n"
        "name = t.show('trackio:nets'); assert t.show('trackio:nets', known=name) == name"
    )
    surroundings = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-c", code, str(Path(__file__).parent)]
    subprocess.run(line, env=surroundings, check=True, capture_output=True)
    import sqlite3

    (path,) = tmp_path.glob("nets*.db")
    with sqlite3.connect(path) as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(text)["train/loss"]) for step, text in rows] == [
        (1, 0.5),
        (2, 0.25),
        (3, 0.1),
    ]
