"""Reading a folder of small JPEGs: ours beside torchvision's ImageFolder and DataLoader.

20,000 images of 96 to 128 pixels in 100 classes, made on the spot, read as for training: a random
crop of 64 pixels, a flip, normalised, in batches of 128, shuffled. Each walk is a process of its
own, and walks take turns. Start-up: until the data set is open, and until the first batch is there,
imports left out. Memory is that of the process and its workers together, shared pages counted once
(PSS). Images a second are compared twice, ours over torchvision's: by the wall clock, which other
work on the machine moves, and by the CPU time that all processes together take for an image.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timing
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import gatecli.data.folders  # noqa: F401 - what opening imports is no part of its time
from gatecli.data import Walk, batches, load_data
from gatecli.traced.recipe import InputSpec

SIDE, BATCH, CLASSES, IMAGES = 64, 128, 100, 20_000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORKERS = (1, 2, 4)
READERS = ("gatecli", "torchvision")


def make(folder: Path, count: int) -> None:
    """Smooth pictures with some noise, as photographs' JPEGs are: 3 to 5 kB each."""
    chance = np.random.RandomState(0)
    for number in range(count):
        small = chance.randint(0, 256, (6, 6, 3)).astype(np.uint8)
        sides = tuple(chance.randint(96, 129, 2).tolist())
        picture = np.asarray(Image.fromarray(small).resize(sides, Image.Resampling.BICUBIC))
        noisy = picture.astype(np.int16) + chance.randint(-12, 13, picture.shape)
        file = folder / "train" / f"c{number % CLASSES:03d}" / f"{number:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=85)


def ours(folder: Path, workers: int) -> tuple[float, Iterator[tuple[Tensor, Tensor]]]:
    began = time.perf_counter()
    # a smallest val split: nearly all is read
    split = load_data(f"imagefolder:{folder}", val_fraction=1e-9).splits["train"]
    opened = time.perf_counter() - began
    input = InputSpec((SIDE, SIDE), 3, MEAN, STD)
    walk = Walk(augment="imagenet", shuffle=True, drop_last=True)
    return opened, batches(split, input=input, batch_size=BATCH, walk=walk, workers=workers)


def theirs(folder: Path, workers: int) -> tuple[float, Iterator[tuple[Tensor, Tensor]]]:
    steps = [
        transforms.RandomResizedCrop(SIDE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    began = time.perf_counter()
    data = ImageFolder(str(folder / "train"), transforms.Compose(steps))
    opened = time.perf_counter() - began
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    return opened, iter(loader)


def memory() -> int:
    """Bytes of this process and its children, shared pages counted once."""
    total = 0
    for process in ("self", *(str(each.pid) for each in multiprocessing.active_children())):
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
    return 1024 * total


def cpu_seconds() -> float:
    """CPU time of this process and its children until now."""
    ticks = 0
    for process in ("self", *(str(each.pid) for each in multiprocessing.active_children())):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime
    return ticks / os.sysconf("SC_CLK_TCK")


def walk_once(reader: str, folder: Path, workers: int, most: int) -> dict[str, float]:
    torch.set_num_threads(1)
    began = time.perf_counter()
    opened, items = (ours if reader == "gatecli" else theirs)(folder, workers)
    next(items)
    first = time.perf_counter() - began
    began = time.perf_counter()
    cpu_before = cpu_seconds()
    images = 0
    taken = 0
    for x, _ in items:
        images += len(x)
        if images == 20 * BATCH:
            taken = memory()
        if images >= most:
            break
    seconds = time.perf_counter() - began
    cpu = (cpu_seconds() - cpu_before) / images
    speed = images / seconds
    return {"opened": opened, "first": first, "speed": speed, "cpu": cpu, "bytes": taken}


def measured(reader: str, folder: Path, workers: int, most: int) -> dict[str, float]:
    line = [sys.executable, __file__, "--walk", reader, folder, workers, most]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    most, rounds = (2560, 3) if asked.quick else (10_000, 5)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, IMAGES)
        for workers in WORKERS:
            walks: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
            for turn in range(rounds):
                for reader in READERS if turn % 2 else reversed(READERS):
                    walks[reader].append(measured(reader, folder, workers, most))
            found += compared(walks, workers)
    return found


def compared(walks: dict[str, list[dict[str, float]]], workers: int) -> list[timing.Row]:
    case = f"{workers} worker{'s' * (workers > 1)}"
    clocks = {reader: [1000 / each["speed"] for each in own] for reader, own in walks.items()}
    cpus = {reader: [1000 * each["cpu"] for each in own] for reader, own in walks.items()}
    found = []
    for name, times in (("wall", clocks), ("CPU", cpus)):
        pairs = zip(times["torchvision"], times["gatecli"], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        for reader in READERS:
            is_ours = reader == "gatecli"
            found.append(
                timing.Row(
                    f"{case}, {name}",
                    reader,
                    min(times[reader]),
                    statistics.median(times[reader]),
                    ratio if is_ours else None,
                    ">= 1.0" if is_ours else "",
                    said(walks[reader]) if name == "wall" else "",
                )
            )
    return found


def said(walks: list[dict[str, float]]) -> str:
    middle = {key: statistics.median(each[key] for each in walks) for key in walks[0]}
    return (
        f"{middle['speed']:.0f} images/s, open after {middle['opened']:.2f} s, first batch after"
        f" {middle['first']:.2f} s, {middle['bytes'] / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--walk"]:
        reader, folder, workers, most = sys.argv[2:]
        print(json.dumps(walk_once(reader, Path(folder), int(workers), int(most))))
    else:
        timing.main(__doc__, "Reading image files", rows, pinned=False, clock="wall")
