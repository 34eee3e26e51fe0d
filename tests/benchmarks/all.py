"""Every benchmark, one after the other, each in a process of its own.

One table at the end, and one JSON file.

A benchmark that fails, or whose packages are missing (pip install '.[bench]'), is one line of the
table; the others go on, and the exit code is 1. A target that is not held is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timing

BENCHMARKS = (
    "startup",
    "skipping",
    "training",
    "memory",
    "exits",
    "calibration",
    "filters",
    "branches",
    "channels",
    "heads",
    "export",
    "runtimes",
    "deciding",
    "reading",
    "peers",
    "growth",
    "hidden",
)
HERE = Path(__file__).parent


def run(name: str, quick: bool, folder: Path) -> dict[str, Any]:
    """What one benchmark has written.

    Where it has written nothing, the last line of what it complained of, as `failed`.
    """
    print(f"\n== {name}", flush=True)
    out = folder / f"{name}.json"
    done = subprocess.run(
        [sys.executable, HERE / f"{name}.py", "--json", out, *(["--quick"] if quick else [])],
        stderr=subprocess.PIPE,
        text=True,
    )
    sys.stderr.write(done.stderr)
    if done.returncode or not out.exists():
        return {
            "failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        }
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def lines(name: str, found: dict[str, Any]) -> list[str]:
    if "failed" in found:
        return [f"| {name} |  | failed |  |  |  |  | {found['failed']} |"]
    return [
        f"| {name} | {r['case']} | {r['variant']} | {timing.in_ms(r['median_ms'])} |"
        f" {timing.in_ratio(r['ratio'])} | {r['target']} | {r['held']} | {r['note']} |"
        for r in found["rows"]
    ]


def main() -> int:
    asked = timing.arguments(__doc__, Path("bench.json"))
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run(name, asked.quick, Path(folder)) for name in BENCHMARKS}
    print(
        "\n| benchmark | case | variant | median ms | ratio | target | held | note"
        " |\n|---|---|---|---:|---:|---|---|---|"
    )
    for name, each in found.items():
        print("\n".join(lines(name, each)))
    timing.write(asked.json, found)
    return int(any("failed" in each for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
