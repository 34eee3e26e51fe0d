"""What a training step costs on a CPU where Linux gets large tensors' memory back after each use.

As it is by default, and with two variables of glibc that let the process keep what it once had
(docs/how-to/train.md). Each step is measured in a process of its own, as the variables are read
when it starts; CPU time of one thread, the two in turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import timing

ROOT = Path(__file__).parents[2]
GLIBC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
KEPT = dict(zip(GLIBC, ("4294967296", "8589934592"), strict=True))  # bytes; the Makefile's too
DEFAULT, KEEPS = "by default", "memory kept"
STEP = """
import statistics, time, torch, torchvision, gatecli
from gatecli.architectures.build import build
torch.set_num_threads(1)
torch.manual_seed(0)
model = {make}
model = model.train()
x = torch.randn({shape})
times = []
for _ in range({steps} + 5):  # the first ones make the process as large as it gets
    begin = time.thread_time()
    model(x).sum().backward()
    times.append(time.thread_time() - begin)
print(statistics.median(times[5:]))
"""
RESNEXT = "build('cifar:resnext20_8x4d', dict(num_classes=10))"
CASES = {  # the network, and the images of a step
    "GateConnect, ResNeXt-20 8x4d, 64 of 16x16": (
        f"gatecli.attach({RESNEXT}, 'gateconnect', fan_in=4, input_size=(16, 16)).network",
        (64, 3, 16, 16),
    ),
    "no gates, ResNeXt-20 8x4d, 64 of 16x16": (RESNEXT, (64, 3, 16, 16)),
    "no gates, ResNet-50, 8 of 224x224": ("torchvision.models.resnet50()", (8, 3, 224, 224)),
}


def step_seconds(case: str, environment: dict[str, str], steps: int) -> float:
    """CPU seconds of a forward and a backward pass, in a process with these variables."""
    make, shape = CASES[case]
    code = STEP.format(make=make, shape=", ".join(map(str, shape)), steps=steps)
    usual = {name: value for name, value in os.environ.items() if name not in GLIBC}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**usual, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return float(done.stdout.splitlines()[-1])


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    found = []
    rounds, steps = (1, 2) if asked.quick else (3, 5)
    for case in list(CASES)[: 1 if asked.quick else None]:
        times: timing.Times = {DEFAULT: [], KEEPS: []}
        for _ in range(rounds):
            times[DEFAULT].append(step_seconds(case, {}, steps))
            times[KEEPS].append(step_seconds(case, KEPT, steps))
        found += [timing.row(case, DEFAULT, times), timing.compared(case, KEEPS, times, DEFAULT)]
    return found


if __name__ == "__main__":
    timing.main(__doc__, "Memory", rows, pinned=False, threads=1)
