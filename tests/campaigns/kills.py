"""Killed commands: inputs stay, outputs are whole or absent, and the next try comes to its end."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns.damage import join_safetensors, split_safetensors
from campaigns.outcome import FAILED, RIGHT, Outcome

DRIVER = Path(__file__).with_name("driver.py")
LONGEST = 300  # seconds that any command may take
BEFORE = "plain.safetensors"  # current before the command
TRAIN = ["--data", "digits", "--epochs", "2", "--batch-size", "512", "--bn-batches", "1"]
FINETUNE = ["finetune", "attached.ind-perbatch.safetensors", *TRAIN, "--save-every", "0"]
EXITS = ["finetune", "attached.dgate.safetensors", *TRAIN, "--save-every", "0"]
CALIBRATE = ["calibrate", "tuned.aig-pergate.safetensors", "--data", "digits", "--max-drop", "5"]
PRUNE = ["prune", "tuned.ind-perbatch.safetensors", "--data", "digits"]
SIZE = ["--input-size", "8"]
# so few steps close gates only where their learning rate is high
STEEP = ["--set", "gate_lr=150", "--set", "loss_weight=20"]
BRIEF = ["--data", "digits", "--epochs", "2", "--last-epochs", "1", "--batch-size", "512"]
SLIM = ["slim", "zip.pt", "--max-gmacs", "0.002", *BRIEF, *STEEP, *SIZE]
REPLAY = ["replay", "pruned.ind-perbatch.safetensors", "--on", "zip.pt", "--data", "digits"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command and what it writes.

    Attributes: old: an output is there already and --force replaces it. goes_on: of several steps,
    so that it goes on when it is typed again.
    """

    command: list[str]
    outputs: tuple[str, ...]
    old: bool = False
    goes_on: bool = False

    @property
    def line(self) -> list[str]:
        """The command's arguments."""
        out = ["--out", self.outputs[0]] if self.outputs else []
        return [*self.command, *out, *["--force"] * self.old, "--threads", "1", "--quiet"]

    @property
    def inputs(self) -> list[str]:
        """Files of the shelf that it reads."""
        return [BEFORE, *(word for word in self.command if word.endswith((".safetensors", ".pt")))]


OUT = ("out.safetensors",)
SCENARIOS = {
    "attach": Scenario(command=["attach", "zip.pt", "--method", "aig-pergate", *SIZE], outputs=OUT),
    "finetune": Scenario(command=FINETUNE, outputs=OUT),
    "finetune --force": Scenario(command=FINETUNE, outputs=OUT, old=True),
    "finetune exits": Scenario(command=[*EXITS, "--cache-features"], outputs=OUT),
    "calibrate": Scenario(command=CALIBRATE, outputs=OUT),
    "prune": Scenario(command=PRUNE, outputs=OUT),
    "prune --force": Scenario(command=PRUNE, outputs=OUT, old=True),
    "export weights": Scenario(
        command=["export", "zip.pt", "--format", "weights", *SIZE],
        outputs=("out.weights.safetensors", "out.py"),
    ),
    "export onnx": Scenario(
        command=["export", "zip.pt", "--format", "onnx", *SIZE], outputs=("out.onnx",)
    ),
    "slim": Scenario(command=SLIM, outputs=OUT, goes_on=True),
    "replay": Scenario(command=REPLAY, outputs=OUT, goes_on=True),
    "use": Scenario(command=["use", "zip.pt"], outputs=()),
}


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What a scenario gives where nothing kills it, and how much of it there is to kill."""

    outputs: dict[str, str]
    current: str
    operations: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which scenario is killed, and where: at an operation, or after a share of its time."""

    name: str
    share: float
    at_operation: bool


def plan(seed: int, number: int) -> Plan:
    """What a case's number stands for."""
    chance = random.Random(f"kills {seed} {number}")
    names = list(SCENARIOS)
    name = names[number % len(names)]
    return Plan(name=name, share=chance.random(), at_operation=chance.random() < 0.7)


def outcomes(store: Path, seed: int, numbers: range, jobs: int) -> Iterator[Outcome]:
    """The outcomes of killed commands, `jobs` at a time."""
    plans = {number: plan(seed, number) for number in numbers}
    names = sorted({planned.name for planned in plans.values()})
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda name: undisturbed(store, SCENARIOS[name]), names)
        known = dict(zip(names, found, strict=True))
        yield from pool.map(lambda n: outcome(store, n, plans[n], known[plans[n].name]), numbers)


def undisturbed(store: Path, scenario: Scenario) -> Undisturbed:
    """Run a scenario to its end."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = _folder(store, scenario, Path(name))
        start = time.monotonic()
        done = _run(folder, scenario.line, 0)
        seconds = time.monotonic() - start
        if done.returncode != 0:
            raise RuntimeError(f"gatecli {' '.join(scenario.line)}: {done.stderr.decode()}")
        report = (folder.parent / "report").read_text(encoding="utf-8")
        outputs = {each: fingerprint(folder / each) for each in scenario.outputs}
        return Undisturbed(
            outputs=outputs, current=_current(folder), operations=int(report), seconds=seconds
        )


def outcome(store: Path, number: int, planned: Plan, known: Undisturbed) -> Outcome:
    """Kill a command, look at what is left, and let it come to its end."""
    where = "operation" if planned.at_operation else "moment"
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = _folder(store, SCENARIOS[planned.name], Path(name))
        told = _killed(folder, planned, known)
        faults = _faults(folder, SCENARIOS[planned.name], known)
    return Outcome(
        case=f"kills:{number}",
        kind=f"{planned.name}: killed at {'an' if planned.at_operation else 'a'} {where}",
        verdict=FAILED if faults else RIGHT,
        detail=f"{told}; {'; '.join(faults)}",
    )


def _folder(store: Path, scenario: Scenario, top: Path) -> Path:
    """A working folder with a scenario's inputs."""
    folder = top / "work"
    (folder / ".gatecli").mkdir(parents=True)
    for name in scenario.inputs:
        shutil.copy(store / name, folder / name)
    (folder / ".gatecli" / "current").write_text(f"{BEFORE}\n", encoding="utf-8")
    if scenario.old:
        shutil.copy(store / BEFORE, folder / scenario.outputs[0])
    return folder


