"""As networks and data grow.

CPU time and peak memory of the library's functions, each case in a process of its own, one thread.

Networks with random weights, saved as plain state dicts, at 224: `load` (the plain file, and the
gated one), `attach` (AIG's gates), `profile` (the gated network beside the plain one, 3 repeats at
batch 1) and `calibrate` (exits, on 16 images). ratio: milliseconds for each megabyte of the
source's file; of `profile` and `calibrate`, the time over that of the plain network's passes alone,
as many of them and in the same batches. Samples: choosing three exits' thresholds for scores that
are there already (see calibration.py), `frontier` for all targets and `search` for one; ratio:
microseconds a sample.

Peak: the process's resident memory at its highest, beyond what it was with everything imported (a
small network has been loaded and gated before) and the inputs in place; the time leaves both out.
Peaks need Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import timing

NETWORKS = ("resnet18", "resnet50", "resnet152", "densenet201")
COUNTS = (1_000, 10_000, 100_000)
IMAGES, BATCH, REPEATS, WARM = 16, 8, 3, 3
SMALL = "mobilenet_v3_small"
Prepared = tuple[
    Callable[[], Any], Callable[[], Any] | None
]  # what is measured, and the plain network's passes that it is compared with


def save(name: str, folder: Path) -> Prepared:
    """The plain file and the gated ones, for the cases that begin with them; nothing to measure."""
    import torch
    import torchvision

    import gatecli

    torch.manual_seed(0)
    torch.save(getattr(torchvision.models, name)().state_dict(), folder / "plain.pt")
    torch.save(getattr(torchvision.models, SMALL)().state_dict(), folder / "small.pt")
    plain = gatecli.load(folder / "plain.pt")
    gatecli.write(gatecli.attach(plain, "aig-perbatch").network, folder / "gated.safetensors")
    return lambda: None, None


def load(name: str, folder: Path, file: str) -> Prepared:
    import gatecli

    return partial(gatecli.load, folder / file), None


def attach(name: str, folder: Path) -> Prepared:
    import gatecli

    return partial(gatecli.attach, gatecli.load(folder / "plain.pt"), "aig-perbatch"), None


def profile(name: str, folder: Path) -> Prepared:
    import torch

    import gatecli
    from gatecli.stages.profile import Subject, subject_of

    plain, gated = gatecli.load(folder / "plain.pt"), gatecli.load(folder / "gated.safetensors")
    source = Subject("plain", plain, 0, plain.params, plain.macs_dense, plain.macs_dense, {})
    subject = subject_of(
        "gated", gated, 0, {site: [1.0] * gate.units for site, gate in gated.site_gates.items()}
    )
    return partial(gatecli.profile, source, [subject], repeats=REPEATS), partial(
        _passes, plain, torch.randn(1, 3, 224, 224), 2 * (REPEATS + WARM)
    )


def calibrate(name: str, folder: Path) -> Prepared:
    import torch

    import gatecli
    from gatecli.data import DataSet
    from gatecli.data.arrays import ArraySplit

    plain, draw = gatecli.load(folder / "plain.pt"), torch.Generator().manual_seed(0)
    network = gatecli.attach(plain, "dgate").network
    for exit_ in network.site_exits.values():
        linear: Any = exit_.linear
        torch.nn.init.normal_(linear.weight, generator=draw)
    split = ArraySplit(
        torch.randint(256, (IMAGES, 3, 224, 224), generator=draw, dtype=torch.uint8),
        torch.randint(1000, (IMAGES,), generator=draw),
    )
    data = DataSet(
        "random",
        tuple(map(str, range(1000))),
        {"train": split, "val": split},
        (0.5,),
        (0.25,),
        "none",
        None,
    )
    gatecli.fit(network, data)
    return partial(
        gatecli.calibrate_exits, network, data, max_gmacs=1e6, batch_size=BATCH
    ), partial(_passes, plain, torch.randn(BATCH, 3, 224, 224), IMAGES // BATCH)


def _passes(network: Any, x: Any, count: int) -> None:
    import torch

    with torch.inference_mode():
        for _ in range(count):
            network(x)


def choose(how: str, count: int) -> Prepared:
    from calibration import synthetic

    from gatecli.calibration.exits.search import search
    from gatecli.calibration.exits.table import frontier

    samples = synthetic(count)
    target = 100 * samples.correct[:, -1].double().mean().item() - 1
    return (
        partial(frontier, samples) if how == "frontier" else partial(search, samples, target)
    ), None


def warm(folder: Path) -> None:
    """Import, and set up, all that any network needs."""
    import gatecli

    gatecli.attach(gatecli.load(folder / "small.pt"), "aig-perbatch")


def alone(
    prepare: Callable[[], Prepared], folder: Path | None
) -> tuple[float, float, float, float]:
    """In this process: CPU seconds of the case, the same of what it is compared with (0: nothing),
    the peak in MiB beyond the start, and the start.
    """
    import torch

    torch.set_num_threads(1)
    if folder is not None:
        warm(folder)
    run, passes = prepare()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    begun, start = _memory("VmRSS"), time.process_time()
    run()
    seconds, peak = time.process_time() - start, _memory("VmHWM")
    start = time.process_time()
    if passes is not None:
        passes()
    return seconds, time.process_time() - start if passes is not None else 0.0, peak - begun, begun


def _memory(field: str) -> float:
    """VmRSS: resident memory in MiB, as it is; VmHWM: at its highest."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def measured(
    prepare: Callable[[], Prepared], rounds: int, folder: Path | None = None
) -> list[tuple[float, float, float, float]]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(alone, (prepare, folder)) for _ in range(rounds)]


