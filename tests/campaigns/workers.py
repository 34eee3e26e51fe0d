"""Workers of a divided training, killed: the run names the worker's rank, and --resume finishes.

    PYTHONPATH=tests python -m campaigns.workers --kills 20

It prints a line a kill and a summary; the exit code is 0 only where some were killed and none
was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from campaigns.kills import fingerprint

PROCESSES = 2
TRAIN = ["--data", "digits", "--epochs", "30", "--batch-size", "256", "--bn-batches", "1"]
OUT = "out.safetensors"
LONGEST = 600.0  # seconds that a run may take


def main() -> int:
    """Kill, resume and compare."""
    parser = argparse.ArgumentParser(prog="campaigns.workers", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(f"workers {asked.seed}")
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        store = Path(name)
        _prepare(store)
        begin = time.monotonic()
        _finish(_start(store, "--out", "whole.safetensors"))
        lasts = time.monotonic() - begin
        whole = fingerprint(store / "whole.safetensors")
        lost = 0
        killed = 0
        for number in range(asked.kills):
            told = _case(
                store, whole, chance.randrange(PROCESSES), chance.uniform(0.3, 0.95) * lasts
            )
            lost += "LOST" in told
            killed += "killed" in told
            print(f"{number}: {told}", flush=True)
    print(f"seed {asked.seed}: {killed} killed of {asked.kills} runs, {lost} lost")
    return int(lost > 0 or not killed)


def _prepare(store: Path) -> None:
    """Make a gated network."""
    code = (
        "import torch; from gatecli.architectures.build import build; torch.manual_seed(0);"
        "torch.save(build('cifar:resnet20', {'channels': 1}).state_dict(), 'r20.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=store, check=True)
    attach = ["attach", "r20.pt", "--method", "ind-perbatch", "--input-size", "8"]
    subprocess.run(
        [sys.executable, "-m", "gatecli", *attach, "--out", "gated.safetensors"],
        cwd=store,
        check=True,
    )


def _start(folder: Path, *more: str) -> subprocess.Popen[str]:
    line = ["finetune", "gated.safetensors", *TRAIN, "--save-every", "0", *more]
    return _gatecli(folder, *line)


def _gatecli(folder: Path, *line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gatecli", *line, "--processes", str(PROCESSES)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end, which must be a good one; returns what was said."""
    _, said = process.communicate(timeout=LONGEST)
    if process.returncode:
        raise RuntimeError(said)
    return said


def _case(store: Path, whole: str, rank: int, delay: float) -> str:
    """Kill the worker `rank` after a while, resume, and compare; returns what came of it."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = Path(name)
        shutil.copy(store / "gated.safetensors", folder)
        process = _start(folder, "--out", OUT)
        time.sleep(delay)
        ranks = ranks_of(process.pid)
        if rank not in ranks:
            process.communicate(timeout=LONGEST)
            return f"over before {delay:.1f} s"
        os.kill(ranks[rank], signal.SIGKILL)
        died = time.monotonic()
        said = process.communicate(timeout=LONGEST)[1].strip().splitlines()
        ended = time.monotonic() - died
        where = f"rank {rank} killed after {delay:.1f} s, ended {ended:.1f} s later"
        if process.returncode != 1 or f"rank {rank}, pid {ranks[rank]}" not in said[-1]:
            return f"{where}: LOST, exit code {process.returncode}, said {said[-1:]}"
        how = _go_on(folder)
        alike = fingerprint(folder / OUT) == whole
        return f"{where}, {how}{'' if alike else ': LOST, other bits'}"


def _go_on(folder: Path) -> str:
    """Bring a run that was killed to its end; returns how."""
    if list(folder.glob(".gatecli/runs/*/state.safetensors")):
        _finish(_gatecli(folder, "finetune", "--resume", "--force"))  # it may be written already
        return "resumed"
    if (folder / OUT).exists():
        return "all was written"
    _finish(_start(folder, "--out", OUT))
    return "begun again"


def ranks_of(parent: int) -> dict[int, int]:
    """The processes that `parent` has started for the work: pid by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            above = (path / "stat").read_text().rpartition(")")[2].split()[1]
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [each[5:] for each in variables if each.startswith(b"RANK=")]
        if int(above) == parent and ranks:
            found[int(ranks[0])] = int(path.name)
    return found


if __name__ == "__main__":
    sys.exit(main())
