"""How long the command line takes to start.

`gatecli --help` over a bare Typer program of 14 commands, and `gatecli attach` on a ResNet-50 state
dict against the import of torch and torchvision alone, which every such program pays; one thread
(OMP_NUM_THREADS=1). CPU time of whole processes, interleaved; `where attach's time goes` is
measured in one process.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import timing

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
COMMANDS = 14
BARE = f"""
import typer
app = typer.Typer()
def body(
    checkpoint: str = typer.Argument(None, help="A checkpoint."),
    out: str = typer.Option(None, help="Where to write."),
    quiet: bool = False,
) -> None:
    "Do it."
for name in range({COMMANDS}):
    app.command(f"command{{name}}")(body)
app()
"""
SOURCE = (
    "import torch, torchvision; torch.save(torchvision.models.resnet50().state_dict(),"
    " 'resnet50.pt')"
)
PARTS = """
import time
marks = []
def mark(name):
    marks.append((name, time.process_time()))
mark("")
import torch, torchvision; mark("import torch, torchvision")
import gatecli.cli.app; mark("import the command line")
from pathlib import Path
from gatecli.stages import attach as attaching
from gatecli import checkpoint, methods
from gatecli.checkpoint import formats
from gatecli.graph import macs
mark("import the rest of gatecli")
macs._fvcore(); mark("import fvcore")
formats.read_tensors("resnet50.pt"); mark("read the tensors (alone, once more)")
formats.file_sha256("resnet50.pt"); mark("SHA-256 of the file (alone, once more)")
network, _ = checkpoint.read(Path("resnet50.pt"))
mark("read the checkpoint: tensors, architecture, trace, MACs, sites")
network._count(); mark("count the MACs (alone, once more)")
images = attaching.random_images(network)
with torch.no_grad():
    network(images); mark("two images forward (alone, once more)")
result = attaching.attach(network, "aig-perbatch").network
mark("attach: copy, gates, MACs, logits before and after")
checkpoint.write(result, Path("parts.safetensors")); mark("write the file")
for (_, before), (name, after) in zip(marks, marks[1:]):
    print(f"{name}\\t{after - before}")
"""


def cpu_seconds(command: Sequence[str], folder: str) -> float:
    """User and system time of a process and its children."""
    before = os.times()
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=ONE_THREAD)
    after = os.times()
    return (
        after.children_user - before.children_user + after.children_system - before.children_system
    )


def interleaved(
    commands: Mapping[str, Sequence[str]], rounds: int, folder: str
) -> tuple[timing.Times, timing.Times]:
    """CPU and wall seconds of each command in each round, after one to warm the disk's cache."""
    cpu: timing.Times = {name: [] for name in commands}
    wall: timing.Times = {name: [] for name in commands}
    order = random.Random(0)
    for turn in range(-1, rounds):
        for name in order.sample(list(commands), len(commands)):
            start = time.perf_counter()
            spent = cpu_seconds(commands[name], folder)
            if turn >= 0:
                cpu[name].append(spent)
                wall[name].append(time.perf_counter() - start)
    return cpu, wall


def help_rows(rounds: int, folder: str) -> list[timing.Row]:
    commands = {
        "bare Typer, 14 commands": [sys.executable, "-c", BARE, "--help"],
        "gatecli --help": [sys.executable, "-m", "gatecli", "--help"],
    }
    cpu, wall = interleaved(commands, rounds, folder)
    bare, ours = commands
    return [
        timing.row("help, CPU", bare, cpu),
        timing.compared("help, CPU", ours, cpu, bare, "<= 2"),
        timing.row("help, wall", bare, wall),
        timing.compared("help, wall", ours, wall, bare),
    ]


def attach_rows(rounds: int, folder: str) -> list[timing.Row]:
    subprocess.run([sys.executable, "-c", SOURCE], cwd=folder, check=True)
    commands = {
        "import torch, torchvision": [sys.executable, "-c", "import torch, torchvision"],
        "gatecli attach": [
            sys.executable,
            "-m",
            "gatecli",
            "attach",
            "resnet50.pt",
            "--method",
            "aig-perbatch",
            "--out",
            "gated.safetensors",
            "--force",
            "--quiet",
        ],
    }
    rows = []
    for clock, times in zip(("CPU", "wall"), interleaved(commands, rounds, folder), strict=True):
        alone, ours = commands
        beyond = statistics.median(b - a for a, b in zip(times[alone], times[ours], strict=True))
        rows += [
            timing.row(f"attach, {clock}", alone, times),
            timing.row(
                f"attach, {clock}", ours, times, beyond, "<= 3", "seconds beyond the imports"
            ),
        ]
    return rows


def part_rows(rounds: int, folder: str) -> list[timing.Row]:
    parts: timing.Times = {}
    for _ in range(rounds):
        printed = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PARTS],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            env=ONE_THREAD,
        ).stdout
        for line in printed.splitlines():
            name, _, seconds = line.partition("\t")
            parts.setdefault(name, []).append(float(seconds))
    return [timing.row("where attach's time goes, CPU", name, parts) for name in parts]


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    with tempfile.TemporaryDirectory() as folder:
        return (
            help_rows(5 if asked.quick else 15, folder)
            + attach_rows(2 if asked.quick else 5, folder)
            + part_rows(1 if asked.quick else 3, folder)
        )


if __name__ == "__main__":
    timing.main(
        __doc__,
        "Start-up",
        rows,
        pinned=False,
        threads=1,
        clock="CPU time of the process, and wall time",
    )