def network_rows(name: str, folder: Path, rounds: int) -> list[timing.Row]:
    measured(partial(save, name, folder), 1)
    megabytes = (folder / "plain.pt").stat().st_size / 1e6
    cases = {
        "load": partial(load, name, folder, "plain.pt"),
        "load, gated": partial(load, name, folder, "gated.safetensors"),
        "attach": partial(attach, name, folder),
        "profile": partial(profile, name, folder),
        "calibrate": partial(calibrate, name, folder),
    }
    return [
        _row(
            f"{name}, {megabytes:.0f} MB",
            variant,
            measured(prepare, rounds, folder),
            megabytes / 1e3,
            "ms/MB",
        )
        for variant, prepare in cases.items()
    ]


def sample_rows(count: int, rounds: int) -> list[timing.Row]:
    return [
        _row(
            f"{count:,} samples",
            how,
            measured(partial(choose, how, count), rounds),
            count / 1e6,
            "us a sample",
        )
        for how in ("frontier", "search")
    ]


def _row(
    case: str, variant: str, runs: list[tuple[float, float, float, float]], size: float, unit: str
) -> timing.Row:
    seconds, passes, peaks, starts = zip(*runs, strict=True)
    ratio = statistics.median(
        own / (base or size) for own, base in zip(seconds, passes, strict=True)
    )
    note = (
        f"ratio: {'over the plain passes' if any(passes) else unit}; peak"
        f" +{statistics.median(peaks):.0f} MiB on {statistics.median(starts):.0f}"
    )
    return timing.row(case, variant, {variant: list(seconds)}, ratio, "", note)


def rows(asked: argparse.Namespace) -> list[timing.Row]:
    found, rounds = [], 1 if asked.quick else 3
    for name in NETWORKS[: 1 if asked.quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            found += network_rows(name, Path(folder), rounds)
    for count in COUNTS[: 2 if asked.quick else None]:
        found += sample_rows(count, rounds)
    return found


if __name__ == "__main__":
    timing.main(
        __doc__,
        "As networks and data grow",
        rows,
        pinned=False,
        threads=1,
        clock="CPU time of the process",
    )
