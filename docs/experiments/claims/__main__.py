"""python -m claims: make the runs that are missing, and write the page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from claims.command import add_options, finished, tried
from claims.laboratory import Laboratory
from claims.page import page
from claims.papers import papers
from claims.problem import read_problem
from claims.store import Store

HERE = Path(__file__).parent


def arguments(words: list[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="claims", description=__doc__)
    add_options(parser, HERE)
    parser.add_argument("--paper", nargs="*", default=[], help="which papers; none: all")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the laboratory; returns the exit code."""
    args = arguments(words)
    return finished(_quick if args.quick else _all, args)


def _all(args: argparse.Namespace) -> int:
    chosen = papers(args.paper)
    store = Store(args.runs)
    failed = 0
    if not args.write_only:
        problem = read_problem(args.data)
        lab = Laboratory(problem=problem, store=store, cache=args.cache)
        failed = lab.work(chosen, args.seeds)
    args.page.write_text(page(store.lines()), encoding="utf-8")
    return int(failed > 0)


def _quick(args: argparse.Namespace) -> int:
    chosen = papers(args.paper)
    return tried(chosen, args, lambda lines: page(lines, chosen, epochs=1))


if __name__ == "__main__":
    sys.exit(main())
