"""What torch says of itself, asked in a process of its own.

A torch that does not fit the machine may end the process that imports it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from gatecli.errors import first_line

__all__ = ["LIBRARIES", "ask", "main"]

LIBRARIES = ("torch", "torchvision")
SECONDS = 300  # a cold import from a slow disk takes a minute
PROGRAM = "from gatecli.stages.torch_facts import main; main()"


def ask() -> dict[str, Any]:
    """Import torch and torchvision elsewhere.

    Returns:
        `versions` and `errors` {library: text}; where torch is there also `threads`, `gpus` and
        `cuda`, the version that it was built for.
    """
    paths = [os.path.abspath(each) for each in sys.path]  # the child's folder is another one
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=sys.prefix,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return _failed(f"importing it takes more than {SECONDS} s")
    if done.returncode < 0:
        return _failed(f"importing it ends the process ({_signal(-done.returncode)})")
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing was said"]
        return _failed(f"importing it ends the process: {said[-1]}")
    return found


def main() -> None:
    """Print the facts as JSON; what runs in the other process."""
    found: dict[str, Any] = {"versions": {}, "errors": {}}
    for name in LIBRARIES:
        try:
            found["versions"][name] = str(importlib.import_module(name).__version__)
        except Exception as error:  # anything: that it cannot be imported is the answer
            found["errors"][name] = f"{type(error).__name__}: {first_line(error)}"
    if "torch" in found["versions"]:
        found.update(_of_torch())
    print(json.dumps(found))


def _of_torch() -> dict[str, Any]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about = torch.cuda.get_device_properties(index)
        gpus.append({"name": about.name, "memory_bytes": about.total_memory})
    if torch.backends.mps.is_available():
        gpus.append({"name": "mps", "memory_bytes": None})
    return {"threads": torch.get_num_threads(), "gpus": gpus, "cuda": torch.version.cuda}


def _failed(why: str) -> dict[str, Any]:
    return {"versions": {}, "errors": {"torch": why}}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
