"""What the command lines of the laboratories have in common."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from claims.claim import Paper
from claims.laboratory import Laboratory
from claims.problem import read_problem
from claims.store import Store
from gatecli.errors import GatecliError

__all__ = ["add_options", "finished", "tried"]

QUICK = {"train": 256, "folds": 4, "each": 64}  # the problem of a try
SEEDS = (0, 1, 2)


def add_options(parser: argparse.ArgumentParser, here: Path) -> None:
    """Add the options of a laboratory in the folder `here`; its page and cache have its name."""
    page = here.parent.parent / f"{here.name}.md"
    parser.add_argument("--data", default="glyphs36.npz", help="an npz file with 36 classes")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--runs", type=Path, default=here / "runs.jsonl", help="the runs' lines")
    parser.add_argument("--page", type=Path, default=page)
    cache = Path(f".{here.name}")
    parser.add_argument("--cache", type=Path, default=cache, help="for trained sources")
    parser.add_argument("--write-only", action="store_true", help="the page, without any run")
    parser.add_argument("--quick", action="store_true", help="one epoch of few images, as a try")


def tried(
    chosen: Sequence[Paper],
    args: argparse.Namespace,
    page: Callable[[list[dict[str, Any]]], str],
) -> int:
    """Make every run for an epoch of few images, in a folder that goes, and print the page.

    Returns:
        The exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs.jsonl")
        problem = read_problem(args.data, **QUICK)
        lab = Laboratory(problem=problem, store=store, cache=Path(folder), epochs=1)
        failed = lab.work(chosen, args.seeds[:1])
        print(page(store.lines()))
    return int(failed > 0)


def finished(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a laboratory in one thread; returns the exit code, errors in one line."""
    torch.set_num_threads(1)
    try:
        return work(args)
    except GatecliError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
