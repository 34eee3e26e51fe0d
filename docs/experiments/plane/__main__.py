"""python -m plane: train what is missing, or measure milliseconds, and write the page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from claims.command import add_options, finished, tried
from claims.laboratory import Laboratory
from claims.problem import read_problem
from claims.store import Store

from plane.clock import timed
from plane.networks import PAPER, kept
from plane.page import draw, page

HERE = Path(__file__).parent


def main(words: list[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="plane", description=__doc__)
    add_options(parser, HERE)
    parser.add_argument("--time", action="store_true", help="measure, rather than train")
    args = parser.parse_args(words)
    return finished(_quick if args.quick else _all, args)


def _all(args: argparse.Namespace) -> int:
    store = Store(args.runs)
    clock = args.runs.with_name("times.json")
    failed = 0
    if not args.write_only:
        problem = read_problem(args.data)
        if args.time:
            found = {each.name: kept(each, args.cache, problem) for each in PAPER.variants}
            there = {name: network for name, network in found.items() if network is not None}
            clock.write_text(json.dumps(timed(there, problem), indent=1) + "\n", encoding="utf-8")
        else:
            lab = Laboratory(problem=problem, store=store, cache=args.cache)
            failed = lab.work([PAPER], args.seeds[:1])
    times = json.loads(clock.read_text(encoding="utf-8")) if clock.exists() else None
    args.page.write_text(page(store.lines(), times), encoding="utf-8")
    if times is not None:
        draw(store.lines(), times, args.page.with_suffix(".svg"))
    return int(failed > 0)


def _quick(args: argparse.Namespace) -> int:
    return tried([PAPER], args, lambda lines: page(lines, None))


if __name__ == "__main__":
    sys.exit(main())
