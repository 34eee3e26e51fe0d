"""The campaign's command line: run cases by number, and sum up what came of them."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from campaigns import files, kills, shelf, splits
from campaigns.outcome import FAILED, Outcome, line, table
from campaigns.worker import run_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign, print its table; the exit code is 0 only where nothing failed."""
    asked = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="campaign-shelf-"))
    store = (asked.shelf or folder).resolve()
    start = time.monotonic()
    try:
        outcomes = list(_told(_outcomes(asked, store), asked.verbose))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = sum(one.verdict == FAILED for one in outcomes)
    print(f"\n{table(outcomes)}")
    print(f"seed {asked.seed}, {failed} failed, {time.monotonic() - start:.0f} s")
    return int(failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="campaigns", description=__doc__)
    parser.add_argument("--files", type=int, default=500, help="damaged files")
    parser.add_argument("--kills", type=int, default=10, help="killed commands")
    parser.add_argument("--splits", type=int, default=500, help="splits of simulated exits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--only", metavar="CASE", help="one case alone, as files:12")
    parser.add_argument("--shelf", type=Path, help="keep the undamaged files in this folder")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    return parser


def _outcomes(asked: argparse.Namespace, store: Path) -> Iterator[Outcome]:
    """All outcomes that were asked for."""
    counts = {"files": range(asked.files), "kills": range(asked.kills)}
    only, splits_asked = asked.only, asked.splits
    if only is not None:
        part, _, number = only.partition(":")
        counts = {part: range(int(number), int(number) + 1)}
        splits_asked = 0
    if counts.get("files") or counts.get("kills"):
        print("making undamaged files", flush=True)
        shelf.make(store)
    if counts.get("files"):
        read = partial(files.case, store, asked.seed)
        yield from run_all(read, partial(files.label, asked.seed), counts["files"], asked.jobs)
    if counts.get("kills"):
        yield from kills.outcomes(store, asked.seed, counts["kills"], asked.jobs)
    yield from splits.outcomes(asked.seed, splits_asked)


def _told(outcomes: Iterator[Outcome], verbose: bool) -> Iterator[Outcome]:
    """Print what failed or took long, and every so often how far it is."""
    start = time.monotonic()
    for number, one in enumerate(outcomes, 1):
        if verbose or one.verdict == FAILED or one.slow:
            print(line(one), flush=True)
        if number % 250 == 0:
            print(f"... {number} cases, {time.monotonic() - start:.0f} s", flush=True)
        yield one