def _run(folder: Path, line: list[str], fatal: int) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        _python(folder, line, fatal), cwd=folder, capture_output=True, timeout=LONGEST
    )


def _python(folder: Path, line: list[str], fatal: int) -> list[str]:
    return [sys.executable, str(DRIVER), str(fatal), str(folder.parent / "report"), *line]


def _killed(folder: Path, planned: Plan, known: Undisturbed) -> str:
    """Run and kill; returns where."""
    line = SCENARIOS[planned.name].line
    if planned.at_operation:
        fatal = 1 + int(planned.share * known.operations)
        _run(folder, line, fatal)
        return f"operation {fatal} of {known.operations}"
    delay = planned.share * known.seconds
    silent = subprocess.DEVNULL
    process = subprocess.Popen(_python(folder, line, 0), cwd=folder, stdout=silent, stderr=silent)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    process.wait()
    return f"after {delay:.2f} s of {known.seconds:.2f}"


def _faults(folder: Path, scenario: Scenario, known: Undisturbed) -> list[str]:
    """What is wrong after the kill, and what after the command came to its end."""
    untouched = {name: fingerprint(folder.parent / "work" / name) for name in scenario.inputs}
    checks: list[Callable[[], list[str]]] = [
        lambda: _wrong_outputs(folder, scenario, known, finished=False),
        lambda: _wrong_current(folder, scenario, known),
        lambda: _not_repeated(folder, scenario),
        lambda: _wrong_outputs(folder, scenario, known, finished=True),
        lambda: [] if _current(folder) == known.current else [f"current is {_current(folder)}"],
        lambda: _changed(folder, untouched),
        lambda: [f"{path.name} is left over" for path in sorted(folder.rglob("*.tmp"))],
    ]
    return [fault for check in checks for fault in check()]


def _wrong_outputs(
    folder: Path, scenario: Scenario, known: Undisturbed, *, finished: bool
) -> list[str]:
    """Outputs that are neither what they should be nor, before the end, absent or the old ones."""
    allowed = set() if finished else {"absent"}
    if scenario.old and not finished:
        allowed.add(fingerprint(folder / BEFORE))
    when = "in the end" if finished else "after the kill"
    found = {name: fingerprint(folder / name) for name in scenario.outputs}
    wrong = [name for name in found if found[name] not in {known.outputs[name], *allowed}]
    return [f"{when} {name} is {found[name][:12]}" for name in wrong]


def _wrong_current(folder: Path, scenario: Scenario, known: Undisturbed) -> list[str]:
    name = _current(folder)
    if name not in (BEFORE, known.current) and not scenario.goes_on:
        return [f"after the kill current is {name!r}"]
    return [] if (folder / name).is_file() else [f"after the kill current names {name}: gone"]


def _not_repeated(folder: Path, scenario: Scenario) -> list[str]:
    """Resume, or repeat, the command; a fault where it does not work."""
    if scenario.goes_on:
        done = _run(folder, scenario.line, 0)
        is_over = b"exists already" in done.stderr  # killed behind its last step
        return [] if is_over else _failure(scenario.line, done)
    resumable = bool(list(folder.glob(".gatecli/runs/*/state.safetensors")))
    line = ["finetune", "--resume", "--quiet"] if resumable else list(scenario.line)
    there = any((folder / name).exists() for name in scenario.outputs)
    if there and "--force" not in line:
        line.append("--force")
    if resumable and scenario.old:  # a state's word is not enough to replace a stranger's file
        line += ["--out", scenario.outputs[0]]
    return _failure(line, _run(folder, line, 0))


def _failure(line: list[str], done: subprocess.CompletedProcess[bytes]) -> list[str]:
    said = " ".join(done.stderr.decode(errors="replace").split())[-200:]
    return [f"{' '.join(line[:2])} then failed: {said}"] if done.returncode else []


def _changed(folder: Path, untouched: dict[str, str]) -> list[str]:
    changed = [n for n, before in untouched.items() if fingerprint(folder / n) != before]
    return [f"the input {name} is another one" for name in changed]


def _current(folder: Path) -> str:
    path = folder / ".gatecli" / "current"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def fingerprint(path: Path) -> str:
    """A hash of what a file holds, times left out; `absent` where there is none."""
    if not path.exists():
        return "absent"
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        data = _without_times(data)
    return hashlib.sha256(data).hexdigest()


def _without_times(data: bytes) -> bytes:
    """A safetensors file without the times in its recipe; as it is where it cannot be read."""
    try:
        header, body = split_safetensors(data)
        recipe: dict[str, Any] = json.loads(header["__metadata__"]["gatecli"])
        for step in recipe["steps"]:
            step["at"] = ""
    except (ValueError, KeyError, struct.error):  # cut off, or no checkpoint of gatecli's
        return data
    header["__metadata__"]["gatecli"] = json.dumps(recipe)
    return join_safetensors(header, body)
