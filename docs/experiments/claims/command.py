"""What the command lines of the laboratories have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from gatecli.errors import GatecliError

__all__ = ["QUICK", "add_options", "finished"]

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


def finished(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a laboratory in one thread; returns the exit code, errors in one line."""
    torch.set_num_threads(1)
    try:
        return work(args)
    except GatecliError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
